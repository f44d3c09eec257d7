"""Records of different lengths in few shapes, with nothing of one record in the row of another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dpcheck.errors import DpcheckError, a_type

CollateFn = Callable[[list[Any]], Any]


def bucketed(
    collate_fn: CollateFn,
    *,
    length: Callable[[Any], int],
    sizes: Sequence[int],
    pad: Mapping[Hashable, float] | float,
    axis: int = 1,
) -> Bucketed:
    """A ``collate_fn`` for :class:`dpcheck.PrivacyEngine` that pads every record to the next of a few sizes.

        collate = dpcheck.bucketed(collate, length=lambda record: len(record["ids"]), sizes=(32, 64, 128),
                                   pad={"ids": 0, "mask": 0})
        engine = dpcheck.PrivacyEngine(model, loss_fn, optimizer, dataset, collate_fn=collate, ...)

    A new shape costs a capture of seconds; with buckets there are few. The engine puts records of one size together.
    Each record is collated alone and padded to the size of its own length, so that its row depends on no other record,
    whatever the model makes of padding. Padding to the longest of a batch does not have this property: a model that
    sees the padding then has gradients of one record that change with the length of another.

    Args:
        collate_fn: list of records -> batch, records on axis 0; called with one record at a time.
        length: of a record, of that record alone.
        sizes: public lengths to pad to, the last at least that of the longest record.
        pad: what the tensors of the batch are padded with, by key or position; one number if the batch is a tensor.
            Tensors that are not named are left as they are.
        axis: that is padded, of the batch.

    Raises:
        DpcheckError: for sizes that are not positive whole numbers; later for a record longer than all of them, and
            for a batch that lacks what ``pad`` names.
    """
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not whole or not len(sizes):
        raise DpcheckError(f"sizes={sizes!r} are not positive whole numbers", where="bucketed(sizes=...)")
    return Bucketed(collate_fn, length, tuple(sorted(set(sizes))), pad, axis)


class Bucketed:
    """Made by :func:`bucketed`. A call with records of several sizes pads all to the largest, for a look at them."""

    def __init__(
        self,
        collate_fn: CollateFn,
        length: Callable[[Any], int],
        sizes: tuple[int, ...],
        pad: Mapping[Hashable, float] | float,
        axis: int,
    ) -> None:
        self.collate_fn, self.length, self.sizes, self.pad, self.axis = collate_fn, length, sizes, pad, axis

    def size(self, record: Any) -> int:
        """That ``record`` is padded to."""
        length = self.length(record)
        for size in self.sizes:
            if length <= size:
                return size
        raise DpcheckError(
            f"a record has length {length}, and the largest size is {self.sizes[-1]}",
            where="bucketed(sizes=...)",
            next="add a larger size, or cut records to it in the data set",
        )

    def __call__(self, records: list[Any]) -> Any:
        size = max(map(self.size, records))
        return _joined([self._padded(self.collate_fn([record]), size) for record in records])

    def _padded(self, batch: Any, size: int) -> Any:
        if not isinstance(self.pad, Mapping):
            return self._filled(batch, size, self.pad, "")
        made: Any = dict(batch) if isinstance(batch, Mapping) else list(batch)
        for key, value in self.pad.items():
            try:
                held: Any = made[key]
            except (KeyError, IndexError, TypeError):
                raise DpcheckError(
                    f"pad names {key!r}, which the batch of collate_fn does not have",
                    where="bucketed(pad=...)",
                    next="give keys of the dictionary, or positions in the tuple, that collate_fn returns",
                ) from None
            made[key] = self._filled(held, size, value, f"[{key!r}]")
        return made if isinstance(batch, Mapping | list) else tuple(made)

    def _filled(self, t: Any, size: int, value: float, name: str) -> Tensor:
        rank = t.dim() if isinstance(t, Tensor) else 0
        missing = size - t.shape[self.axis] if rank > self.axis else -1
        if missing < 0:
            given = f"of shape {list(t.shape)}" if isinstance(t, Tensor) else f"{a_type(t)}"
            raise DpcheckError(
                f"batch{name} is {given}: axis {self.axis} cannot be padded to {size}",
                where="bucketed(pad=..., axis=...)",
                next="name only tensors whose axis has at most the length that length(record) gives",
            )
        shape = [*t.shape[: self.axis], missing, *t.shape[self.axis + 1 :]]
        return torch.cat([t, t.new_full(shape, value)], self.axis) if missing else t


def _joined(batches: list[Any]) -> Any:
    leaves = [pytree.tree_leaves(batch) for batch in batches]
    joined = []
    for column in zip(*leaves, strict=True):
        if isinstance(column[0], Tensor):
            joined.append(torch.cat(column))
        elif any(repr(other) != repr(column[0]) for other in column):
            raise DpcheckError(
                f"collate_fn gives a value that is no tensor and differs between records: {column[0]!r:.60}",
                where="collate_fn",
                next="return tensors with records on axis 0 for what belongs to records, and constants for the rest",
            )
        else:
            joined.append(column[0])
    return pytree.tree_unflatten(joined, pytree.tree_structure(batches[0]))
