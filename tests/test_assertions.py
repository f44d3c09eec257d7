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


def test_an_assertion_about_data_is_no_branch() -> None:
    result = capture(nn.Linear(4, 4), lambda m, b: asserts(m(b)).sum(1), torch.randn(4, 4))
    assert isinstance(result, Capture), result
    assert len(result.touched.asserted) == 2
    assert all(place.startswith(__file__) for place in result.touched.asserted)
    report = dpcheck.check(nn.Linear(4, 4), lambda m, b: asserts(m(b)).sum(1), torch.randn(4, 4))
    assert report.ok
    assert any("assertions about data" in note for note in report.notes)


@pytest.mark.parametrize("middle", [caught, caught_by_the_caller, suppressed, kept, acts, otherwise])
def test_what_only_looks_like_an_assertion_is_a_branch(middle: Callable[[Tensor], Tensor]) -> None:
    result = capture(nn.Linear(4, 4), lambda m, b: middle(m(b)).sum(1), torch.randn(4, 4))
    assert isinstance(result, CaptureFailure)
    assert result.kind == "branch"
