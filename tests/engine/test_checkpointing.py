"""Activation checkpointing: the same gradients as without it, by every method, and draws that are not made twice."""

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from test_clipping import close, definition
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import dpcheck
from dpcheck.capture import Capture, capture


class Block(nn.Module):
    def __init__(self, width, drop):
        super().__init__()
        self.norm, self.layer, self.drop = nn.LayerNorm(width), nn.Linear(width, width), nn.Dropout(drop)

    def forward(self, x):
        return x + self.drop(torch.tanh(self.layer(self.norm(x))))


class Net(nn.Module):
    def __init__(self, reentrant, drop=0.0, preserve=True):
        super().__init__()
        self.blocks = nn.ModuleList(Block(6, drop) for _ in range(2))
        self.options = {} if reentrant is None else {"use_reentrant": reentrant, "preserve_rng_state": preserve}

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, **self.options) if self.options else block(x)
        return x


def loss_fn(model, batch):
    return model(batch[0]).flatten(1).square().sum(1)


def made(reentrant, **options):
    torch.manual_seed(0)
    return Net(reentrant, **options).double(), (torch.randn(5, 3, 6, dtype=torch.float64),)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["graph", "single", "auto"])
def test_gradients_are_those_without_checkpoints(reentrant, method):
    model, batch = made(reentrant)
    clipped = Clipper(model, loss_fn, max_grad_norm=0.5, method=method)(batch)
    close(clipped, definition(made(None)[0], loss_fn, batch, 0.5, torch.ones(5)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_check_and_proof(reentrant):
    model, batch = made(reentrant, drop=0.3)
    report = dpcheck.check(model, loss_fn, batch)
    assert (report.ok, report.verdict, report.method) == (True, "independent", "graph")
    assert dpcheck.verify(model, loss_fn, batch).ok


def test_segments_and_checkpoints_within_checkpoints():
    layers = [nn.Linear(6, 6).double() for _ in range(4)]
    plain = nn.Sequential(*layers)

    class Nested(nn.Sequential):
        def forward(self, x):
            def inner(h):
                return checkpoint_sequential(list(self), 2, h, use_reentrant=True)

            return checkpoint(inner, x, use_reentrant=True)

    batch = (torch.randn(5, 6, dtype=torch.float64),)
    for method in ("graph", "single"):
        clipped = Clipper(Nested(*layers), loss_fn, max_grad_norm=0.5, method=method)(batch)
        close(clipped, definition(plain, loss_fn, batch, 0.5, torch.ones(5)))


class Dropping(nn.Module):
    """Its loss is the inner product of the bias's gradient and what the layer gives, if both drop the same."""

    def __init__(self, drop, reentrant):
        super().__init__()
        self.layer, self.drop, self.reentrant = nn.Linear(8, 8), drop, reentrant

    def forward(self, x):
        return checkpoint(lambda h: self.drop(self.layer(h)), x, use_reentrant=self.reentrant)


DRAWS = {
    "dropout": lambda h: torch.dropout(h, 0.5, True),
    "in place": lambda h: h * torch.empty_like(h).bernoulli_(0.5),
    "a mask": lambda h: h * (torch.rand_like(h) > 0.5),
    "two": lambda h: torch.dropout(torch.dropout(h, 0.5, True), 0.2, True),
    "noise": lambda h: h * torch.randn(h.shape),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_runs_again_drops_what_was_dropped_at_first(draw, reentrant):
    model, x = Dropping(DRAWS[draw], reentrant), torch.randn(2, 8)
    clipper = Clipper(model, lambda m, b: m(b).sum(1), max_grad_norm=1e9)
    seen = set()
    for _ in range(5):
        clipped = clipper(x, torch.tensor([1.0, 0.0]))
        product = (clipped.grads["layer.bias"] * model.layer(x[0]).detach()).sum()
        torch.testing.assert_close(product, clipped.losses[0])
        seen.add(float(product))
    assert clipper.method == "graph"
    assert len(seen) > 1


def draws(model, batch):
    found = capture(model, loss_fn, batch)
    assert isinstance(found, Capture)
    return sum(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in found.graph.graph.nodes)


def test_only_draws_that_are_to_be_repeated_are_one():
    for reentrant in (False, True):
        assert draws(*made(reentrant, drop=0.3)) == 2
        # Whoever asks for other draws in the backward gets them, as from torch.
        assert draws(*made(reentrant, drop=0.3, preserve=False)) == 4


def test_the_generator_is_put_back():
    model, batch = made(False, drop=0.3)
    before = torch.get_rng_state()
    capture(model, loss_fn, batch)
    assert torch.equal(before, torch.get_rng_state())


def test_the_backward_runs_the_forward_again():
    model, batch = made(False)
    found = {}
    for name, net in (("plain", made(None)[0]), ("checkpointed", model)):
        plan = Clipper(net, loss_fn, max_grad_norm=1.0).plan(batch)
        found[name] = sum("tanh.default" in str(node.target) for node in plan.module.graph.nodes)
    assert found == {"plain": 2, "checkpointed": 4}
