"""Groups of parameters that are clipped apart, against the definition and against the bound on one record."""

import math

import pytest
import torch
import torch.nn.functional as F
from dpcheck.engine import PerGroup, PerLayer, clipped_grads, clipping, kinds
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.plan import run_plan
from hypothesis import assume, given
from hypothesis import strategies as st
from test_sites import examples
from torch import nn

from dpcheck import inputs, testing
from dpcheck.errors import DpcheckError
from dpcheck.testing import output_losses

C = 0.7
METHODS = ["graph", "vmap", "single"]
SHARES = {"0": 2.0, "": 1.0, "6": 2.0}


def definition(model, batch, weights, group_of, bound_of):
    """Norms by group and the sum of clipped gradients, by plain backward calls on one sample at a time."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total, norms = {n: torch.zeros_like(p) for n, p in parameters.items()}, []
    for i, weight in enumerate(weights.tolist()):
        loss = output_losses(model, inputs.take(batch, [i]))[0]
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        grads = {n: g for n, g in zip(parameters, found, strict=True) if g is not None}
        squares = {group_of(n): 0.0 for n in parameters}
        for n, g in grads.items():
            squares[group_of(n)] += float(g.abs().double().square().sum())
        own = {group: math.sqrt(square) for group, square in squares.items()}
        for n, g in grads.items():
            group = group_of(n)
            total[n] += weight * min(1.0, bound_of(group) / max(own[group], 1e-300)) * g
        norms.append(own)
    return norms, total


def layer_of(name):
    return name.rpartition(".")[0]


KINDS = {
    "per-layer": ("per-layer", layer_of, lambda group: C / 2),
    "per-group": (PerGroup(SHARES), lambda n: n[0] if n[0] in SHARES else "", lambda group: C * SHARES[group] / 3),
}


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(),
        nn.Linear(5, 3),
    ).to(dtype)  # fmt: skip


def assert_is_definition(clipped, expected, tolerance):
    norms, grads = expected
    for name, grad in grads.items():
        torch.testing.assert_close(clipped.grads[name], grad, rtol=tolerance, atol=tolerance)
    whole = torch.tensor([math.hypot(*own.values()) for own in norms], dtype=torch.float64)
    torch.testing.assert_close(clipped.norms.double(), whole, rtol=tolerance, atol=1e-12)
    assert list(clipped.group_norms) == list(norms[0])
    for name, own in clipped.group_norms.items():
        torch.testing.assert_close(own.tolist(), [n[name] for n in norms], rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_norms_are_the_definition(kind, size, method, dtype, tolerance):
    given_kind, group_of, bound_of = KINDS[kind]
    model, scale = network(dtype), torch.logspace(-1, 1, size, dtype=dtype)
    x = torch.randn(size, 2, 4, dtype=dtype) * scale[:, None, None]
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0], dtype=dtype)[:size]
    clipper = Clipper(model, output_losses, max_grad_norm=C, method=method, clipping=given_kind)
    assert_is_definition(clipper((x,), weights), definition(model, (x,), weights, group_of, bound_of), tolerance)
    assert clipper.method == method


class Fused(nn.Module):
    """Two parameters of different groups are parts of one product, a third has a weight norm, a table is tied."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        self.table = nn.Embedding(6, 3)
        self.head = nn.Linear(3, 6, bias=False)
        self.head.weight = self.table.weight
        self.idle = nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, ids):
        both = torch.cat([self.left.weight, self.right.weight])
        rows = self.frozen * self.table(ids)
        return self.head(self.scaled(torch.tanh(F.linear(rows, both)))).flatten(1)


@pytest.mark.parametrize("method", METHODS)
def test_groups_that_share_a_product_and_ties_and_several_uses_and_parameters_without_gradient(method):
    torch.manual_seed(0)
    model, ids = Fused().double(), torch.randint(0, 6, (4, 3))
    shares = {"left": 1.0, "right": 2.0, "table": 2.0, "scaled": 4.0, "": 3.0}
    root = math.hypot(*shares.values())
    expected = definition(
        model, (ids,), torch.ones(4), lambda n: n.split(".")[0].replace("idle", ""), lambda g: C * shares[g] / root
    )
    clipper = Clipper(model, output_losses, max_grad_norm=C, method=method, clipping=PerGroup(shares))
    clipped = clipper((ids,))
    assert_is_definition(clipped, expected, 1e-9)
    assert list(clipped.group_norms) == ["left", "right", "scaled", "table", ""]
    assert not clipped.group_norms[""].any()
    # The idle layer has its share all the same: which parameters get a gradient must not matter.
    assert clipper.grouping().shares == tuple(shares[name] / root for name in clipped.group_norms)


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, dtype=torch.complex128))
        self.mix = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))

    def forward(self, x):
        return ((torch.fft.rfft(x) * self.filter) @ self.mix).abs()


@pytest.mark.parametrize("method", METHODS)
def test_complex_parameters_in_groups_of_their_own(method):
    model, x = Spectral(), torch.randn(4, 6, dtype=torch.float64)
    expected = definition(model, (x,), torch.ones(4), lambda n: n, lambda g: {"filter": 0.3, "mix": 0.4}[g])
    kind = PerGroup({"mix": 0.4, "filter": 0.3})
    clipper = Clipper(model, output_losses, max_grad_norm=0.5, method=method, clipping=kind)
    assert_is_definition(clipper((x,)), expected, 1e-9)


def moved(kind, method, model, x, record):
    """How far one record more moves the sum."""
    clipper = Clipper(model, output_losses, max_grad_norm=C, method=method, clipping=kind)
    with_it, without = clipper((torch.cat([x, record]),)).grads, clipper((x,)).grads
    return math.sqrt(sum(float((with_it[n] - without[n]).square().sum()) for n in with_it))


@pytest.mark.parametrize("kind", KINDS)
@examples(5)
@given(scale=st.floats(-6, 6), seed=st.integers(0, 9))
def test_one_record_moves_the_whole_sum_by_at_most_c(kind, scale, seed):
    x = torch.randn(4, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert moved(KINDS[kind][0], "auto", network(), x[:3], x[3:] * 10**scale) <= C * (1 + 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_get_the_whole_norm_each_are_caught(method, monkeypatch):
    """The planted fault: k layers with C each have sensitivity C sqrt(k)."""
    original = kinds.grouping_of

    def greedy(kind, names):
        found = original(kind, names)
        return kinds.Grouping(found.names, found.of, tuple(1.0 for _ in found.shares))

    monkeypatch.setattr(clipping, "grouping_of", greedy)
    x = torch.randn(4, 2, 4, dtype=torch.float64)
    assert moved("per-layer", method, network(), x[:3], x[3:] * 1e3) > C * 1.5


def test_parts_keep_the_norms_of_groups(monkeypatch):
    def limited(plan, model, batch, weights, bound):
        if len(weights) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return run_plan(plan, model, batch, weights, bound)

    x = torch.randn(5, 2, 4, dtype=torch.float64)
    whole = Clipper(network(), output_losses, max_grad_norm=C, clipping="per-layer")((x,))
    monkeypatch.setattr(clipping, "run_plan", limited)
    parts = Clipper(network(), output_losses, max_grad_norm=C, clipping="per-layer")((x,))
    torch.testing.assert_close(parts.group_norms, whole.group_norms)
    torch.testing.assert_close(parts.grads, whole.grads)


def test_frozen_parameters_are_in_no_group_and_an_empty_batch_has_all_groups():
    model = network()
    model[0].requires_grad_(False)
    clipper = Clipper(model, output_losses, max_grad_norm=C, clipping=PerLayer())
    clipped = clipper((torch.randn(0, 2, 4),))
    assert {name: len(norms) for name, norms in clipped.group_norms.items()} == {"1": 0, "4": 0, "6": 0}
    assert clipper.grouping().shares == (1 / math.sqrt(3),) * 3


@pytest.mark.parametrize(
    ("make_kind", "says"),
    [
        (lambda: "ghost", "clipping='ghost' is not known"),
        (lambda: None, "clipping=None is not known"),
        (lambda: PerGroup({}), "names no group"),
        (lambda: PerGroup({"0": 0.0}), r"groups\['0'\]=0.0"),
        (lambda: PerGroup({"0": math.nan}), r"groups\['0'\]=nan"),
        (lambda: PerGroup({"0": 1.0}), "'1.weight' belongs to no group"),
        (lambda: PerGroup({"": 1.0, "conv": 1.0}), "group 'conv' has no trainable parameter"),
    ],
)
def test_a_kind_that_makes_no_sense_is_refused(make_kind, says):
    with pytest.raises(DpcheckError, match=says) as raised:
        clipped_grads(network(), output_losses, (torch.randn(3, 2, 4, dtype=torch.float64),), clipping=make_kind())
    assert raised.value.where == "clipping"


def test_of_several_prefixes_the_longest_counts_and_a_prefix_is_a_whole_name():
    grouping = kinds.grouping_of(PerGroup({"": 1.0, "a": 1.0, "a.b": 1.0}), ["ab.w", "a.w", "a.b.w", "a.b"])
    assert {name: grouping.names[g] for name, g in grouping.of.items()} == {
        "ab.w": "", "a.w": "a", "a.b.w": "a.b", "a.b": "a.b",
    }  # fmt: skip


@examples(8)
@given(case=testing.modules())
def test_any_layer_by_layers(case):
    model, batch = case.build()
    if "spectral" in case.model:
        model.eval()  # in training the forward moves its estimate of the spectral norm
    assume("sparse" not in case.model and "dropout=0.3" not in case.model)
    layers = {layer_of(n) for n, p in model.named_parameters() if p.requires_grad}
    weights = torch.ones(len(batch[0]), dtype=torch.float64)
    _, grads = definition(model, batch, weights, layer_of, lambda group: C / math.sqrt(len(layers)))
    clipped = Clipper(model, output_losses, max_grad_norm=C, clipping="per-layer")(batch, weights)
    for name, grad in grads.items():
        torch.testing.assert_close(clipped.grads[name], grad, rtol=1e-9, atol=1e-9)
