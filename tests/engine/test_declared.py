"""Ops of one's own: right declarations are taken, wrong ones and wrong samplers are refused with an example."""

import pytest
import torch
from dpcheck.engine import Clipper, Sampler, register_site
from dpcheck.engine.sites.base import MAKERS
from hypothesis import strategies as st
from torch import Tensor, nn

import dpcheck
from dpcheck import DpcheckError
from dpcheck.samplesets.op import RULES
from dpcheck.testing import arguments, assert_sampler_correct, output_losses


@torch.library.custom_op("example::scaled", mutates_args=())
def scaled(x: Tensor, w: Tensor, power: int) -> Tensor:
    return x**power * w


@torch.library.custom_op("example::scaled_backward", mutates_args=())
def scaled_backward(g: Tensor, x: Tensor, w: Tensor, power: int) -> tuple[Tensor, Tensor]:
    return g * w * power * x ** (power - 1), (g * x**power).sum(0)


scaled.register_fake(lambda x, w, power: torch.empty_like(x))
scaled_backward.register_fake(lambda g, x, w, power: (torch.empty_like(x), torch.empty_like(w)))


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.power = inputs[2]


scaled.register_autograd(lambda ctx, g: (*scaled_backward(g, *ctx.saved_tensors, ctx.power), None), setup_context=keep)

N_D, POWER = ("n", "d"), st.integers(1, 3)
FORWARD = {"rows": (0, None, None), "outputs": 0, "inputs": arguments(N_D, ("d",), POWER)}
BACKWARD = {"rows": (0, 0, None, None), "outputs": (0, "sum"), "inputs": arguments(N_D, N_D, ("d",), POWER)}


def each(g, x, w, power):
    return (g * x**power).sum(1)


OWN = Sampler(
    each,
    square_norms=lambda g, x, w, power: each(g, x, w, power).square().sum(1),
    weighted=lambda f, g, x, w, power: torch.einsum("b,brd,brd->d", f, g, x**power),
)


@pytest.fixture(autouse=True)
def forgotten():
    """Nothing that a test registers is left for another one."""
    before = [dict(table) for table in (RULES, MAKERS)]
    yield
    for table, entries in zip((RULES, MAKERS), before, strict=True):
        table.clear()
        table.update(entries)


class Scaled(nn.Module):
    """``last`` puts samples on the inner axis of the rows."""

    def __init__(self, last=False):
        super().__init__()
        self.linear, self.w, self.last = nn.Linear(3, 4), nn.Parameter(torch.randn(4)), last

    def forward(self, x):
        h = self.linear(x)
        h = h.transpose(0, 1) if self.last else h
        h = scaled(h.flatten(0, 1), self.w, 2).view(h.shape)
        return h.transpose(0, 1) if self.last else h


def test_without_a_declaration_nothing_is_proven():
    report = dpcheck.check(Scaled(), output_losses, torch.randn(4, 2, 3))
    assert report.verdict == "unproven"
    assert "register_site" in report.diagnostics[0].help


@pytest.mark.parametrize("samplers", [{}, {1: OWN}, {1: Sampler(each)}], ids=["default", "own", "per sample"])
def test_a_declared_op_is_proven_and_sampled(samplers):
    register_site(scaled, **FORWARD)
    register_site(torch.ops.example.scaled_backward, samplers=samplers, **BACKWARD)
    torch.manual_seed(0)
    for last in (False, True):
        for size in (1, 2, 4):
            model, batch = Scaled(last).double(), torch.randn(size, 2, 3, dtype=torch.float64)
            proof = assert_sampler_correct(model, batch, method="graph")
            assert {p.name: p.sites for p in proof.parameters}["w"] == ("registered",)
            assert dpcheck.check(model, output_losses, batch).ok


def test_an_argument_without_rows_may_not_depend_on_samples():
    register_site(scaled, **FORWARD)
    register_site(scaled_backward, **BACKWARD)

    def loss_fn(model, x):
        return scaled(model(x), x.mean(0), 2).sum(1)

    clipper = Clipper(nn.Linear(4, 4), loss_fn, max_grad_norm=1.0)
    with pytest.raises(DpcheckError, match="samples of the batch mix"):
        clipper(torch.randn(3, 4))
    report = dpcheck.check(nn.Linear(4, 4), lambda m, x: scaled(m(x), x[0], 2).sum(1), torch.randn(3, 4))
    assert report.verdict == "mixing"


def test_a_number_that_is_the_size_of_the_batch_is_found():
    register_site(scaled, **FORWARD)
    register_site(scaled_backward, **BACKWARD)
    w = torch.ones(4)
    report = dpcheck.check(nn.Linear(4, 4), lambda m, x: scaled(m(x), w, len(x)).sum(1), torch.randn(3, 4))
    assert "DP108" in {d.code for d in report.diagnostics}


@torch.library.custom_op("example::sort", mutates_args=())
def centred(x: Tensor) -> Tensor:
    """Has the name of an op of torch that has a rule."""
    return x - x.mean(0)


centred.register_fake(lambda x: torch.empty_like(x))
centred.register_autograd(lambda ctx, g: g)


def test_an_op_with_the_name_of_one_of_torchs_has_no_rule():
    clipper = Clipper(nn.Linear(3, 2), lambda m, x: torch.ops.example.sort(m(x)).sum(1), max_grad_norm=1.0)
    clipper(torch.randn(4, 3))
    assert clipper.method == "single"
    assert "example.sort.default has no transfer rule" in clipper.reason


def op(function, returns="Tensor"):
    """A custom op of a tensor [n, d], with a name of its own."""
    op.count += 1
    return torch.library.custom_op(
        f"example::op{op.count}", function, mutates_args=(), schema=f"(Tensor x) -> {returns}"
    )  # fmt: skip


op.count = 0
ROWS = {"rows": (0,), "outputs": 0, "inputs": arguments(N_D)}
SUM = {"rows": (0,), "outputs": "sum", "inputs": arguments(N_D)}
WRONG = {
    "mean of the batch taken off": (lambda x: x - x.mean(0), ROWS, "row j of output 0"),
    "a trace of the other rows": (lambda x: x + 1e-15 * x.sum(0), ROWS, "other rows of output 0 change"),
    "other rows that count for nothing": (lambda x: x + 0 * x.sum(0), ROWS, "other rows of output 0 change"),
    "divided by the number of rows": (lambda x: x / len(x), ROWS, "row j of output 0"),
    "rows in another order": (lambda x: x.flip(0).clone(), ROWS, "row j of output 0"),
    "rows on another axis": (lambda x: x.clone(), ROWS | {"outputs": 1}, "row j of output 0 (axis 1)"),
    "scaled by the largest number": (lambda x: x / x.abs().max(), ROWS, "row j of output 0"),
    "batch mean for sum": (lambda x: x.mean(0), SUM, "not the sum of what each row gives alone"),
    "sum of squares squared": (lambda x: x.sum(0).square(), SUM, "not the sum of what each row gives alone"),
    "a constant added once": (lambda x: x.sum(0) + 1, SUM, "not the sum of what each row gives alone"),
    "a result of no row": (lambda x: x[0].clone(), ROWS | {"outputs": None}, "output 0 depends on the rows"),
    "chance": (lambda x: x + torch.rand_like(x), ROWS, "two calls differ"),
    "another thing in float32": (
        lambda x: x - (x.mean(0) if x.dtype is torch.float32 else 0),
        ROWS,
        "in float32, row j of output 0",
    ),
    "the order in memory taken for that of the axes": (
        lambda x: x.as_strided(x.shape, (x.shape[1], 1)).clone(),
        ROWS,
        "stored in another order",
    ),
    "an error": (lambda x: x[:, 1].clone(), ROWS, "it raises IndexError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_is_refused_with_an_example(name):
    function, declaration, message = WRONG[name]
    with pytest.raises(DpcheckError) as caught:
        register_site(op(function), **declaration)
    assert message in caught.value.what
    # The example is a program.
    script = caught.value.where.partition(":\n")[2]
    if name != "an error":
        exec(script, {})


WRONG_SAMPLERS = {
    "mean of a sample's rows": (Sampler(lambda g, x, w, p: (g * x**p).mean(1)), "per_sample differs"),
    "power forgotten": (Sampler(lambda g, x, w, p: (g * x).sum(1)), "per_sample differs"),
    "first row alone": (Sampler(lambda g, x, w, p: (g * x**p)[:, 0]), "per_sample differs"),
    "samples in another order": (Sampler(lambda *args: each(*args).flip(0)), "per_sample differs"),
    "norm for its square": (Sampler(each, lambda *args: each(*args).norm(dim=1)), "square_norms differs"),
    "norms of rows": (Sampler(each, lambda g, x, w, p: (g * x**p).square().sum((1, 2))), "square_norms differs"),
    "factors forgotten": (Sampler(each, None, lambda f, *args: each(*args).sum(0)), "weighted differs"),
    "factors squared": (Sampler(each, None, lambda f, *args: f.square() @ each(*args)), "weighted differs"),
}


@pytest.mark.parametrize("name", WRONG_SAMPLERS)
def test_a_wrong_sampler_is_refused(name):
    sampler, message = WRONG_SAMPLERS[name]
    with pytest.raises(DpcheckError, match=message):
        register_site(scaled_backward, samplers={1: sampler}, **BACKWARD)
    assert "example.scaled_backward" not in RULES


@pytest.mark.parametrize(
    ("target", "changes", "message"),
    [
        (torch.ops.aten.sum.default, {}, "an op of your own"),
        (len, {}, "an op of your own"),
        (scaled, {"rows": (0,)}, "has 3 arguments, and rows names 1"),
        (scaled, {"outputs": (0, 0)}, "has 1 outputs, and outputs names 2"),
        (scaled, {"rows": (None, None, None)}, "no argument has rows"),
        (scaled, {"samplers": {0: OWN}}, 'no "sum"'),
        (scaled, {"inputs": arguments(N_D, ("d",), "a")}, "it raises"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_op_is_refused(target, changes, message):
    with pytest.raises(DpcheckError, match=message):
        register_site(target, **{**FORWARD, **changes})
