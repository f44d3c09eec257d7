"""Several processes that train one model: replicas, of which each clips its share of one Poisson sample.

Rank 0 draws the sample of each step, adds the noise and keeps the ledger's file; the others use no random stream. The
sum of all clipped gradients goes to rank 0, and what it releases to all, so that a record counts on one rank, noise is
added once, and every replica takes the same step. That is one step of the mechanism of a single process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dpcheck.errors import DpcheckError

# Untyped, for builds of torch without it.
_dist: Any = torch.distributed
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The default process group of torch.distributed, or this process alone. Every method is called by all ranks.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    rank: int
    size: int

    @classmethod
    def here(cls) -> Ranks:
        """What torch.distributed says now."""
        if _dist.is_available() and _dist.is_initialized():
            return cls(_dist.get_rank(), _dist.get_world_size())
        return cls(0, 1)

    def refuse_change(self) -> None:
        """Raises DpcheckError if the world is another one than when the engine was made."""
        now = Ranks.here()
        if now != self:
            raise DpcheckError(
                f"PrivacyEngine was made as rank {self.rank} of {self.size}, and this is rank {now.rank} of {now.size}",
                next="call torch.distributed.init_process_group() first, then make PrivacyEngine",
            )

    def every(self, do: Callable[[], T]) -> list[T]:
        """What ``do`` returns on each rank, on every rank. What it raises on one is raised on all, so that none waits.

        Raises:
            DpcheckError: on the ranks where ``do`` did not fail, naming one where it did.
        """
        if self.size == 1:
            return [do()]
        value, error = _attempt(do)
        found: list[Any] = [None] * self.size
        _dist.all_gather_object(found, (value, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, message) in enumerate(found):
            if message is not None:
                raise DpcheckError(f"rank {rank} failed, and no rank goes on: {message}")
        return [value for value, _ in found]

    def first(self, do: Callable[[], T]) -> T:
        """What ``do`` returns on rank 0, on every rank; the others do not call it.

        Raises:
            DpcheckError: on the others, if it failed on rank 0.
        """
        if self.size == 1:
            return do()
        value, error = _attempt(do) if self.rank == 0 else (None, None)
        sent: list[Any] = [value, None if error is None else f"{type(error).__name__}: {error}"]
        _dist.broadcast_object_list(sent, src=0)
        if error is not None:
            raise error
        if sent[1] is not None:
            raise DpcheckError(f"rank 0 failed, and no rank goes on: {sent[1]}")
        result: T = sent[0]
        return result

    def agree(self, values: Mapping[str, Any]) -> None:
        """Raises DpcheckError on all ranks if one of ``values`` is not the same on all of them."""
        for rank, others in enumerate(self.every(lambda: {name: repr(value) for name, value in values.items()})):
            for name, shown in others.items():
                if shown != repr(values[name]):
                    raise DpcheckError(
                        f"{name} is {shown} on rank {rank} and {values[name]!r} on rank {self.rank}",
                        where=name,
                        next="make PrivacyEngine with the same arguments and the same data set on every rank",
                    )

    def own(self, indices: Tensor) -> Tensor:
        """The part of ``indices`` that is this rank's; each is on one rank."""
        return torch.tensor_split(indices, self.size)[self.rank]

    def equal(self, model: nn.Module) -> None:
        """Parameters and buffers become those of rank 0.

        Raises:
            DpcheckError: for a model that is wrapped, or whose parameters are sharded.
        """
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            raise DpcheckError(
                f"the model is wrapped in {type(model).__name__}, which would sum gradients that are not clipped",
                where="model",
                next="pass the model itself (model.module): PrivacyEngine sums the clipped gradients of all ranks",
            )
        sharded = [name for name, p in model.named_parameters() if type(p).__name__ == "DTensor" or hasattr(p, "_spec")]
        if sharded:
            raise DpcheckError(
                f"the parameter {sharded[0]!r} is sharded over ranks (DTensor); each rank must hold the whole model",
                where=sharded[0],
                next="do not call fully_shard(model)",
            )
        if self.size > 1:
            self._agree_on_forms(model)
            for tensor in (*model.parameters(), *model.buffers()):
                _dist.broadcast(tensor.detach(), src=0)

    def _agree_on_forms(self, model: nn.Module) -> None:
        state = (*model.named_parameters(), *model.named_buffers())
        self.agree({"the model": {name: (tuple(t.shape), t.dtype) for name, t in state}})

    def reduced(self, total: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum of ``total`` over all ranks, on rank 0; elsewhere nothing that has a meaning."""
        if self.size == 1:
            return dict(total)
        return _flat(total, lambda flat: _dist.reduce(flat, dst=0))

    def published(self, release: Callable[[], dict[str, Tensor]], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What ``release`` returns on rank 0, by name as ``like`` and in its shapes, on all ranks."""
        if self.size == 1:
            return release()
        released: dict[str, Tensor] = {}

        def dtypes() -> dict[str, torch.dtype]:
            released.update(release())
            return {name: t.dtype for name, t in released.items()}

        for name, dtype in self.first(dtypes).items():
            released.setdefault(name, torch.empty_like(like[name], dtype=dtype))
        return _flat(released, lambda flat: _dist.broadcast(flat, src=0))


def _attempt(do: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return do(), None
    except Exception as error:
        return None, error


def _flat(tensors: Mapping[str, Tensor], collective: Callable[[Tensor], Any]) -> dict[str, Tensor]:
    """The tensors after a collective on them, of which there is one for each dtype."""
    done: dict[str, Tensor] = {}
    for dtype in dict.fromkeys(t.dtype for t in tensors.values()):
        names = [name for name, t in tensors.items() if t.dtype == dtype]
        flat = torch.cat([tensors[name].reshape(-1) for name in names])
        collective(flat)
        parts = flat.split([tensors[name].numel() for name in names])
        done |= {name: part.view(tensors[name].shape) for name, part in zip(names, parts, strict=True)}
    return {name: done[name] for name in tensors}
