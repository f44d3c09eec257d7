"""dpcheck.testing: right things pass, wrong ones fail with what is wrong and code that reproduces it."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from dpcheck.engine import PerGroup
from dpcheck.engine.clipped import Clipped
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.sites.sums import SumSite
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from planted import FAULTS
from torch import nn

from dpcheck import DpcheckError, testing, verify
from dpcheck.cases import Case
from dpcheck.testing import assert_private, assert_sampler_correct, assert_sensitivity_bounded, output_losses

few = settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def classified(size=5):
    torch.manual_seed(0)
    return {"x": torch.randn(size, 4), "y": torch.randint(0, 3, (size,))}


# -- samplers


class Cube(torch.autograd.Function):
    """``x**3 * w``; ``right`` says whether the backward is."""

    right = True

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x**3 * w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        wrong = (grad * x**3).mean(0) * 2
        return grad * 3 * x**2 * w, (grad * x**3).sum(0) if Cube.right else wrong


@settings(few, max_examples=15)
@given(batch=testing.batches(like=(torch.randn(4, 3),)))
def test_a_function_of_ones_own(batch):
    assert_sampler_correct(Cube.apply, batch, parameters=[torch.randn(3)], method="graph")


def test_a_backward_that_averages_over_the_batch_is_caught(monkeypatch):
    monkeypatch.setattr(Cube, "right", False)
    with pytest.raises((AssertionError, DpcheckError), match=r"wrong|mix"):
        assert_sampler_correct(Cube.apply, torch.randn(4, 3), parameters=[torch.randn(3)])


def test_an_assertion_names_the_parameter_and_reproduces_itself(monkeypatch, tmp_path):
    original = SumSite.per_sample
    monkeypatch.setattr(SumSite, "per_sample", lambda self, *values: original(self, *values) * 2)
    case = Case("nn.Linear(2, 2).to(torch.float64)", "(torch.randn(3, 2, dtype=torch.float64),)", seed=2)
    with pytest.raises(AssertionError, match=r"bias: error 1\.0e") as caught:
        assert_sampler_correct(case)
    script = str(caught.value).partition("to reproduce:\n")[2]
    file = tmp_path / "case.py"
    # The process of its own has no planted fault, so that the program must run to its end.
    file.write_text(script + "\nprint('reproduced', model.weight.sum().item())")
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    assert f"reproduced {case.build()[0].weight.sum().item()}" in done.stdout


def test_a_failing_example_shrinks_to_a_small_module(monkeypatch):
    fault = next(f for f in FAULTS if f.what == "repeated ids counted once")
    fault.plant(monkeypatch)
    quick = settings(few, phases=[Phase.generate, Phase.shrink], max_examples=300)
    found = find(testing.embeddings(), lambda case: not verify(*_built(case)).ok, settings=quick)
    assert found.model == "nn.Embedding(1, 1).to(torch.float64)"
    # The engine puts a copy without weight beside a single sample, so that one lookup is two.
    assert found.batch == "(torch.tensor([0]).view(1),)"


def _built(case):
    model, batch = case.build()
    return model, output_losses, batch


def test_the_method_can_be_required():
    assert assert_sampler_correct(nn.Linear(3, 2), torch.randn(4, 3), method="graph").method == "graph"
    with pytest.raises(AssertionError, match="the engine uses graph, not vmap"):
        assert_sampler_correct(nn.Linear(3, 2), torch.randn(4, 3), method="vmap")


@pytest.mark.parametrize(
    "name", [n for n in testing.__all__ if n not in ("Case", "arguments", "batches", "layers") and n.islower()]
)
def test_strategies_make_cases_that_build(name):
    function = getattr(testing, name)
    if name.startswith("assert") or name == "output_losses":
        assert function.__doc__
        return

    @settings(few, max_examples=15)
    @given(case=function())
    def build(case):
        model, batch = case.build()
        again, same = case.build()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(batch, same, strict=True))
        assert output_losses(model, batch).shape == (len(batch[0]),)

    build()


@few
@given(data=st.data())
def test_batches_keep_structure_and_dtypes(data):
    like = {"x": torch.randn(3, 2), "more": (torch.tensor([[1], [2], [3]]), 7)}
    batch = data.draw(testing.batches(like=like, max_size=4))
    assert batch["more"][1] == 7
    assert 1 <= len(batch["x"]) == len(batch["more"][0]) <= 4
    assert batch["more"][0].dtype is torch.int64
    assert set(batch["more"][0].flatten().tolist()) <= {1, 2, 3}


# -- models


def test_a_private_model_passes():
    assert_private(nn.Linear(4, 3), cross_entropy, classified())


def test_findings_are_in_the_message():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(AssertionError, match="the verdict is mixing") as caught:
        assert_private(model, cross_entropy, classified())
    assert "DP101" in str(caught.value)


def test_a_wrong_sampler_is_not_private(monkeypatch):
    original = SumSite.weighted
    monkeypatch.setattr(SumSite, "weighted", lambda self, *args: original(self, *args) * 3)
    with pytest.raises(AssertionError, match="per-sample gradients are wrong"):
        assert_private(nn.Linear(4, 3), cross_entropy, classified())


# -- sensitivity


@pytest.mark.parametrize("bound", [0.01, 1.0, 100.0])
def test_sensitivity_of_a_model_with_chance_is_bounded(bound):
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3))
    assert_sensitivity_bounded(model, cross_entropy, classified(), max_grad_norm=bound)


@pytest.mark.parametrize("kind", ["per-layer", PerGroup({"0": 1.0, "": 3.0}), "automatic", "normalised", "adaptive"])
def test_sensitivity_is_bounded_by_every_kind_of_clipping(kind):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))
    assert_sensitivity_bounded(model, cross_entropy, classified(), max_grad_norm=0.1, clipping=kind)


def test_a_complex_parameter_moves_the_sum_with_both_coordinates(monkeypatch):
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))

        def forward(self, batch):
            return (batch["x"] * 1j @ self.weight).real

    def loss_fn(model, batch):
        return model(batch).sum(1)

    assert_sensitivity_bounded(Rotated(), loss_fn, classified(), max_grad_norm=0.1)
    monkeypatch.setattr(testing, "Clipper", NotClipping)
    with pytest.raises(AssertionError, match="moves the clipped sum by"):
        assert_sensitivity_bounded(Rotated(), loss_fn, classified(), max_grad_norm=0.1)


@settings(few, max_examples=12)
@given(batch=testing.batches(like=classified(), max_size=3))
def test_sensitivity_on_drawn_batches(batch):
    torch.manual_seed(0)
    assert_sensitivity_bounded(nn.Linear(4, 3), cross_entropy, batch, max_grad_norm=0.3)


class NotClipping(Clipper):
    def __call__(self, batch, weights=None):
        clipped = super().__call__(batch, weights)
        return Clipped({n: 5 * g for n, g in clipped.grads.items()}, clipped.norms, clipped.losses)


class OfTheMean(Clipper):
    """Clips what is common to all samples, so that one record moves the others."""

    def __call__(self, batch, weights=None):
        clipped = super().__call__(batch, weights)
        size = len(clipped.norms)
        scale = 3.0 * float(clipped.norms.max()) / self.max_grad_norm if size else 1.0
        return Clipped({n: g * scale for n, g in clipped.grads.items()}, clipped.norms, clipped.losses)


@pytest.mark.parametrize("wrong", [NotClipping, OfTheMean])
def test_an_engine_that_does_not_bound_is_caught(wrong, monkeypatch):
    monkeypatch.setattr(testing, "Clipper", wrong)
    with pytest.raises(AssertionError, match=r"record \d .* moves the clipped sum by"):
        assert_sensitivity_bounded(nn.Linear(4, 3), cross_entropy, classified(), max_grad_norm=0.05)


def test_the_model_is_left_as_it_was():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    assert_sensitivity_bounded(layer, cross_entropy, classified(2))
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


def test_a_mixing_model_has_no_bound():
    with pytest.raises(DpcheckError, match="samples of the batch mix"):
        assert_sensitivity_bounded(nn.Linear(4, 3), lambda m, b: cross_entropy(m, b) * b["x"].mean(), classified())


def test_without_hypothesis_the_message_says_what_to_install():
    code = "import sys; sys.modules['hypothesis'] = None\nimport dpcheck\ndpcheck.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'dpcheck[testing]'" in done.stderr
