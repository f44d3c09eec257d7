"""Reading the parts of a draw in worker processes, ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dpcheck.errors import DpcheckError
from dpcheck.records import CollateFn, read


class Reader:
    """Reads chunks of items, each as one batch; the same batches in the same order whatever the workers.

    Args:
        dataset: map-style; with workers it is copied to them.
        collate_fn: as of :class:`dpcheck.engine.sampling.Loader`.
        num_workers: processes that read ahead and live as long as this object; 0 reads here, when a batch is needed.
        pin_memory: batches in page-locked memory, where there is an accelerator.

    Raises:
        DpcheckError: for numbers of workers that are none.
    """

    def __init__(self, dataset: Any, collate_fn: CollateFn | None, num_workers: int, pin_memory: bool) -> None:
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
            raise DpcheckError(f"num_workers={num_workers!r} is not a whole number, zero or more", where="num_workers")
        if not isinstance(pin_memory, bool):
            raise DpcheckError(f"pin_memory={pin_memory!r} is neither True nor False", where="pin_memory")
        self._parts, self._current = _Parts(dataset, collate_fn), _Current()
        self._loader: DataLoader[Any] = DataLoader(
            self._parts,
            batch_size=None,
            sampler=self._current,
            collate_fn=_same,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory and torch.accelerator.is_available(),
        )
        self._plain = num_workers == 0 and not self._loader.pin_memory

    def batches(self, chunks: tuple[Tensor, ...]) -> Iterator[Any]:
        """The batch of each chunk, int64 [n]."""
        if self._plain or not chunks:
            yield from map(self._parts.__getitem__, chunks)
            return
        self._current.chunks = chunks
        yield from self._loader


class _Parts(Dataset[Any]):
    """Item ``chunk`` is the batch of its items."""

    def __init__(self, dataset: Any, collate_fn: CollateFn | None) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn

    def __getitem__(self, chunk: Tensor) -> Any:
        return read(self.dataset, chunk, self.collate_fn)


class _Current(Sampler[Tensor]):
    """The chunks of the draw that is being read."""

    chunks: tuple[Tensor, ...] = ()

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


def _same(batch: Any) -> Any:
    return batch
