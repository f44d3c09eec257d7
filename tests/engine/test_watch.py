"""What must not change while an engine trains, and what it refuses from the start."""

from types import SimpleNamespace

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.trainer import PrivacyEngine
from torch import nn
from white_box import Linear, Loop, loss_fn, make, records, released

from dpcheck.errors import DpcheckError


def change_frozen(e):
    e.model.a.requires_grad_(False)


def change_replaced(e):
    e.model.b = nn.Parameter(torch.zeros(2))


def change_added(e):
    e.model.c = nn.Parameter(torch.zeros(2))


def change_mode(e):
    e.model.eval()


def change_group(e):
    e.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def change_stale(e):
    (e.model.a.sum() * 3).backward()


def change_dtype(e):
    e.model.to(torch.bfloat16)


def change_data(e):
    e.model.b.data = torch.zeros(1)


def change_submodule(e):
    e.model.extra = nn.Identity()


def change_hook(e):
    e.model.register_forward_hook(lambda m, i, out: out * 2)


def change_hook_of_all(e):
    e.hooks = nn.modules.module.register_module_forward_hook(lambda m, i, out: out * 2)


def change_forward(e):
    e.model.forward = lambda x: x @ torch.cat([e.model.a, e.model.b]) * 2


def change_class(e):
    e.model.__class__ = type("Other", (Linear,), {"forward": lambda self, x: Linear.forward(self, x) * 2})


def change_buffer(e):
    e.model.register_buffer("late", torch.ones(3))


def change_gradient_hook(e):
    e.model.a.register_hook(lambda grad: grad * 2)


def change_hook_after_gradient(e):
    e.model.a.register_post_accumulate_grad_hook(lambda p: None)


@pytest.mark.parametrize(
    ("change", "says", "where"),
    [
        (change_frozen, "was frozen", "a"),
        (change_replaced, "was replaced", "b"),
        (change_added, "is new", "c"),
        (change_mode, "now in eval mode", "model"),
        (change_group, "not the model's", "optimizer.param_groups[1]['params'][0]"),
        (change_stale, "not the engine's", "a"),
        (change_dtype, r"was torch.float32 \[3\] and is torch.bfloat16 \[3\] now", "a"),
        (change_data, r"was torch.float32 \[2\] and is torch.float32 \[1\] now", "b"),
        (change_submodule, r"submodules \(extra\) of the module 'model' changed", "model"),
        (change_hook, "_forward_hooks of the module 'model' changed", "model"),
        (change_hook_of_all, "hooks of all modules", "model"),
        (change_forward, "the forward of the module 'model' changed", "model"),
        (change_class, "the class of the module 'model' changed", "model"),
        (change_buffer, r"buffers \(late\) of the module 'model' changed", "model"),
        (change_gradient_hook, "'a' has a gradient hook", "a"),
        (change_hook_after_gradient, "'a' has a gradient hook", "a"),
    ],
)
@pytest.mark.parametrize("after", [0, 1])
def test_a_change_after_the_start_is_refused_by_name(change, says, where, after):
    engine = make(records())
    for _ in range(after):
        released(engine)
    batch = next(iter(engine))
    change(engine)
    try:
        with pytest.raises(DpcheckError, match=says) as raised:
            engine.step(batch)
    finally:
        if hasattr(engine, "hooks"):
            engine.hooks.remove()
    assert raised.value.where == where
    assert raised.value.next
    assert engine.steps_taken == after


def test_an_attribute_may_change_and_is_logged_once(caplog):
    engine = make(records())
    engine.model.rate = 0.1
    values = iter([0.2, 0.3, 0.4, 0.5])
    for batch in engine:
        engine.model.rate = next(values)
        engine.step(batch)
    assert caplog.text.count("rate of the model changed") == 1
    assert engine.steps_taken == 4


def test_new_values_of_weights_and_buffers_are_no_change(caplog):
    model = Linear()
    model.register_buffer("scale", torch.ones(2))
    engine = make(records(), model=model)
    released(engine)
    model.load_state_dict({name: t + 1 for name, t in model.state_dict().items()})
    model.scale = torch.full((2,), 3.0)
    released(engine)
    assert "changed" not in caplog.text


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_and_reading_p_grad_between_steps_are_fine(to_none):
    engine = make(records())
    for batch in engine:
        engine.step(batch)
        assert engine.model.a.grad.norm() > 0
        if batch.step != 1:
            engine.optimizer.zero_grad(set_to_none=to_none)
    assert engine.steps_taken == 4


def test_a_data_set_that_grows_is_refused():
    data = [torch.zeros(5)] * 4
    model = Linear()
    engine = PrivacyEngine(
        model, loss_fn, torch.optim.SGD(model.parameters(), 1.0), data, expected_batch_size=2, max_grad_norm=1,
        delta=0.1, noise_multiplier=1, steps=2, check=False, _clipper=Loop,
    )  # fmt: skip
    data.append(torch.zeros(5))
    with pytest.raises(DpcheckError, match="5 records now, and 4 at first"):
        next(iter(engine))


def test_optimizers_that_cannot_be_private_are_refused():
    model = Linear()
    a, b = model.a, model.b
    stray = nn.Parameter(torch.zeros(7))
    for optimizer, says in [
        (torch.optim.SGD([a], lr=1.0), "lacks trainable parameters: 'b'"),
        (torch.optim.SGD([a, b, stray], lr=1.0), r"shape \[7\] that is not the model's"),
        (torch.optim.SparseAdam([a, b]), "SparseAdam leaves rows without noise"),
        (torch.optim.LBFGS([a, b]), "LBFGS evaluates the loss"),
        (SimpleNamespace(param_groups=[]), "not a torch.optim.Optimizer"),
    ]:
        with pytest.raises(DpcheckError, match=says):
            make(records(), model=model, optimizer=optimizer)


def test_models_without_trainable_or_with_half_precision_parameters_are_refused():
    with pytest.raises(DpcheckError, match="no trainable parameter"):
        make(records(), model=Linear().requires_grad_(False))
    with pytest.raises(DpcheckError, match=r"'a' is torch\.bfloat16"):
        make(records(), model=Linear().to(torch.bfloat16))


class Growing(Linear):
    """Its forward makes a table anew when a longer one is needed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(1))

    def forward(self, x):
        if len(self.table) < x.shape[1]:
            self.table = torch.ones(x.shape[1])
        return super().forward(x * self.table)


def test_a_buffer_may_grow():
    engine = make(records(), model=Growing(), _clipper=Clipper)
    released(engine, 3)
    assert len(engine.model.table) == 5
