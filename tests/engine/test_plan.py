"""The plan: one backward, no unclipped contraction, and both forms of every site give the same."""

import pytest
import torch
from dpcheck.engine import clipped_grads
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.contributions import NotCovered
from dpcheck.engine.kinds import clip_factors
from dpcheck.engine.plan import make_plan, run_plan
from dpcheck.engine.sites import convolution
from dpcheck.engine.sites.base import every_site
from hypothesis import assume, given
from test_sites import examples
from torch import nn

from dpcheck import testing
from dpcheck.capture import Capture, capture
from dpcheck.samplesets import analyse
from dpcheck.testing import output_losses


def analysis_of(model, batch):
    result = capture(model, output_losses, batch)
    assert isinstance(result, Capture)
    return analyse(result)


def ops(plan):
    return [str(node.target) for node in plan.module.graph.nodes if node.op == "call_function"]


def test_unclipped_weight_gradients_are_not_computed():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    analysis = analysis_of(model, (torch.randn(4, 6),))
    with every_site(keep=False):
        plan = make_plan(analysis)
    # Two products forward, one back to the hidden layer; the gradient of the input is not needed.
    assert sum("function addmm" in op or "function matmul" in op for op in ops(plan)) == 3


def test_the_gradient_of_a_convolutions_weight_is_masked_out():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 4, 2))
    plan = make_plan(analysis_of(model, (torch.randn(4, 2, 5, 5),)))
    masks = [n.args[10] for n in plan.module.graph.nodes if "convolution_backward" in str(n.target)]
    assert masks == [[True, False, False]]


@examples(15)
@given(case=testing.modules())
def test_kept_and_contracted_again_are_the_same(case):
    model, batch = case.build()
    clipper = Clipper(model, output_losses, max_grad_norm=0.5)
    # Of a layer without samplers there is no plan.
    assume(len(batch[0]) > 1 and clipper.plan(batch) is not None)
    analysis = analysis_of(model, batch)
    weights = torch.linspace(0, 1, len(batch[0]), dtype=torch.float64)
    results = []
    for keep in (True, False):
        torch.manual_seed(0)
        with every_site(keep):
            plan = make_plan(analysis)
            results.append(run_plan(plan, model, batch, weights, 0.5))
    torch.testing.assert_close(*(r[1] for r in results), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*(r[2] for r in results), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_too_many_to_keep_and_images_too_large_for_grams(transposed, monkeypatch):
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model, batch = kind(3, 4, 3, padding=1).double(), (torch.randn(5, 3, 9, 9, dtype=torch.float64),)
    expected = clipped_grads(model, output_losses, batch, 0.5)
    monkeypatch.setattr(convolution, "KEEP_BYTES", 4 * 81)
    plan = make_plan(analysis_of(model, batch))
    site = next(site for site in plan.sites if site.kind == "convolution")
    assert (site.keeps(), site.work(False).method) == (False, "recompute")
    _, norms, grads, _ = run_plan(plan, model, batch, torch.ones(5, dtype=torch.float64), 0.5)
    torch.testing.assert_close((grads, norms[:, 0]), expected, rtol=1e-12, atol=1e-12)


def test_a_plan_says_what_it_is_made_of():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    plan = make_plan(analysis_of(model, (torch.tensor([[0, 1], [2, 2], [4, 0]]),)))
    assert plan.gradients == ("0.weight",)
    assert [site.kind for site in plan.sites][plan.contributions[0].sites[0]] == "joint"


def test_an_op_without_a_sampler_is_named():
    analysis = analysis_of(nn.Embedding(5, 3, sparse=True), (torch.tensor([[0, 1], [2, 2], [4, 0]]),))
    with pytest.raises(NotCovered, match=r"no sampler covers aten\._sparse_coo_tensor.* for the gradient of weight"):
        make_plan(analysis)


def test_clip_factors():
    norms = torch.tensor([0.0, 0.5, 2.0, 8.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    factors = clip_factors(norms, 1.0, weights)
    torch.testing.assert_close(factors, torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64), rtol=1e-12, atol=0)
    assert (factors * norms <= 1.0).all()


def test_sums_that_set_memory_free_come_before_those_that_take_it():
    model = nn.Sequential(nn.Embedding(500, 6), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4))
    with every_site(keep=False):
        plan = make_plan(analysis_of(model, (torch.randint(0, 500, (4, 30)),)))
    assert plan.gradients[-1] == "0.weight"
    assert plan.gradients.index("3.weight") < plan.gradients.index("0.weight")
    weighted = [n for n in plan.module.graph.nodes if getattr(n.target, "__name__", "") == "weighted"]
    last = {n: user for user in plan.module.graph.nodes for n in user.all_input_nodes if user.op != "output"}
    # No activation outlives the sum that is made of it.
    assert any(last.get(value) is node for node in weighted for value in node.args[1:])
