"""The chain: the graph, then vmap(grad), then one sample at a time; chosen and named by the engine."""

import random

import pytest
import torch
from dpcheck.engine import fallback
from dpcheck.engine.clipping import Clipper
from test_clipping import close, definition
from torch import nn

from dpcheck.errors import DpcheckError
from dpcheck.testing import output_losses


class Branching(nn.Linear):
    """Control flow on data: neither a graph nor vmap."""

    def forward(self, x):
        h = super().forward(x)
        return 2 * h if h[0].sum().item() > 0 else h


class Masked(nn.Module):
    """An op that is unproven: vmap runs it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, i):
        h = self.table(i)
        return h.masked_scatter(h.detach() > 0, torch.sin(h))


class Counting(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Squared(torch.autograd.Function):
    """An op written by a user, without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


class Custom(nn.Linear):
    def forward(self, x):
        return Squared.apply(super().forward(x))


def floats(size=5):
    torch.manual_seed(0)
    return torch.randn(size, 4, dtype=torch.float64)


CHAIN = [
    (nn.Linear, floats, "graph", ""),
    (Counting, floats, "vmap", "Python state"),
    (Branching, floats, "single", "depends on the data"),
    (Custom, floats, "single", ""),
]


@pytest.mark.parametrize(("kind", "make", "method", "reason"), CHAIN)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_model_gets_the_first_method_that_works(kind, make, method, reason, size):
    model, x = kind(4, 3).double(), make(size)
    clipper = Clipper(model, output_losses, max_grad_norm=0.5)
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])[:size]
    clipped = clipper((x,), weights)
    assert clipper.method == method
    assert reason in clipper.reason
    close(clipped, definition(model, output_losses, (x,), 0.5, weights))


def test_an_unproven_op_goes_to_vmap_where_samples_are_alone():
    model, x = Masked().double(), torch.tensor([[0, 0, 1], [2, 3, 2], [6, 6, 6]])
    clipper = Clipper(model, output_losses, max_grad_norm=0.5)
    clipped = clipper((x,))
    assert clipper.method == "vmap"
    assert "masked_scatter" in clipper.reason
    close(clipped, definition(model, output_losses, (x,), 0.5, torch.ones(3)))


def test_python_chance_is_not_frozen():
    class Chance(nn.Linear):
        def forward(self, x):
            return super().forward(x) * random.random()

    clipper = Clipper(Chance(4, 3), output_losses, max_grad_norm=1e6)
    x = floats().float()
    first, second = clipper((x,)).norms, clipper((x,)).norms
    assert clipper.method == "vmap"
    assert not torch.equal(first, second)


def test_torch_chance_is_drawn_for_every_sample_and_call():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    x = torch.ones(32, 4)
    for method in ("graph", "vmap", "single"):
        clipper = Clipper(model, output_losses, max_grad_norm=1e6, method=method)
        first, second = clipper((x,)).norms, clipper((x,)).norms
        assert len(set(first.tolist())) > 4
        assert not torch.equal(first, second)


def test_mixing_cannot_hide_in_a_fallback():
    """The fallbacks evaluate samples alone, so that batch statistics are those of one sample."""

    class Centred(nn.Linear):
        def forward(self, x):
            x = x.nan_to_num() if x.isnan().any() else x
            return super().forward(x - x.mean(0))

    model, x = Centred(4, 3).double(), floats()
    clipper = Clipper(model, output_losses, max_grad_norm=0.5)
    clipped = clipper((x,))
    assert clipper.method == "single"
    close(clipped, definition(model, output_losses, (x,), 0.5, torch.ones(5)))
    assert not clipped.grads["weight"].any()


@pytest.mark.parametrize("method", ["graph", "vmap"])
def test_a_method_that_was_asked_for_is_not_replaced(method):
    clipper = Clipper(Branching(4, 3).double(), output_losses, max_grad_norm=0.5, method=method)
    with pytest.raises(DpcheckError, match=f"method='{method}' cannot be used"):
        clipper((floats(),))


def test_both_references_agree_with_plain_backward():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double(), floats()
    for gradients in (fallback.vmap_gradients, fallback.single_gradients):
        losses, each = gradients(model, output_losses, (x,))
        torch.testing.assert_close(losses, output_losses(model, (x,)).detach())
        for i in range(5):
            expected = torch.autograd.grad(output_losses(model, (x[i : i + 1],)).sum(), list(model.parameters()))
            for grad, reference in zip(each.values(), expected, strict=True):
                torch.testing.assert_close(grad[i], reference)


def test_buffers_are_read_and_never_written():
    class Tracking(nn.BatchNorm1d):
        def forward(self, x):
            self.running_mean.add_(1)
            return x * self.weight

    model, x = Tracking(4).double(), floats()
    fallback.single_gradients(model, output_losses, (x,))
    assert not model.running_mean.any()


class Replaces(nn.Linear):
    """Keeps a mean of past activations in an attribute, which scales later ones."""

    mean = 0.0

    def forward(self, x):
        h = super().forward(x)
        out = h * (1 + self.mean)
        self.mean = self.mean + h.detach().mean()
        return out


class Writes(nn.Linear):
    """The same in a tensor that is no buffer."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.held = {"mean": torch.zeros((), dtype=torch.float64)}

    def forward(self, x):
        h = super().forward(x)
        out = h * (1 + self.held["mean"])
        self.held["mean"].add_(h.detach().mean())
        return out


@pytest.mark.parametrize("kind", [Replaces, Writes])
@pytest.mark.parametrize("method", ["vmap", "single"])
def test_nothing_on_the_modules_carries_one_sample_to_another(kind, method):
    model, x = kind(4, 3).double(), floats()
    clipper = Clipper(model, output_losses, max_grad_norm=0.5)
    clipper.method = method
    first, second = clipper((x,)), clipper((x,))
    torch.testing.assert_close(first.norms, second.norms, rtol=0, atol=0)
    apart = clipper((torch.cat([x[:1], 100 * x[1:]]),))
    torch.testing.assert_close(apart.norms[0], first.norms[0])
    assert not (model.mean if kind is Replaces else model.held["mean"])
