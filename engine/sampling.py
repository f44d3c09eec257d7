"""Poisson sampling, and cutting what was drawn into physical batches of one size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dpcheck.engine.streams import Stream
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset, default_collate

from dpcheck import inputs
from dpcheck.errors import DpcheckError

CollateFn = Callable[[list[Any]], Any]


@dataclass(frozen=True, eq=False)
class LogicalBatch:
    """What one step drew. Only the engine makes them, and each is good for one ``engine.step``.

    Attributes:
        step: number of the step, from 0.
        indices: int64 [n], ascending. n is random and may be 0; neither it nor the indices are private.
    """

    step: int
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class PhysicalBatch:
    """What the clipper sees at once.

    Attributes:
        data: a pytree with ``len(weights)`` samples.
        weights: float32 [B]: 1 for a sample, 0 for padding (copies of the first sample, at the end).
        real: how many are samples.
    """

    data: Any
    weights: Tensor
    real: int


def poisson(dataset_size: int, expected: int, stream: Stream) -> Tensor:
    """Each index of ``range(dataset_size)`` with probability ``expected / dataset_size``, independently.

    The probability is rounded down by less than 2**-64 (comparing ``torch.rand`` in float32 rounds 1e-7 up by 19 %); a
    lower rate costs less privacy.

    Returns:
        int64 [n], ascending; n is random and may be 0.
    """
    if expected == dataset_size:
        return torch.arange(dataset_size)
    threshold = np.uint64((expected << 64) // dataset_size)
    return torch.from_numpy(np.flatnonzero(stream.words(dataset_size) < threshold))


def physical_size(expected: int, dataset_size: int, limit: int = 256) -> int:
    """A physical batch size at most ``limit``, with which a draw is seldom more padding than it must be.

    It divides the expected size plus two standard deviations into equal parts.
    """
    likely = min(dataset_size, expected + 2 * math.sqrt(expected * (1 - expected / dataset_size)))
    return math.ceil(likely / math.ceil(likely / limit))


class Loader:
    """Reads records of a map-style data set into physical batches.

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        collate_fn: list of records -> batch; ``torch.utils.data.default_collate`` if None.
        size: samples in a physical batch.

    Raises:
        DpcheckError: if the data set is no map-style data set, or is empty.
    """

    def __init__(self, dataset: Any, collate_fn: CollateFn | None, size: int) -> None:
        self.dataset, self.collate_fn, self.size = map_style(dataset), collate_fn, size

    def chunks(self, indices: Tensor) -> tuple[Tensor, ...]:
        """``indices`` in order, at most ``size`` at a time; none at all if there are none."""
        return torch.split(indices, self.size) if len(indices) else ()

    def read(self, indices: Tensor) -> PhysicalBatch:
        """The records ``indices`` (at least 1, at most ``size``), padded to ``size``.

        Raises:
            DpcheckError: if ``collate_fn`` does not return one sample for each record.
        """
        data, real = self.collate(indices), len(indices)
        got = inputs.batch_size(data)
        if got != real:
            raise DpcheckError(
                f"collate_fn returned {got} samples for {real} records; the guarantee is for records, one sample each",
                where="collate_fn",
                next="return exactly one sample for each record, with all that belongs to it on axis 0",
            )
        if real < self.size:
            data = inputs.take(data, [*range(real), *[0] * (self.size - real)])
        return PhysicalBatch(data, (torch.arange(self.size) < real).float(), real)

    def collate(self, indices: Tensor) -> Any:
        """The records ``indices`` as one batch, without padding."""
        if self.collate_fn is None and type(self.dataset) is TensorDataset:
            return [t[indices.to(t.device)] for t in self.dataset.tensors]
        collate = self.collate_fn or default_collate
        return collate([self.dataset[i] for i in indices.tolist()])


def map_style(dataset: Any) -> Any:
    """``dataset``, if each of its records can be drawn on its own.

    Raises:
        DpcheckError: for a loader, a sampler, an iterable data set, a tuple of tensors, an empty data set.
    """
    if isinstance(dataset, (DataLoader, Sampler)):
        raise DpcheckError(
            f"dataset is a {type(dataset).__name__}, whose batches are not the Poisson samples that are accounted for",
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
            f"dataset is a {type(dataset).__name__}, from which single records cannot be drawn by number",
            where="dataset",
            next="pass a map-style data set: __len__() and __getitem__(i) for i from 0",
        )
    if len(dataset) == 0:
        raise DpcheckError("the data set is empty", where="dataset")
    return dataset
