"""Layouts are restored, and a unit that does not fit its batch or its losses is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import dpcheck
from dpcheck import DpcheckError, Unit


def cross_entropy(model: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def data(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, dtype=torch.float64), torch.randint(0, 2, (n,))


@st.composite
def layouts(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[Any, Unit, int]:
    """A batch of nested tensors, how it is laid out, and its number of units."""
    units, max_rows = draw(st.integers(1, 3)), draw(st.none() | st.integers(1, 3))
    axes, rows, leaves = [], [], []
    for _ in range(2):
        length = draw(st.integers(1, 3))
        others = draw(st.lists(st.integers(1, 3), max_size=2))
        axis = draw(st.integers(-len(others) - 1, len(others)))
        shape = list(others)
        shape.insert(axis % (len(others) + 1), units * length * (max_rows or 1))
        axes.append(axis)
        rows.append(length)
        leaves.append(torch.randn(shape))
    batch: Any = {"a": [leaves[0]], "b": leaves[1], "name": "text"}
    unit = Unit({"a": axes[0], "b": axes[1], "name": None}, {"a": [rows[0]], "b": rows[1], "name": 1}, max_rows)
    if max_rows is not None:
        batch = (batch, torch.rand(units, max_rows) < 0.5)
    return batch, unit, units


@given(layout=layouts())
def test_every_layout_is_restored(layout: tuple[Any, Unit, int]) -> None:
    batch, unit, units = layout
    canonical = unit.canonical(batch)
    assert {len(t) for t in pytree.tree_leaves(canonical) if isinstance(t, Tensor)} == {units}
    restored = unit.original(canonical)
    for got, wanted in zip(pytree.tree_leaves(restored), pytree.tree_leaves(batch), strict=True):
        assert torch.equal(got, wanted) and got.is_contiguous() if isinstance(got, Tensor) else got == wanted


def test_the_default_changes_nothing() -> None:
    batch = data(3)
    assert Unit().canonical(batch) is batch and Unit().loss(cross_entropy) is cross_entropy


# -- wrong declarations


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Unit(axes=1.5), "1.5 is not an axis"),
        (lambda: Unit(axes=(0, True)), "True is not an axis"),
        (lambda: Unit(rows=0), "rows=0"),
        (lambda: Unit(rows=(3, None)), "rows=None"),
        (lambda: Unit(max_rows=0), "max_rows=0"),
        (lambda: Unit(reduce="max"), "reduce='max'"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_unit(make: Callable[[], Unit], says: str) -> None:
    with pytest.raises(DpcheckError, match=says):
        make()


MASK = torch.ones(4, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("unit", "batch", "says"),
    [
        (Unit(axes=(1, 0)), data(4), r"batch\[0\]' has 3|disagree about the number of records"),
        (Unit(axes=(0, 1)), data(4), r"shape \[4\] has no axis 1"),
        (Unit(axes=(0, 0, 0)), data(4), r"axes=\(0, 0, 0\) does not fit the batch, which is a tuple of 2"),
        (Unit(axes={"x": 0}), {"x": torch.ones(2), "y": torch.ones(2)}, r"with the keys \['x', 'y'\]"),
        (Unit(axes={"x": 0}), torch.ones(2), "one tensor here"),
        (Unit(axes=None), data(4), "holds no tensor"),
        (Unit(rows=3), data(4), "4 indices of axis 0 cannot be cut into units of 3"),
        (Unit(rows=(2, 1)), data(4), "disagree about the number of records"),
        (Unit(max_rows=3), data(12), r"\(records, mask\)"),
        (Unit(max_rows=3), (data(12), MASK.float()), r"not torch.float32 \[4, 3\]"),
        (Unit(max_rows=2), (data(12), MASK), r"not torch.bool \[4, 3\]"),
        (Unit(max_rows=3), (data(9), MASK), "disagree about the number of users"),
        ("user", data(4), "unit is a str"),
    ],
)
def test_a_unit_that_does_not_fit_is_refused(unit: Any, batch: Any, says: str) -> None:
    with pytest.raises(DpcheckError, match=says):
        dpcheck.check(mlp().double(), cross_entropy, batch, unit=unit)


@pytest.mark.parametrize(
    ("unit", "batch", "loss_fn", "says"),
    [
        (Unit(rows=3), data(12), lambda m, b: cross_entropy(m, b).view(2, 6).sum(1), r"\[2\], not \[4\] or \[12\]"),
        (Unit(max_rows=3), (data(12), MASK), lambda m, b: cross_entropy(m, b).view(4, 3).sum(1), r"\[4\], not \[12\]"),
        (Unit(max_rows=3), (data(12), MASK), lambda m, b: cross_entropy(m, b).mean(), r"\[\], not \[12\]"),
        (Unit(rows=3), data(12), lambda m, b: 0.0, "loss_fn returned float"),
    ],
)
def test_a_loss_of_neither_shape_is_refused(unit: Unit, batch: Any, loss_fn: Any, says: str) -> None:
    with pytest.raises(DpcheckError, match=says):
        dpcheck.check(mlp().double(), loss_fn, batch, unit=unit)
