"""Clipped sums against the definition, and what a cached plan must not remember."""

import pytest
import torch
import torch.nn.functional as F
from dpcheck.engine import clipped_grads, clipping
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.per_sample import per_sample_grads
from dpcheck.engine.plan import run_plan
from hypothesis import assume, given
from hypothesis import strategies as st
from test_sites import examples
from torch import nn

from dpcheck import inputs, testing
from dpcheck.errors import DpcheckError
from dpcheck.testing import output_losses


def definition(model, loss_fn, batch, bound, weights):
    """Norms and ``sum_i w_i min(1, C / |g_i|) g_i`` by plain backward calls: no code of the engine."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    wanted = [p for p in model.parameters() if p.requires_grad]
    total, norms = {n: torch.zeros_like(p) for n, p in zip(names, wanted, strict=True)}, []
    for i, weight in enumerate(weights.tolist()):
        rows = inputs.take(batch, [i])
        grads = torch.autograd.grad(loss_fn(model, rows).sum(), wanted, allow_unused=True, materialize_grads=True)
        norm = sum(g.square().sum() for g in grads).sqrt()
        norms.append(norm)
        for name, grad in zip(names, grads, strict=True):
            total[name] += weight * min(1.0, bound / max(float(norm), 1e-300)) * grad
    return torch.stack(norms).detach(), total


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5)
    ).double()


def close(clipped, expected):
    norms, grads = expected
    torch.testing.assert_close(clipped.norms, norms, rtol=1e-9, atol=1e-12)
    assert clipped.grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(clipped.grads[name], grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["auto", "vmap", "single"])
@pytest.mark.parametrize("bound", [1e-3, 1.5, 1e6])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_norms_and_sum_are_the_definition(method, bound, size):
    model, x = network(), torch.randn(size, 2, 4, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0])[:size]
    clipped = Clipper(model, output_losses, max_grad_norm=bound, method=method)((x,), weights)
    close(clipped, definition(model, output_losses, (x,), bound, weights))
    torch.testing.assert_close(clipped.losses, output_losses(model, (x,)).detach())


@examples(25)
@given(case=testing.modules(), bound=st.sampled_from([0.05, 1.0, 30.0]), padded=st.booleans())
def test_any_layer_is_clipped_by_the_definition(case, bound, padded):
    model, batch = case.build()
    weights = torch.ones(len(batch[0]))
    weights[-1] = 0.0 if padded else 1.0
    if "spectral" in case.model:
        model.eval()  # in training the forward moves its estimate of the spectral norm
    # Chance is drawn anew at every call.
    assume("sparse" not in case.model and "dropout=0.3" not in case.model)
    clipped = Clipper(model, output_losses, max_grad_norm=bound)(batch, weights)
    close(clipped, definition(model, output_losses, batch, bound, weights))


def test_the_bound_holds_under_rounding():
    model = nn.Linear(40, 30)
    x = torch.randn(64, 40) * torch.logspace(-3, 6, 64)[:, None]
    for i in range(64):
        grads, _ = clipped_grads(model, output_losses, (x[i : i + 1],), max_grad_norm=0.1)
        assert sum(g.double().square().sum() for g in grads.values()).sqrt() <= 0.1 * (1 + 1e-7)


def test_an_empty_batch_has_sum_zero():
    clipped = Clipper(network(), output_losses, max_grad_norm=1.0)((torch.randn(0, 2, 4),))
    assert clipped.norms.shape == clipped.losses.shape == (0,)
    assert all(not g.any() for g in clipped.grads.values())


def test_frozen_and_idle_parameters():
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "frozen": nn.Linear(2, 2), "idle": nn.Linear(2, 2)}).double()
    model["frozen"].requires_grad_(False)

    def loss_fn(m, batch):
        return output_losses(m["frozen"], m["a"](batch[0]))

    x = torch.randn(4, 3, dtype=torch.float64)
    clipped = Clipper(model, loss_fn, max_grad_norm=0.2)((x,))
    close(clipped, definition(model, loss_fn, (x,), 0.2, torch.ones(4)))
    assert not clipped.grads["idle.weight"].any()
    assert "frozen.weight" not in clipped.grads


def test_nothing_of_the_model_is_changed_and_no_gradient_is_left():
    model = network()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    Clipper(model, output_losses, max_grad_norm=1.0)((torch.randn(3, 2, 4, dtype=torch.float64),))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.flip(0) * 3,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.repeat(2, 1, 1, 1)[::2],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, :, :3],
        lambda x: x[:2],
        lambda x: torch.cat([x, x, x]),
    ],
)
def test_a_second_batch_of_another_layout_or_size(other):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    clipper = Clipper(model, output_losses, max_grad_norm=0.5)
    clipper((x,))
    close(clipper((other(x),)), definition(model, output_losses, (other(x),), 0.5, torch.ones(len(other(x)))))


def test_autocast_around_the_call_is_seen():
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64), torch.randn(4, 64)
    clipper = Clipper(model, output_losses, max_grad_norm=1e6)
    plain = clipper((x,)).norms
    with torch.autocast("cpu", torch.bfloat16):
        norms, _ = definition(model, output_losses, (x,), 1e6, torch.ones(4))
        cast = clipper((x,)).norms
    assert not torch.allclose(cast, plain, rtol=1e-6)
    torch.testing.assert_close(cast, norms, rtol=5e-3, atol=0)


def test_numbers_in_the_batch_are_part_of_the_plan():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    loss_fn = lambda m, b: output_losses(m, (b["x"],)) * b["scale"]  # noqa: E731
    clipper = Clipper(model, loss_fn, max_grad_norm=1e9)
    one, ten = (clipper({"x": x, "scale": s}).norms for s in (1.0, 10.0))
    torch.testing.assert_close(ten, 10 * one)


def test_samples_that_are_not_finite_are_refused_and_padding_too():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    loss_fn = lambda m, b: m(b[0]).sum(1)  # noqa: E731
    for method in ("auto", "vmap", "single"):
        clipper = Clipper(model, loss_fn, max_grad_norm=1.0, method=method)
        x[2] = float("nan")
        with pytest.raises(DpcheckError, match="sample 2 of the batch is not finite"):
            clipper((x,))
        with pytest.raises(DpcheckError, match="is not finite"):
            clipper((x,), torch.tensor([1.0, 1.0, 0.0, 1.0]))


@pytest.mark.parametrize("bound", [0, -1, float("inf"), float("nan"), None, "1"])
def test_a_bound_that_is_no_bound_is_refused(bound):
    with pytest.raises(DpcheckError, match="max_grad_norm must be a positive number"):
        Clipper(network(), output_losses, max_grad_norm=bound)


def test_bad_requests_are_refused():
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    with pytest.raises(DpcheckError, match="method must be"):
        Clipper(network(), output_losses, max_grad_norm=1.0, method="fast")
    with pytest.raises(DpcheckError, match=r"weights have shape \[2\], not \[3\]"):
        Clipper(network(), output_losses, max_grad_norm=1.0)((x,), torch.ones(2))
    with pytest.raises(DpcheckError, match="no trainable parameter"):
        Clipper(network().requires_grad_(False), output_losses, max_grad_norm=1.0)((x,))
    with pytest.raises(DpcheckError, match="not \\[3\\]"):
        Clipper(network(), lambda m, b: output_losses(m, b).mean(), max_grad_norm=1.0)((x,))


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda m, b: output_losses(m, b) - output_losses(m, b).mean(),
        lambda m, b: output_losses(m, (b[0] - b[0].mean(0),)),
        lambda m, b: F.cross_entropy(m(b[0]) @ m(b[0]).t(), torch.arange(len(b[0])), reduction="none"),
        lambda m, b: output_losses(m, (b[0].flip(0),)),
    ],
)
def test_samples_that_mix_are_refused(loss_fn):
    with pytest.raises(DpcheckError, match="samples of the batch mix"):
        Clipper(nn.Linear(3, 2), loss_fn, max_grad_norm=1.0)((torch.randn(4, 3),))


def test_a_buffer_written_from_data_is_refused():
    class Averaging(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x):
            self.seen.mul_(0.9).add_(x.detach().sum(0))
            return super().forward(x)

    with pytest.raises(DpcheckError, match="buffer seen is written from data"):
        Clipper(Averaging(), output_losses, max_grad_norm=1.0)((torch.randn(4, 3),))


def test_per_sample_grads_have_a_reason_where_there_are_none():
    loss_fn = lambda m, x: m(x).masked_scatter(x > 0, x).sum(1)  # noqa: E731
    assert "aten.masked_scatter" in per_sample_grads(nn.Linear(3, 3), loss_fn, torch.randn(2, 3))[1]


@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("room", [2, 3])
@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()]
)
def test_out_of_memory_is_repeated_with_fewer_samples_at_once(size, room, error, monkeypatch, caplog):
    tried = []

    def limited(plan, model, batch, weights, bound):
        tried.append(len(weights))
        if len(weights) > room:
            raise error
        return run_plan(plan, model, batch, weights, bound)

    monkeypatch.setattr(clipping, "run_plan", limited)
    model, x = network(), torch.randn(size, 2, 4, dtype=torch.float64)
    weights = torch.arange(size) % 2 + 0.5
    clipper = Clipper(model, output_losses, max_grad_norm=1.0)
    for _ in range(2):
        close(clipper((x,), weights), definition(model, output_losses, (x,), 1.0, weights))
    assert "out of memory" in caplog.text
    # The second call does not try what failed before.
    assert sum(count > room for count in tried) == {(4, 2): 1, (4, 3): 1, (7, 2): 2, (7, 3): 2}[size, room]


def test_memory_that_does_not_suffice_for_two_samples_is_an_error(monkeypatch):
    def none(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(clipping, "run_plan", none)
    model = network()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(DpcheckError, match="memory does not suffice for the gradients of 2 samples"):
        Clipper(model, output_losses, max_grad_norm=1.0)((torch.randn(5, 2, 4, dtype=torch.float64),))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(clipping, "run_plan", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        Clipper(network(), output_losses, max_grad_norm=1.0)((torch.randn(5, 2, 4, dtype=torch.float64),))
