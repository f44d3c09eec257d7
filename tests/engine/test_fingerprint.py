"""What a model computes with: a second call sees whatever changed, and no plan of another model is used."""

from types import SimpleNamespace

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from test_clipping import definition
from torch import nn

from dpcheck.testing import output_losses


class Tempered(nn.Module):
    """Reads attributes of all kinds, and its mode."""

    factor = 1.0

    def __init__(self):
        super().__init__()
        self.layer, self.act, self.temperature = nn.Linear(4, 3), nn.Tanh(), 1.0
        self.options, self.pair, self.function = {"scales": [1.0]}, (1.0, 2.0), torch.sin
        self.config = SimpleNamespace(scale=1.0)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x):
        h = self.act(self.layer(x)) * self.temperature * self.options["scales"][0] * self.pair[0] * self.config.scale
        h = self.function(h + self.shift) * self.factor
        return h * 3 if self.training else h


class Masked(Tempered):
    """Also reads a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.mask = torch.ones(3)

    def forward(self, x):
        return super().forward(x) * self.mask


CHANGES = {
    "weights": lambda m: m.layer.weight.data.mul_(2),
    "weights replaced": lambda m: setattr(m.layer, "weight", nn.Parameter(torch.randn(3, 4))),
    "an attribute": lambda m: setattr(m, "temperature", 7.0),
    "a list in a dictionary": lambda m: m.options["scales"].append(m.options["scales"].pop() + 3),
    "a tuple": lambda m: setattr(m, "pair", (3.0, 4.0)),
    "a function": lambda m: setattr(m, "function", torch.cos),
    "a configuration": lambda m: setattr(m.config, "scale", 3.0),
    "a submodule": lambda m: setattr(m, "act", nn.Sigmoid()),
    "the class of a submodule": lambda m: setattr(m.act, "__class__", nn.Sigmoid),
    "a forward": lambda m: setattr(m.act, "forward", torch.cos),
    "a hook": lambda m: m.layer.register_forward_hook(lambda m, i, out: out * 3),
    "a hook before": lambda m: m.layer.register_forward_pre_hook(lambda m, i: (i[0] * 3,)),
    "a buffer": lambda m: m.shift.add_(1),
    "the shape of a buffer": lambda m: setattr(m, "shift", torch.full((1,), 2.0)),
    "a buffer more": lambda m: m.layer.register_buffer("more", torch.ones(3)),
    "a tensor": lambda m: setattr(m, "mask", torch.tensor([1.0, 0.0, 2.0])),
    "a tensor in place": lambda m: m.mask.mul_(torch.tensor([1.0, 0.0, 2.0])),
    "the mode": lambda m: m.eval(),
    "what is frozen": lambda m: m.layer.bias.requires_grad_(False),
    "the dtype": lambda m: m.to(torch.float64),
    "nothing": lambda m: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_second_call_sees_what_changed(change):
    torch.manual_seed(0)
    model = Masked() if "a tensor" in change else Tempered()
    loss_fn = lambda m, b: output_losses(m, (b[0].to(m.layer.weight.dtype),))  # noqa: E731
    x = torch.randn(4, 4)
    clipper = Clipper(model, loss_fn, max_grad_norm=0.7)
    clipper((x,))
    CHANGES[change](model)
    norms, grads = definition(model, loss_fn, (x,), 0.7, torch.ones(4))
    clipped = clipper((x,))
    assert "a tensor" in change or clipper.method == "graph"
    torch.testing.assert_close(clipped.norms, norms, rtol=1e-5, atol=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(clipped.grads[name], grad, rtol=1e-4, atol=1e-5)


def test_methods_attributes_of_classes_and_hooks_of_all_modules_are_seen(monkeypatch):
    model, x = Tempered(), torch.randn(4, 4)
    clipper = Clipper(model, output_losses, max_grad_norm=0.7)
    seen = [clipper((x,)).norms]
    monkeypatch.setattr(Tempered, "factor", 2.0)
    seen.append(clipper((x,)).norms)
    hook = nn.modules.module.register_module_forward_hook(lambda m, i, out: out * 2 if isinstance(m, nn.Tanh) else None)
    try:
        seen.append(clipper((x,)).norms)
    finally:
        hook.remove()
    torch.testing.assert_close(clipper((x,)).norms, seen[1])
    monkeypatch.setattr(Tempered, "forward", lambda self, x: self.layer(x))
    seen.append(clipper((x,)).norms)
    torch.testing.assert_close(seen[3], definition(model, output_losses, (x,), 0.7, torch.ones(4))[0])
    assert all(not torch.allclose(a, b, rtol=1e-3) for i, a in enumerate(seen) for b in seen[:i])
