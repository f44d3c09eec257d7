"""The privacy unit: what one record is, and the adapter that puts records on axis 0 for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.errors import DpcheckError, a_type
from dpcheck.inputs import Public

LossFn = Callable[[Any, Any], Tensor]
Reduce = Literal["sum", "mean"]


@dataclass(frozen=True)
class Unit:
    """What is protected as one: a record by default, all rows of a user with ``max_rows``.

    Every pass and the engine work on batches with one unit for each index of axis 0. This adapts others to it;
    ``loss_fn`` and the model still see the batch in the layout that they were written for.

    Attributes:
        axes: where records lie in each tensor: one axis for all, or a pytree of axes that is a prefix of the batch,
            such as ``(1, 0)`` for a time-first x and a y. ``None`` is a tensor without records. It is treated as
            **public**: its values must not come from the data, and the engine refuses a second value of it.
        rows: how many consecutive indices of that axis are one record; one number, or a prefix of the batch.
        max_rows: the unit is a user with at most so many records. The batch is then ``(records, mask)``: U * max_rows
            records, those of a user side by side, and bool [U, max_rows], False for padding, whose losses do not count.
            :func:`dpcheck.by_user` makes such batches.
        reduce: how a loss of each row (``rows``) or record (``max_rows``) becomes one of each unit. The mean is over
            the unit's own rows without padding.

    Raises:
        DpcheckError: for an attribute that is none of these.
    """

    axes: Any = 0
    rows: Any = 1
    max_rows: int | None = None
    reduce: Reduce = "sum"

    def __post_init__(self) -> None:
        for axis in pytree.tree_leaves(self.axes):
            if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
                raise DpcheckError(
                    f"{axis!r} is not an axis", "Unit.axes", "give whole numbers, or None for a constant"
                )
        for name, counts in (("rows", pytree.tree_leaves(self.rows)), ("max_rows", [self.max_rows])):
            for count in counts:
                whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
                if not whole and not (name == "max_rows" and count is None):
                    raise DpcheckError(f"{name}={count!r} is not a positive whole number", where=f"Unit.{name}")
        if self.reduce not in get_args(Reduce):
            raise DpcheckError(f"reduce={self.reduce!r} is neither 'sum' nor 'mean'", where="Unit.reduce")

    @property
    def noun(self) -> Literal["record", "user"]:
        """What a unit is called."""
        return "record" if self.max_rows is None else "user"

    @property
    def record(self) -> str:
        """What a record is, in words."""
        axis = f"axis {self.axes}" if isinstance(self.axes, int) else f"axes {self.axes}"
        count = "one index" if self.rows == 1 else f"{self.rows} consecutive indices"
        return f"{count} of {axis} of the batch"

    def __str__(self) -> str:
        if self.max_rows is None:
            return f"one record: {self.record}"
        return f"one user: all of their records, at most {self.max_rows} of which are used; a record is {self.record}"

    @property
    def length(self) -> int:
        """How many indices of an axis are one unit, in the tensor where they are most."""
        longest: int = max(pytree.tree_leaves(self.rows))
        return longest * (self.max_rows or 1)

    @property
    def is_default(self) -> bool:
        """Whether batches are as everything else wants them."""
        return self.axes == 0 and self.rows == 1 and self.max_rows is None

    def canonical(self, batch: Any) -> Any:
        """``batch`` with one unit for each index of axis 0 of every tensor.

        The rows of a unit are on axis 1, if it has several; constants are :class:`dpcheck.inputs.Public`.

        Raises:
            DpcheckError: for axes that do not fit the batch, rows that do not divide, tensors that disagree about the
                number of units, a mask that is none.
        """
        if self.is_default:
            return batch
        records, mask = _parted(batch, self.max_rows)
        leaves, spec = pytree.tree_flatten_with_path(records)
        start = "batch" if mask is None else "batch[0]"
        placed, counts = [], {}
        for (path, leaf), axis, length in zip(leaves, *self._of_leaves(spec), strict=True):
            name = f"{start}{pytree.keystr(path)}"
            if isinstance(leaf, Tensor):
                before, leaf = tuple(leaf.shape), _to_front(leaf, axis, length, name)
            if isinstance(leaf, Tensor):
                counts[f"{name} {before} has {len(leaf)} on axis {axis}"] = len(leaf)
            placed.append(leaf)
        if mask is not None:
            counts[f"the mask {tuple(mask.shape)} has {len(mask)}"] = len(mask)
        if len(set(counts.values())) > 1:
            raise DpcheckError(
                f"the tensors of the batch disagree about the number of {self.noun}s: {'; '.join(counts)}",
                where="Unit",
                next="declare the axis of each tensor, such as Unit(axes=(1, 0)), and the indices of each record",
            )
        rebuilt = pytree.tree_unflatten(placed, spec)
        return rebuilt if mask is None else (rebuilt, mask)

    def original(self, batch: Any) -> Any:
        """What :meth:`canonical` made, in the layout of the user."""
        if self.is_default:
            return batch
        records, mask = _parted(batch, self.max_rows)
        leaves, spec = pytree.tree_flatten(records)
        device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), None)
        placed = []
        for leaf, axis, length in zip(leaves, *self._of_leaves(spec), strict=True):
            if isinstance(leaf, Tensor):
                leaf = _to_place(leaf, axis, length)
            placed.append(leaf.fresh(device) if isinstance(leaf, Public) else leaf)
        rebuilt = pytree.tree_unflatten(placed, spec)
        return rebuilt if mask is None else (rebuilt, mask)

    def loss(self, loss_fn: LossFn) -> LossFn:
        """``loss_fn`` of the user's batch as one of the canonical batch, with one loss for each unit.

        ``loss_fn`` returns a loss for each record, or for each of its ``rows``; it does not see the mask of users.
        """
        if self.is_default:
            return loss_fn

        def adapted(model: Any, batch: Any) -> Tensor:
            size = inputs.batch_size(batch)
            restored, mask = _parted(self.original(batch), self.max_rows)
            losses = loss_fn(model, restored)
            if not isinstance(losses, Tensor):
                return losses  # type: ignore[unreachable] # whoever asked for losses says what is wrong with it
            losses = self._of_records(losses, size * (self.max_rows or 1))
            return losses if mask is None else self._of_users(losses, mask)

        return adapted

    def _of_leaves(self, spec: Any) -> tuple[list[Any], list[int]]:
        """Of each leaf: its axis, and how many indices of it are one unit."""
        lengths = _spread(self.rows, spec, "rows")
        return _spread(self.axes, spec, "axes"), [rows * (self.max_rows or 1) for rows in lengths]

    def _of_records(self, losses: Tensor, records: int) -> Tensor:
        shape = tuple(losses.shape)
        if shape == (records,):
            return losses
        several = sorted({*pytree.tree_leaves(self.rows)} - {1})
        for rows in several:
            if shape == (records * rows,):
                each = losses.reshape(records, rows)
                return each.sum(1) if self.reduce == "sum" else each.mean(1)
        wanted = " or ".join(f"[{n}]" for n in (records, *(records * rows for rows in several)))
        raise DpcheckError(
            f"loss_fn returned a loss of shape {list(shape)}, not {wanted} (one loss for each record"
            + (", or for each of its rows)" if several else ")"),
            next=f"the unit is {self}: reduce all other axes in loss_fn",
        )

    def _of_users(self, losses: Tensor, mask: Tensor) -> Tensor:
        counted = torch.where(mask, losses.reshape(mask.shape), 0.0).sum(1)
        return counted if self.reduce == "sum" else counted / mask.sum(1).clamp_min(1)


def constants(batch: Any) -> tuple[str, ...]:
    """What a canonical batch holds besides data, to compare with another batch: public constants, what is no tensor."""
    return tuple(repr(leaf) for leaf in pytree.tree_leaves(batch) if not isinstance(leaf, Tensor))


def adapted(unit: Unit | None, loss_fn: LossFn, batch: Any) -> tuple[LossFn, Any]:
    """Loss and batch with units on axis 0.

    Raises:
        DpcheckError: as :meth:`Unit.canonical`; if ``unit`` is not a :class:`Unit`.
    """
    if unit is None:
        return loss_fn, batch
    if not isinstance(unit, Unit):
        raise DpcheckError(f"unit is {a_type(unit)}, not a dpcheck.Unit", where="unit")
    return unit.loss(loss_fn), unit.canonical(batch)


def _parted(batch: Any, max_rows: int | None) -> tuple[Any, Tensor | None]:
    """The records and the mask of users, which only batches of users have."""
    if max_rows is None:
        return batch, None
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    mask = batch[1] if pair else None
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or mask.shape[1:] != (max_rows,):
        seen = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else f"{a_type(batch)}"
        raise DpcheckError(
            f"a batch of users is (records, mask) with a mask of torch.bool [users, {max_rows}], not {seen}",
            where="batch",
            next="data = dpcheck.by_user(dataset, users, max_rows=...); batch = data.batch(range(8)); unit = data.unit",
        )
    return batch[0], mask


def _spread(prefix: Any, spec: Any, name: str) -> list[Any]:
    """The value of ``prefix`` for each leaf of a batch."""
    if prefix is None or isinstance(prefix, int):
        return [prefix] * spec.num_leaves
    parts: list[Any] | None = None
    if not spec.is_leaf():
        children = spec.children()
        if isinstance(prefix, Mapping) and issubclass(spec.type, dict):
            if set(_keys(spec)) == set(prefix):
                parts = [prefix[key] for key in _keys(spec)]
        elif isinstance(prefix, tuple | list) and issubclass(spec.type, tuple | list):
            parts = list(prefix) if len(prefix) == len(children) else None
    if parts is None:
        raise DpcheckError(
            f"{name}={prefix!r} does not fit the batch, which is {_shape_of(spec)}",
            where=f"Unit.{name}",
            next="give one number for all tensors, or the same tuple, list or dict as the batch",
        )
    return [value for part, child in zip(parts, children, strict=True) for value in _spread(part, child, name)]


def _keys(spec: Any) -> list[Any]:
    return list(pytree.tree_unflatten([0] * spec.num_leaves, spec))


def _shape_of(spec: Any) -> str:
    if spec.is_leaf():
        return "one tensor here"
    inside = f"with the keys {_keys(spec)}" if issubclass(spec.type, dict) else f"of {len(spec.children())}"
    return f"a {spec.type.__name__} {inside} here"


def _to_front(t: Tensor, axis: int | None, length: int, name: str) -> Tensor | Public:
    """[..., N * length, ...] -> [N, length, ...], or [N, ...] if ``length`` is 1."""
    if axis is None:
        return Public(t)
    if not -t.dim() <= axis < t.dim():
        raise DpcheckError(
            f"a tensor of shape {list(t.shape)} has no axis {axis}",
            where=name,
            next="declare the axis of each tensor, such as Unit(axes=(1, 0)); None for a public constant",
        )
    if axis % t.dim():
        t = t.movedim(axis, 0).contiguous()
    if length == 1:
        return t
    if t.shape[0] % length:
        raise DpcheckError(
            f"{t.shape[0]} indices of axis {axis} cannot be cut into units of {length}",
            where=name,
            next="pad each record to the declared number of rows, or declare another",
        )
    return t.reshape(t.shape[0] // length, length, *t.shape[1:])


def _to_place(t: Tensor, axis: int, length: int) -> Tensor:
    """The inverse. A contiguous result, because ``view`` worked on the user's tensor."""
    t = t if length == 1 else t.flatten(0, 1)
    return t.movedim(0, axis).contiguous() if axis % t.dim() else t
