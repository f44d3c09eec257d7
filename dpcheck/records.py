"""Data sets whose items can be drawn on their own: records, and users with all of their records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, default_collate

from dpcheck.errors import DpcheckError, a_type
from dpcheck.unit import Unit

CollateFn = Callable[[list[Any]], Any]


def by_user(dataset: Any, users: Iterable[Any], *, max_rows: int, unit: Unit | None = None) -> UserData:
    """A data set of users, to make all records of a user the unit of privacy.

        data = dpcheck.by_user(dataset, users, max_rows=8)
        dpcheck.check(model, loss_fn, data.batch(range(8)), unit=data.unit)
        engine = dpcheck.PrivacyEngine(model, loss_fn, optimizer, data, ...)  # draws users; its delta is for users

    Only the first ``max_rows`` records of each user, in the order of ``dataset``, are ever read, so that which ones
    they are depends on no other user; the order of ``dataset`` must not bring that back, as a seeded shuffle of all
    records does, which changes with their number. The number of users and ``max_rows`` are public.

    A batch always has ``max_rows`` records of each user: those missing are copies of the user's own, and their losses
    do not count.

    Args:
        dataset: map-style; one item is one record.
        users: whose each record is, in the order of ``dataset``: numbers or strings, also as a 1-D tensor or array.
        max_rows: records of one user that are used, at most. Memory and time grow with it.
        unit: where the records lie in batches of ``dataset``; see :class:`dpcheck.Unit`.

    Raises:
        DpcheckError: for another number of labels than records, labels that are missing or of several types, a
            ``max_rows`` below 1, no map-style data set.
    """
    if isinstance(dataset, UserData) or (unit is not None and unit.max_rows is not None):
        raise DpcheckError("these are users already", where="dataset", next="pass the data set of records to by_user")
    if max_rows is None:
        raise DpcheckError("max_rows=None: the records of one user need a public bound", where="max_rows")
    per_user = replace(unit or Unit(), max_rows=max_rows)
    records, labels = map_style(dataset), _labels(users)
    if len(labels) != len(records):
        raise DpcheckError(
            f"there are {len(labels)} labels for {len(records)} records",
            where="users",
            next="give one label for each record, in the order of the data set",
        )
    rows: dict[Any, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return UserData(dataset, tuple(tuple(own[:max_rows]) for own in rows.values()), per_user)


class UserData(Dataset[list[Any]]):
    """Users and their records; made by :func:`by_user`.

    Item u is the list of the records of user u that are used; users are numbered as they first appear.

    Attributes:
        dataset: of records.
        rows: for each user, the records that are used, by number.
        unit: that of the batches of :meth:`batch`.
    """

    def __init__(self, dataset: Any, rows: tuple[tuple[int, ...], ...], unit: Unit) -> None:
        self.dataset, self.rows, self.unit = dataset, rows, unit

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, user: int) -> list[Any]:
        return [self.dataset[row] for row in self.rows[user]]

    def batch(self, users: Iterable[int] | Tensor, collate_fn: CollateFn | None = None) -> tuple[Any, Tensor]:
        """The users by number as ``(records, mask)``; see :class:`dpcheck.Unit`.

        Args:
            users: U numbers.
            collate_fn: list of records -> batch of records; ``default_collate`` if None.
        """
        size = self.unit.max_rows or 1
        own = [self.rows[int(user)] for user in users]
        padded = [rows[i % len(rows)] for rows in own for i in range(size)]
        mask = torch.arange(size) < torch.tensor([len(rows) for rows in own]).unsqueeze(1)
        return collated(self.dataset, torch.tensor(padded), collate_fn), mask


def unit_of(dataset: Any, unit: Unit | None) -> Unit:
    """The unit of the batches that are read from ``dataset``; ``unit`` is what was declared.

    Raises:
        DpcheckError: if a data set of users is declared to have another unit, or ``unit`` is not a :class:`Unit`.
    """
    if unit is not None and not isinstance(unit, Unit):
        raise DpcheckError(f"unit is {a_type(unit)}, not a dpcheck.Unit", where="unit")
    if isinstance(dataset, UserData):
        if unit not in (None, dataset.unit):
            raise DpcheckError(
                f"the declared unit is {unit}, but that of the data set is {dataset.unit}",
                where="unit",
                next="leave unit out; the layout of records goes to dpcheck.by_user(..., unit=...)",
            )
        return dataset.unit
    return unit or Unit()


def read(dataset: Any, indices: Tensor, collate_fn: CollateFn | None) -> Any:
    """The items ``indices`` as one batch: of records, or of users."""
    if isinstance(dataset, UserData):
        return dataset.batch(indices, collate_fn)
    return collated(dataset, indices, collate_fn)


def collated(dataset: Any, indices: Tensor, collate_fn: CollateFn | None) -> Any:
    """The records ``indices`` as one batch."""
    if collate_fn is None and type(dataset) is TensorDataset:
        return [t[indices.to(t.device)] for t in dataset.tensors]
    records = [dataset[i] for i in indices.tolist()]
    try:
        return (collate_fn or default_collate)(records)
    except RuntimeError as error:
        odd = _other_shape(records, indices.tolist()) if collate_fn is None else None
        if odd is None:
            raise
        raise DpcheckError(
            f"{odd}: records of different shapes cannot be put into one batch as they are",
            where="dataset",
            next="pad them with collate_fn=dpcheck.bucketed(collate, length=..., sizes=..., pad=...), or cut them",
        ) from error


def _other_shape(records: list[Any], indices: list[int]) -> str | None:
    """The first record that has other shapes than the first."""
    shapes = [[tuple(t.shape) for t in pytree.tree_leaves(r) if isinstance(t, Tensor | np.ndarray)] for r in records]
    for i, own in enumerate(shapes):
        for before, now in zip(shapes[0], own, strict=False):
            if before != now:
                return f"record {indices[0]} has a tensor of shape {list(before)}, record {indices[i]} of {list(now)}"
    return None


def map_style(dataset: Any) -> Any:
    """``dataset``, if each of its records can be drawn on its own.

    Raises:
        DpcheckError: for a loader, a sampler, an iterable data set, a tuple of tensors, an empty data set.
    """
    if isinstance(dataset, (DataLoader, Sampler)):
        raise DpcheckError(
            f"dataset is {a_type(dataset)}, whose batches are not the Poisson samples that are accounted for",
            where="dataset",
            next="pass the data set itself (and collate_fn=...); PrivacyEngine draws the samples",
        )
    if isinstance(dataset, tuple) and dataset and all(isinstance(t, Tensor) for t in dataset):
        raise DpcheckError(
            "dataset is a tuple of tensors, whose items are not records",
            where="dataset",
            next="pass torch.utils.data.TensorDataset(*tensors)",
        )
    map_like = isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")
    if isinstance(dataset, (IterableDataset, dict)) or not map_like:
        raise DpcheckError(
            f"dataset is {a_type(dataset)}, from which single records cannot be drawn by number",
            where="dataset",
            next="pass a map-style data set: __len__() and __getitem__(i) for i from 0",
        )
    if len(dataset) == 0:
        raise DpcheckError("the data set is empty", where="dataset")
    return dataset


def _labels(users: Any) -> list[Any]:
    """One label a record, of one type that compares by value: 1 and "1", or two objects, would be two users."""
    labels = users.tolist() if isinstance(users, Tensor | np.ndarray) else list(users)
    labels = [label.item() if isinstance(label, np.generic) else label for label in labels]
    for row, label in enumerate(labels):
        if label is None or label != label:
            raise DpcheckError(f"record {row} has no user: its label is {label!r}", where="users")
        if not isinstance(label, int | str | bytes | float) or type(label) is not type(labels[0]):
            raise DpcheckError(
                f"the label of record {row} is of type {type(label).__name__}, that of record 0 of type "
                f"{type(labels[0]).__name__}: the records of a user might not be found to be of the same user",
                where="users",
                next="give one number or string for each record, all of one type",
            )
    return labels
