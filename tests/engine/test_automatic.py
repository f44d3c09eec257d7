"""Automatic clipping scales small gradients up: exact, and inside the bound however small or cancelled they are."""

import math

import pytest
import torch
from dpcheck.engine import Automatic, clipped_grads, kinds
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.sites.embedding import LookupSite
from hypothesis import assume, given
from test_kinds import Fused, Spectral, moved, network
from test_sites import examples
from torch import nn
from white_box import make, records, released

from dpcheck import inputs, testing
from dpcheck.errors import DpcheckError
from dpcheck.testing import output_losses

C = 0.7
METHODS = ["graph", "vmap", "single"]
KINDS = {"automatic": 0.01, "normalised": 0.0}


def definition(model, loss_fn, batch, weights, gamma):
    """``sum_i w_i C / (|g_i| + gamma) g_i`` by plain backward calls; zero gradients stay zero."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total, norms = {n: torch.zeros_like(p) for n, p in parameters.items()}, []
    for i, weight in enumerate(weights.tolist()):
        loss = loss_fn(model, inputs.take(batch, [i])).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        norms.append(math.sqrt(sum(float(g.abs().double().square().sum()) for g in grads)))
        factor = C / (norms[-1] + gamma) if norms[-1] + gamma > 0 else 0.0
        for name, grad in zip(parameters, grads, strict=True):
            total[name] += weight * factor * grad
    return norms, total


def assert_is_definition(clipper, batch, weights, gamma, tolerance, loss_fn=output_losses):
    norms, grads = definition(clipper.model, loss_fn, batch, weights, gamma)
    clipped = clipper(batch, weights)
    torch.testing.assert_close(clipped.norms.tolist(), norms, rtol=tolerance, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(clipped.grads[name], grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_norms_are_the_definition(kind, size, method, dtype, tolerance):
    x = torch.randn(size, 2, 4, dtype=dtype) * torch.logspace(-1, 1, size, dtype=dtype)[:, None, None]
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0], dtype=dtype)[:size]
    clipper = Clipper(network(dtype), output_losses, max_grad_norm=C, method=method, clipping=kind)
    assert_is_definition(clipper, (x,), weights, KINDS[kind], tolerance)
    assert clipper.method == method


@pytest.mark.parametrize("model", [Fused().double(), Spectral()], ids=["fused", "complex"])
def test_ties_shared_products_parametrizations_and_complex_parameters(model):
    torch.manual_seed(0)
    x = (torch.randint(0, 6, (4, 3)),) if isinstance(model, Fused) else (torch.randn(4, 6, dtype=torch.float64),)
    clipper = Clipper(model, output_losses, max_grad_norm=C, clipping="normalised")
    assert_is_definition(clipper, x, torch.ones(4), 0.0, 1e-9)
    assert clipper.method == "graph"


@examples(8)
@given(case=testing.modules())
def test_any_layer(case):
    model, batch = case.build()
    if "spectral" in case.model:
        model.eval()  # in training the forward moves its estimate of the spectral norm
    assume("sparse" not in case.model and "dropout=0.3" not in case.model)
    clipper = Clipper(model, output_losses, max_grad_norm=C, clipping=Automatic(0.5))
    assert_is_definition(clipper, batch, torch.ones(inputs.batch_size(batch)), 0.5, 1e-8)


class Tables(nn.Module):
    """Lookups by ids, by position, and of a bag."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.bag = nn.Embedding(50, 3), nn.Embedding(4, 3), nn.EmbeddingBag(50, 3)
        self.largest = nn.EmbeddingBag(50, 3, mode="max")

    def forward(self, ids):
        lookups = self.words(ids) * self.places(torch.arange(4))
        return lookups.square().sum(1) + self.bag(ids) * self.largest(ids)


def test_of_a_table_only_the_rows_of_the_sample_are_kept():
    model, ids = Tables().double(), torch.randint(0, 50, (6, 4))
    clipper = Clipper(model, output_losses, max_grad_norm=C, clipping="normalised")
    assert_is_definition(clipper, (ids,), torch.ones(6), 0.0, 1e-10)
    calls = [node.target for node in clipper.plan((ids,)).module.graph.nodes if node.op == "call_function"]
    lookups = [call.__name__ for call in calls if isinstance(getattr(call, "__self__", None), LookupSite)]
    assert sorted(lookups) == sorted(["kept", "kept_square_norms", "kept_weighted"] * 3)


class Cancelling(nn.Module):
    """Large terms whose sum is small: in a product over positions, in a row of a table, in what follows a sum."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(40, 40, bias=False), nn.Embedding(3, 40)
        self.centred = nn.Parameter(torch.randn(3, 40))

    def forward(self, batch):
        x, g, ids = batch
        found = (self.layer(x) * g).flatten(1).sum(1) + (self.table(ids) * g).flatten(1).sum(1)
        return found + (x[:, 0] * (self.centred - self.centred.mean(0)).sum(0)).sum(1)


def cancelling():
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, 4, 1, 40, generator=generator) * 30
    x = torch.cat([x, x * (1 + 1e-5)], 1)
    return x, torch.cat([g, -g], 1), torch.tensor([[0, 0], [1, 1], [2, 2], [0, 1]])


@pytest.mark.parametrize("only", [None, "layer", "table", "centred"])
@pytest.mark.parametrize("kind", ["automatic", "normalised", Automatic(1e-9)])
def test_a_gradient_that_cancels_is_not_scaled_beyond_c(kind, only):
    model, batch = Cancelling(), cancelling()
    for name, p in model.named_parameters():
        p.requires_grad_(only is None or name.startswith(only))
    clipper = Clipper(model, lambda m, b: m(b), max_grad_norm=C, clipping=kind)
    for i in range(4):
        weights = torch.zeros(4)
        weights[i] = 1.0
        found = clipper(batch, weights).grads.values()
        assert math.sqrt(sum(float(g.double().square().sum()) for g in found)) <= C * (1 + 1e-5)
    assert clipper.method == "graph"


def test_norms_from_grams_would_be_caught(monkeypatch):
    """The planted fault: ghost norms under a factor that grows without limit."""
    monkeypatch.setattr(kinds.Grouping, "amplifies", False)
    with pytest.raises(AssertionError):
        test_a_gradient_that_cancels_is_not_scaled_beyond_c("normalised", "layer")
    with pytest.raises(AssertionError):
        test_a_gradient_that_cancels_is_not_scaled_beyond_c("normalised", "centred")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e-10, 1e10])
def test_tiny_and_large_gradients_stay_in_the_ball(kind, method, scale):
    model, x = nn.Linear(3, 2, bias=False), torch.ones(2, 3)
    clipper = Clipper(model, lambda m, b: m(b[0]).sum(1) * scale, max_grad_norm=C, method=method, clipping=kind)
    norm = float(clipper((x,), torch.tensor([1.0, 0.0])).grads["weight"].norm())
    assert norm <= C
    assert (norm > 0.99 * C) == (scale >= (1e-10 if kind == "normalised" else 1e10))
    assert scale != 0 or norm == 0


@pytest.mark.parametrize("small", [1e-25, 1e-20, 1.0, 1e20])
def test_layers_that_see_one_vector_a_sample_are_not_instantiated_and_their_norms_do_not_vanish(small):
    """Squares of 1e-25 are zero in float32: the norm must not be."""
    model, x = nn.Linear(3, 2, bias=False), torch.randn(4, 3) * small
    clipper = Clipper(model, lambda m, b: m(b[0]).sum(1) / small, max_grad_norm=C, clipping="normalised")
    assert not clipper.plan((x,)).kept
    directions = x.double() / x.double().norm(dim=1, keepdim=True)
    expected = (directions.sum(0) * C / math.sqrt(2)).expand(2, 3)
    torch.testing.assert_close(clipper((x,)).grads["weight"].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e6])
def test_one_record_moves_the_sum_by_at_most_c(kind, scale):
    x = torch.randn(4, 2, 4, dtype=torch.float64)
    assert moved(kind, "auto", network(), x[:3], x[3:] * scale) <= C * (1 + 1e-9)


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf, True, "0.1"])
def test_a_gamma_that_makes_no_sense_is_refused(gamma):
    with pytest.raises(DpcheckError, match=f"gamma={gamma!r}") as raised:
        Automatic(gamma)
    assert raised.value.where == "clipping"


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("gamma", [0.5, 0.0])
def test_the_engine_releases_the_scaled_sum_and_says_so(gamma, secure):
    x = torch.cat([records(), torch.zeros(1, 5)])
    kwargs = {"noise_multiplier": 0, "max_grad_norm": 0.3, "secure": secure, "_clipper": Clipper}
    engine = make(x, clipping=Automatic(gamma), **kwargs)
    norms = x.norm(dim=1, keepdim=True)
    expected = (x * 0.3 / (norms + gamma).clamp_min(1e-12)).sum(0) / 14
    torch.testing.assert_close(released(engine)[0], expected, rtol=1e-5, atol=1e-6)
    assert f"is multiplied by 0.3 / (its L2 norm + {gamma:g}), so that its L2 norm is at most 0.3;" in engine.report()
    batch = next(iter(engine))
    assert engine.step(batch).clipped_fraction == pytest.approx((norms + gamma > 0.3).float().mean().item())


def test_clipped_grads_takes_a_kind():
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    grads, _ = clipped_grads(network(), output_losses, (x,), C, clipping="automatic")
    _, expected = definition(network(), output_losses, (x,), torch.ones(3), 0.01)
    torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-12)
