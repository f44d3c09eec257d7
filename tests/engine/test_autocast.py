"""Under autocast a gradient is that of the same sample alone; norms and sums have all digits of float32."""

import pytest
import torch
import torch.nn.functional as F
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.precision import casting
from dpcheck.engine.sites.base import every_site
from torch import nn

from dpcheck import inputs
from dpcheck.capture import run_losses
from dpcheck.testing import output_losses

# Rounding errors of a few operations in a row, relative to the whole gradient.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.all, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.all(self.norm(x)).view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Adapter(nn.Module):
    """A product of two parameters, made in half precision."""

    def __init__(self):
        super().__init__()
        self.base = nn.Parameter(torch.randn(16, 16) / 4, requires_grad=False)
        self.a, self.b = nn.Parameter(torch.randn(16, 3) / 4), nn.Parameter(torch.randn(3, 16) / 4)

    def forward(self, x):
        return x @ (self.base + self.a @ self.b)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(11, 16), nn.Linear(16, 16)

    def forward(self, ids):
        return F.linear(self.layer(self.table(ids)), self.table.weight)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def rows():
    return torch.randn(6, 7, 16)


def words():
    return torch.randint(0, 11, (6, 7))


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 5)), lambda: torch.randn(6, 16)),
    "positions": (
        lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 5)),
        lambda: torch.randn(6, 40, 16),
    ),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3), nn.Flatten()),
        lambda: torch.randn(6, 3, 8, 8),
    ),
    "embedding": (lambda: nn.Sequential(nn.Embedding(11, 16), nn.LayerNorm(16), nn.Linear(16, 4)), words),
    "attention": (Attention, rows),
    "adapter": (Adapter, rows),
    "tied": (Tied, words),
    "twice": (Twice, rows),
}


def losses(model, batch):
    return output_losses(model, batch).float()


def cast_inside(dtype):
    def loss_fn(model, batch):
        with torch.autocast("cpu", dtype):
            return output_losses(model, batch).float()

    return loss_fn


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def alone(model, loss_fn, batch):
    """Every sample's gradient as one vector in float64, [B, P]."""
    each = []
    for i in range(len(batch[0])):
        grads = torch.autograd.grad(loss_fn(model, inputs.take(batch, [i])).sum(), trainable(model))
        each.append(torch.cat([g.double().flatten() for g in grads]))
    return torch.stack(each)


def made(name):
    torch.manual_seed(0)
    make, batch = MODELS[name]
    return make(), (batch(),)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("keep", [True, False])
def test_the_graph_under_autocast(name, dtype, keep):
    model, batch = made(name)
    loss_fn = cast_inside(dtype)
    each = alone(model, loss_fn, batch)
    norms, bound = each.norm(dim=1), float(each.norm(dim=1).median())
    with every_site(keep):
        clipper = Clipper(model, loss_fn, max_grad_norm=bound)
        clipped = clipper(batch)
    assert clipper.method == "graph"
    expected = (each * (bound / norms).clamp(max=1)[:, None]).sum(0)
    total = torch.cat([g.double().flatten() for g in clipped.grads.values()])
    assert (total - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    torch.testing.assert_close(clipped.norms.double(), norms, rtol=TOLERANCE[dtype], atol=0)
    # float32, and not half precision in the dtype of float32.
    assert clipped.norms.dtype == torch.float32
    for grad in clipped.grads.values():
        assert grad.dtype == torch.float32
        assert not torch.equal(grad, grad.to(dtype).float())


@pytest.mark.parametrize("method", ["graph", "vmap", "single"])
@pytest.mark.parametrize("name", ["positions", "convolution", "embedding", "adapter"])
def test_autocast_around_the_step_is_that_of_the_model_only(name, method):
    model, batch = made(name)
    inside = Clipper(model, cast_inside(torch.bfloat16), max_grad_norm=0.1, method=method)(batch)
    with torch.autocast("cpu", torch.bfloat16):
        around = Clipper(model, losses, max_grad_norm=0.1, method=method)(batch)
    torch.testing.assert_close(around.norms, inside.norms, rtol=1e-3, atol=0)
    for n, grad in around.grads.items():
        torch.testing.assert_close(grad, inside.grads[n], rtol=1e-2, atol=1e-3)
        assert not torch.equal(grad, grad.bfloat16().float())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", ["graph", "vmap", "single"])
def test_the_clipped_sum_of_copies_is_no_longer_than_their_bounds(dtype, method):
    """A sum that is rounded to 8 or 11 bits is off by more than the bound of one sample."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 3)), torch.randn(1, 40)
    for count in (1, 300):
        batch = (x.expand(count, 40),)
        with torch.autocast("cpu", dtype):
            clipped = Clipper(model, losses, max_grad_norm=1e-3, method=method)(batch)
        norm = torch.cat([g.double().flatten() for g in clipped.grads.values()]).norm()
        assert count * 1e-3 * (1 - 1e-4) <= norm <= count * 1e-3 * (1 + 1e-6)


def test_another_dtype_of_autocast_is_another_plan():
    model, batch = made("linear")
    clipper = Clipper(model, losses, max_grad_norm=1e6)
    found = {}
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found[dtype] = clipper(batch).norms
            torch.testing.assert_close(clipper(batch).losses, run_losses(model, losses, batch))
    assert not torch.equal(*found.values())


@pytest.mark.parametrize("method", ["vmap", "single"])
def test_a_fallback_leaves_no_copy_of_a_sample_in_the_cache_of_autocast(method):
    model, batch = made("linear")
    cached = []

    def loss_fn(m, b):
        cached.append(torch.is_autocast_cache_enabled())
        return losses(m, b)

    with torch.autocast("cpu", torch.bfloat16):
        before = casting()
        Clipper(model, loss_fn, max_grad_norm=1.0, method=method)(batch)
        assert casting() == before
        assert torch.is_autocast_cache_enabled()
    assert not any(cached)
