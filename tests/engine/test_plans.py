"""Plans that are kept: as many as are useful, and a warning where each step makes a new one."""

import torch
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.plans import KEPT, Plans
from torch import nn

from dpcheck.testing import output_losses


def test_shapes_that_never_repeat_are_named_once(caplog):
    plans = Plans()
    for length in range(KEPT + 10):
        plans.put(((((8, length), torch.int64, "cpu"), ((8,), torch.int64, "cpu")), "spec", "state"), object())
    assert len(plans) == KEPT
    assert caplog.text.count("each new one takes seconds") == 1
    assert f"batches of {KEPT + 1} shapes" in caplog.text
    assert f"[8, {KEPT}], [8]" in caplog.text
    assert "dpcheck.bucketed" in caplog.text


def test_attributes_that_never_repeat_are_told_from_shapes(caplog):
    plans = Plans()
    for step in range(KEPT + 1):
        plans.put(((((8, 3), torch.int64, "cpu"),), "spec", step), object())
    assert "attributes of the model that change with every step" in caplog.text


def test_the_one_used_last_is_kept():
    plans = Plans()
    for step in range(KEPT):
        plans.put(((), step), object())
    first = plans.get(((), 0))
    plans.put(((), KEPT), object())
    assert plans.get(((), 0)) is first
    assert plans.get(((), 1)) is None


def test_a_clipper_makes_one_plan_a_shape():
    clipper = Clipper(nn.Linear(3, 2), output_losses, max_grad_norm=1.0)
    for length in (2, 3, 2, 3, 2):
        clipper((torch.randn(4, length, 3),))
    assert len(clipper._plans) == 2
