"""Poisson sampling, and cutting what was drawn into physical batches of one size."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dpcheck.engine.prefetch import Reader
from dpcheck.engine.streams import Stream
from torch import Tensor

from dpcheck import inputs
from dpcheck.bucketing import Bucketed
from dpcheck.errors import DpcheckError
from dpcheck.records import CollateFn, UserData, map_style, read
from dpcheck.unit import Unit, constants

log = logging.getLogger("dpcheck")

# Into which a physical batch of records of one length may be divided.
_PARTS = (1, 2, 4)


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
        unit: what one sample is; its items are users if ``dataset`` is one of users.
        num_workers, pin_memory: of :class:`dpcheck.engine.prefetch.Reader`.

    Raises:
        DpcheckError: if the data set is no map-style data set, or is empty.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: CollateFn | None,
        size: int,
        unit: Unit | None = None,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.collate_fn, self.size = map_style(dataset), collate_fn, size
        self.unit = unit or Unit()
        self._reader = Reader(self.dataset, collate_fn, num_workers, pin_memory)
        self._constants: tuple[str, ...] | None = None
        self._lengths: dict[int, int] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._told = False

    def chunks(self, indices: Tensor) -> tuple[Tensor, ...]:
        """``indices`` in order, at most ``size`` at a time; none at all if there are none.

        With :func:`dpcheck.bucketed`, those of one length are together, the longest first.
        """
        if not len(indices):
            return ()
        if not isinstance(self.collate_fn, Bucketed):
            return torch.split(indices, self.size)
        lengths = torch.tensor([self._length(i) for i in indices.tolist()])
        groups = [indices[lengths == length] for length in lengths.unique().flip(0)]
        return tuple(chunk for group in groups for chunk in torch.split(group, self.size))

    def _length(self, index: int) -> int:
        """To which a record is padded, all records of a user alike; of that record or user alone."""
        if index not in self._lengths:
            item, bucketed = self.dataset[index], self.collate_fn
            assert isinstance(bucketed, Bucketed)
            records = item if isinstance(self.dataset, UserData) else [item]
            self._lengths[index] = max(map(bucketed.size, records))
        return self._lengths[index]

    def _places(self, real: int) -> int:
        """Samples in a physical batch: the last of each length has fewer, for there are many such."""
        if not isinstance(self.collate_fn, Bucketed):
            return self.size
        return min(places for part in _PARTS if (places := -(-self.size // part)) >= real)

    def physical(self, indices: Tensor) -> Iterator[tuple[Tensor, PhysicalBatch]]:
        """Each chunk of ``indices`` and what :meth:`read` makes of it; read ahead if there are workers."""
        chunks = self.chunks(indices)
        for chunk, data in zip(chunks, self._reader.batches(chunks), strict=True):
            yield chunk, self._padded(self._accepted(data, chunk), len(chunk))

    def read(self, indices: Tensor) -> PhysicalBatch:
        """The records ``indices`` (at least 1, at most ``size``), padded to ``size``.

        With :func:`dpcheck.bucketed`, to ``size``, a half or a quarter of it.

        Raises:
            DpcheckError: if ``collate_fn`` does not return one sample for each record.
        """
        return self._padded(self.collate(indices), len(indices))

    def _padded(self, data: Any, real: int) -> PhysicalBatch:
        places = self._places(real)
        if real < places:
            data = inputs.take(data, [*range(real), *[0] * (places - real)])
        return PhysicalBatch(data, (torch.arange(places) < real).float(), real)

    def collate(self, indices: Tensor) -> Any:
        """The records ``indices`` as one batch with samples on axis 0, without padding.

        Raises:
            DpcheckError: as :meth:`read`; if a public constant of the batch is not what it was in the first batch, and
                for the first sample of that batch alone.
        """
        return self._accepted(read(self.dataset, indices, self.collate_fn), indices)

    def _accepted(self, batch: Any, indices: Tensor) -> Any:
        data, noun = self.unit.canonical(batch), self.unit.noun
        got, real = inputs.batch_size(data), len(indices)
        if got != real:
            raise DpcheckError(
                f"collate_fn returned {got} samples for {real} {noun}s; the guarantee is for {noun}s, one sample each",
                where="collate_fn",
                next=f"return exactly one sample for each {noun}, with all that belongs to it on axis 0, or declare "
                "where it is: unit=dpcheck.Unit(axes=..., rows=...)",
            )
        self._note_shapes(data)
        found = constants(data)
        if self._constants is None:
            alone = read(self.dataset, indices[:1], self.collate_fn) if found else None
            self._constants = constants(self.unit.canonical(alone)) if found else found
        self._refuse_other(found)
        return data

    def _note_shapes(self, data: Any) -> None:
        """Rows that differ in shape between batches were padded to something that other records decide about."""
        shapes = [tuple(t.shape[1:]) for _, t in inputs.tensors(data)]
        if isinstance(self.collate_fn, Bucketed) or self._told or len(self._shapes or shapes) != len(shapes):
            return
        for before, now in zip(self._shapes or shapes, shapes, strict=True):
            if before != now:
                self._told = True
                log.warning(
                    "collate_fn gives rows of shape %s in one batch and %s in another: padded to the longest %s of the "
                    "batch, they change with other %ss. If padding changes a loss or a gradient of the model, the "
                    "guarantee is false. dpcheck.bucketed(collate_fn, ...) pads each by its own length, and has few "
                    "shapes to plan for",
                    list(before), list(now), self.unit.noun, self.unit.noun,
                )  # fmt: skip
        self._shapes = shapes

    def _refuse_other(self, found: tuple[str, ...]) -> None:
        """What is the same in every batch is public; what is not is data that no pass sees."""
        first = self._constants or ()
        if first == found:
            return
        odd = next((b for a, b in zip(first, found, strict=False) if a != b), "")
        if odd.startswith("Public("):
            raise DpcheckError(
                "a tensor that is declared to have no record axis is not the same in every batch, so it is not public",
                where="Unit.axes",
                next="declare its record axis, or leave the tensor out of the batch and keep it in the model",
            )
        what = (
            f"the value {odd[:60]}, which is no tensor and differs" if odd else "values that are no tensors and differ"
        )
        raise DpcheckError(
            f"the batch holds {what} between batches: it may come from other records, and nothing checks it",
            where="collate_fn",
            next="return tensors with samples on axis 0 for what belongs to records, and constants for the rest",
        )
