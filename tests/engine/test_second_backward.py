"""Checkpointed models keep their memory: norms in one backward, the clipped sum in another, where that is exact."""

import pytest
import torch
import torch.nn.functional as F
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.memory import peak_bytes
from dpcheck.engine.plan import make_plan, run_plan
from dpcheck.engine.provable import provable
from dpcheck.engine.second import linear, repeats, second_plan
from test_clipping import close, definition
from test_memory import measured
from torch import nn
from torch.utils.checkpoint import checkpoint

import dpcheck


class Text(nn.Module):
    """A table shared with the head, a table of positions, blocks that are computed again."""

    def __init__(self, again=True, reentrant=False, drop=0.0, hook=None, preserve=True, blocks=2):
        super().__init__()
        self.table, self.places = nn.Embedding(11, 8), nn.Embedding(5, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, drop, batch_first=True) for _ in range(blocks))
        self.again, self.hook, self.options = again, hook, {"use_reentrant": reentrant, "preserve_rng_state": preserve}

    def forward(self, ids):
        h = self.table(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            h = checkpoint(block, h, **self.options) if self.again else block(h)
            if self.hook is not None and h.requires_grad:
                h.register_hook(self.hook)
        return F.linear(h, self.table.weight)


def loss_fn(model, ids):
    return F.cross_entropy(model(ids).transpose(1, 2), ids, reduction="none").mean(1)


def made(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return Text(**options).to(dtype), torch.randint(0, 11, (6, 5))


def analysis_of(model, batch):
    found = provable(model, loss_fn, batch)
    assert not isinstance(found, str), found
    return found


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("bound", [0.05, 1.0, 1e6])
def test_the_clipped_sum_is_that_of_single_samples(reentrant, bound):
    model, ids = made(reentrant=reentrant)
    plan = second_plan(analysis_of(model, ids))
    assert plan is not None
    assert (plan.backwards, plan.kept) == (2, frozenset())
    weights = torch.tensor([1.0, 0, 1, 1, 1, 0], dtype=torch.float64)
    losses, norms, grads, _ = run_plan(plan, model, ids, weights, bound)
    expected_norms, expected = definition(made(again=False)[0], loss_fn, ids, bound, weights)
    for name, g in expected.items():
        torch.testing.assert_close(grads[name], g, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norms[:, 0], expected_norms, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses, loss_fn(model, ids).detach())


def test_the_engine_takes_it_for_what_it_saves():
    torch.manual_seed(0)
    model, ids = Text(blocks=6).double(), torch.randint(0, 11, (64, 5))
    clipper = Clipper(model, loss_fn, max_grad_norm=1.0)
    plan = clipper.plan(ids)
    one = make_plan(analysis_of(model, ids))
    assert plan.backwards == 2
    weights = torch.ones(64, dtype=torch.float64)
    taken = {p.backwards: measured(lambda p=p: run_plan(p, model, ids, weights, 1.0)) for p in (one, plan)}
    assert taken[2] < 0.6 * taken[1]
    assert 0.8 < peak_bytes(plan) / taken[2] < 1.4
    close(clipper(ids), definition(model, loss_fn, ids, 1.0, torch.ones(64)))
    assert dpcheck.verify(model, loss_fn, ids).ok


@pytest.mark.parametrize("preserve", [True, False])
def test_both_backwards_see_the_same_draws(preserve):
    model, ids = made(drop=0.4, preserve=preserve)
    plan = second_plan(analysis_of(model, ids))
    weights = torch.tensor([0.0, 0, 1, 0, 0, 0], dtype=torch.float64)
    norms = set()
    for _ in range(3):
        _, found, grads, _ = run_plan(plan, model, ids, weights, 1e-3)
        # Other draws would have another norm than the one that the factor was made for.
        total = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        torch.testing.assert_close(float(total), 1e-3)
        norms.add(float(found[2, 0]))
    assert len(norms) == 3


HOOKS = {
    "clamped": lambda g: g.clamp(-1e-3, 1e-3),
    "normalised": lambda g: g / g.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-12),
    "rounded": lambda g: torch.round(g * 1e3) / 1e3,
    "shifted": lambda g: g + 1e-3,
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_gradient_that_is_not_linear_in_the_factor_is_summed_by_the_sites(hook):
    model, ids = made(hook=HOOKS[hook])
    analysis = analysis_of(model, ids)
    assert repeats(analysis.capture)
    assert not linear(analysis.capture)
    assert second_plan(analysis) is None
    clipped = Clipper(model, loss_fn, max_grad_norm=0.05, method="graph")(ids)
    close(clipped, definition(made(hook=HOOKS[hook], again=False)[0], loss_fn, ids, 0.05, torch.ones(6)))


def test_a_hook_that_scales_is_linear():
    assert second_plan(analysis_of(*made(hook=lambda g: 0.5 * g))) is not None


def test_where_nothing_is_saved_or_something_is_rounded_there_is_one_backward():
    assert second_plan(analysis_of(*made(again=False))) is None
    assert second_plan(analysis_of(*made(dtype=torch.bfloat16))) is None
    model, ids = made()
    per_layer = Clipper(model, loss_fn, max_grad_norm=1.0, clipping="per-layer")
    assert second_plan(analysis_of(model, ids), grouping=per_layer.grouping()) is None
    automatic = Clipper(model, loss_fn, max_grad_norm=1.0, clipping="automatic")
    assert second_plan(analysis_of(model, ids), grouping=automatic.grouping()) is None


def test_verify_compares_both(monkeypatch):
    model, ids = made()
    right = make_plan

    def wrong(analysis, *, backwards=1, **options):
        plan = right(analysis, backwards=backwards, **options)
        for node in plan.module.graph.nodes if backwards == 2 else ():
            if node.target is torch.select:
                node.args = (node.args[0], 1, 0)
                with plan.module.graph.inserting_after(node):
                    more = plan.module.graph.call_function(torch.mul, (node, 1.01))
                node.replace_all_uses_with(more, delete_user_cb=lambda user, more=more: user is not more)
        plan.module.recompile()
        return plan

    assert dpcheck.verify(model, loss_fn, ids).ok
    monkeypatch.setattr("dpcheck.engine.second.make_plan", wrong)
    assert not dpcheck.verify(model, loss_fn, ids).ok
