"""Assertions about data are taken out of the graph; whatever else depends on data is a branch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dpcheck
from dpcheck.capture import Capture, CaptureFailure, capture


def asserts(x: Tensor) -> Tensor:
    assert x.abs().max().item() < 1e6, "too large"
    if torch.isnan(x).any() or x.shape[1] == 0:
        raise ValueError("no number")
    return x * 2


def branches(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def caught(x: Tensor) -> Tensor:
    try:
        assert x.sum() > 0
    except AssertionError:
        return x * 0
    return x


def caught_by_the_caller(x: Tensor) -> Tensor:
    try:
        return asserts(x)
    except ValueError:
        return x


def suppressed(x: Tensor) -> Tensor:
    with contextlib.suppress(AssertionError):
        assert x.sum() > 0
        x = x * 2
    return x


def kept(x: Tensor) -> Tensor:
    assert (largest := x.max().item()) < 1e6  # noqa: RUF018
    return x * largest


def acts(x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = x * 2
    assert branches(x) is not None
    return x


def otherwise(x: Tensor) -> Tensor:
    if x.sum() > 1e6:
        raise ValueError("too large")
    elif x.sum() > 0:  # noqa: RET506
        return x
    return x * 2


class Layers:
    """An iterator that stops on data."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.left = x, 3

    def __iter__(self) -> Layers:
        return self

    def __next__(self) -> Tensor:
        self.left -= 1
        if self.left == 0 or self.x.sum() > 0:
            raise StopIteration
        return self.x


class Sequence:
    """The old protocol of loops."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __getitem__(self, at: int) -> Tensor:
        if at > 1 or self.x.sum() > 0:
            raise IndexError(at)
        return self.x


def iterated(x: Tensor) -> Tensor:
    for more in Layers(x):
        x = x + more
    return x


def indexed(x: Tensor) -> Tensor:
    for more in Sequence(x):  # type: ignore[attr-defined]
        x = x + more
    return x


def finally_returned(x: Tensor) -> Tensor:
    try:
        assert x.sum() > 0
        x = x * 2
    finally:
        return x  # noqa: B012


def swallowed(x: Tensor) -> Tensor:
    try:
        return x * float(x.sum())
    except Exception:
        return x


LOOK_LIKE = [
    *(caught, caught_by_the_caller, suppressed, swallowed, finally_returned),
    *(kept, acts, otherwise, iterated, indexed),
]


def test_an_assertion_about_data_is_no_branch() -> None:
    result = capture(nn.Linear(4, 4), lambda m, b: asserts(m(b)).sum(1), torch.randn(4, 4))
    assert isinstance(result, Capture), result
    assert len(result.touched.asserted) == 2
    assert all(place.startswith(__file__) for place in result.touched.asserted)
    report = dpcheck.check(nn.Linear(4, 4), lambda m, b: asserts(m(b)).sum(1), torch.randn(4, 4))
    assert report.ok
    assert any("assertions about data" in note for note in report.notes)


@pytest.mark.parametrize("middle", LOOK_LIKE)
def test_what_only_looks_like_an_assertion_is_a_branch(middle: Callable[[Tensor], Tensor]) -> None:
    result = capture(nn.Linear(4, 4), lambda m, b: middle(m(b)).sum(1), torch.randn(4, 4))
    assert isinstance(result, CaptureFailure)
    assert result.kind == "branch"
