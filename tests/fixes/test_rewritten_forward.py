"""Forwards that compute over the batch, against the same forward written by hand over one sample."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dpcheck
from dpcheck.fixer import FixResult

Y = torch.tensor([0, 1, 2, 0, 1, 2])
ROWS, SEQUENCES, IMAGES = torch.randn(6, 4), torch.randn(6, 5, 4), torch.randn(6, 4, 3, 3)
Middle = Callable[[Tensor], Tensor]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(1), batch[1], reduction="none")


class Net(nn.Module):
    """``middle`` is what its forward computes itself; ``own`` is the same over one sample."""

    middle: Middle
    own: Middle

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head, self.drop = nn.Linear(size, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(type(self).middle(self.drop(x)).flatten(1)) * scale


def images_by_hand(h: Tensor) -> Tensor:
    mean, var = h.mean((0, 2, 3)), h.var(dim=[0, 2, 3], unbiased=False)
    return (h - mean[None, :, None, None]) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()


def branches(h: Tensor) -> Tensor:
    n = len(h)
    return h * (2 / n)


CASES: dict[str, tuple[Middle, Middle, Tensor]] = {
    "mean": (lambda h: h - h.mean(0), lambda h: h - h.mean(1, True), ROWS),
    "detached": (lambda h: h - h.detach().mean(0), lambda h: h - h.detach().mean(1, True), ROWS),
    "deviation": (
        lambda h: (h - h.mean(0, keepdim=True)) / (h.std(dim=0) + 1),
        lambda h: (h - h.mean(1, True)) / (h.std(1, keepdim=True) + 1),
        ROWS,
    ),
    "images": (images_by_hand, lambda h: F.layer_norm(h, h.shape[1:]), IMAGES),
    "tokens": (lambda h: h - h.mean((0, 1)), lambda h: h - h.mean(1, True), SEQUENCES),
    "all": (lambda h: h / h.norm(), lambda h: h / h.flatten(1).norm(dim=1)[:, None, None], SEQUENCES),
    "largest": (lambda h: h - torch.max(h), lambda h: h - h.amax((1, 2), True), SEQUENCES),
    "largest of rows": (lambda h: h - h.max(0).values, lambda h: h - h.amax(1, True), ROWS),
    "softmax": (lambda h: F.softmax(h, dim=0), lambda h: h.softmax(-1), ROWS),
    "normalize": (lambda h: F.normalize(h, dim=0), lambda h: F.normalize(h, dim=1), ROWS),
    "size": (lambda h: h / h.shape[0], lambda h: h / 6, ROWS),
    "size in a number": (branches, lambda h: h * (2 / 6), ROWS),
    "size and shape": (lambda h: h.view(h.size(0), -1) * h.size(0), lambda h: h * 6, ROWS),
}


def fixed(middle: Middle, x: Tensor) -> tuple[Net, FixResult]:
    model = type("Given", (Net,), {"middle": staticmethod(middle)})(x[0].numel())
    return model, dpcheck.fix(model, cross_entropy, (x, Y), unsafe=True)


@pytest.mark.parametrize("name", CASES)
def test_what_is_taken_over_the_batch_is_taken_over_one_sample(name: str) -> None:
    middle, own, x = CASES[name]
    model, result = fixed(middle, x)
    assert result.before.verdict == "mixing" and result.ok, result.changes
    assert all(c.applied and c.applicability == "unsafe" for c in result.changes)
    new: Any = result.model
    assert isinstance(new, type(model)) and new.state_dict().keys() == model.state_dict().keys()
    for rows in (1, 4, 6):
        expected = model.head(own(x[:rows]).flatten(1))
        torch.testing.assert_close(new.eval()(x[:rows]), expected)
    assert new.train().drop.training
    if name == "images":
        assert dpcheck.verify(new, cross_entropy, (x, Y)).ok


def test_it_is_written_as_it_was_called_and_says_so_otherwise() -> None:
    _, result = fixed(CASES["mean"][0], ROWS)
    assert torch.equal(result.model.eval()(ROWS, scale=1.0), result.model(ROWS))
    with pytest.raises(dpcheck.DpcheckError, match=r"traced with scale=1\.0 and is called with 2\.0"):
        result.model(ROWS, 2.0)


class Counting(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls = 1
        return self.head(x - x.mean(0))


class Branching(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = x - x.mean(0)
        for _ in range(int(x.shape[1] > 2)):
            y = y + torch.rand(4)
        return self.head(y)


def scanned(h: Tensor) -> Tensor:
    return h.cumsum(0)


def test_what_cannot_be_rewritten_is_shown_with_its_line_and_a_suggestion() -> None:
    _, result = fixed(scanned, ROWS)
    (change,) = result.changes
    assert not change.applied and change.reason is not None
    assert "`return h.cumsum(0)` (what a sample gets there is told by those before it" in change.reason
    assert "over the axes of one sample" in change.reason and change.reason.endswith("it is `h.cumsum(-1)`")
    for model, why in ((Counting(4), "changes Python state"), (Branching(4), "makes tensors|cannot trace")):
        result = dpcheck.fix(model, cross_entropy, (ROWS, Y), unsafe=True)
        (change,) = result.changes
        assert not change.applied and re.search(why, change.reason or ""), change.reason


def test_without_leave_it_is_not_done() -> None:
    model = type("Given", (Net,), {"middle": staticmethod(CASES["mean"][0])})(4)
    result = dpcheck.fix(model, cross_entropy, (ROWS, Y))
    assert not result.changes[0].applied and type(result.model) is type(model)


def test_statistics_of_one_number_a_sample_stay() -> None:
    _, result = fixed(lambda h: h - h[:, 0].mean(0), ROWS)
    assert not result.changes[0].applied and result.report.verdict == "mixing"
