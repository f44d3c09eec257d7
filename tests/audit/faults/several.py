"""Faults of several ranks; they show where there are two or more."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch
from dpcheck.engine import clipping, ranks, trainer
from dpcheck.engine.sampling import LogicalBatch, poisson
from dpcheck.engine.streams import KeyedStream
from dpcheck.engine.summing import Seen
from torch import Tensor

from faults.base import Change, Fault
from faults.clipping import _aggregate

_dist: Any = torch.distributed


def _summed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    if _dist.is_initialized():
        for value in values.values():
            _dist.all_reduce(value)
    return values


def _own_noise(share: float, *, one_key: bool = False) -> Change:
    """Each rank adds ``share`` of the noise to what it clipped; the sum is taken afterwards."""

    def change(original: Any) -> Any:
        def sum_of_ranks(self: Any, world: Any, indices: Any, mechanism: Any, norm: float) -> Any:
            total: dict[str, Tensor] = {}

            def part() -> Seen:
                own, seen = self.sum(world.own(indices), mechanism, norm)
                total.update(own)
                return seen

            seen = Seen.joined(world.every(part))
            stream = KeyedStream(hashlib.sha256(b"one key").digest() if one_key else os.urandom(32))
            for name, t in total.items():
                noise = torch.from_numpy(stream.normals(t.numel())).view(t.shape) * mechanism.std * share
                total[name] = (t + noise).to(t.dtype)
            total = _summed(total)
            mechanism.std = 0.0
            return total, seen

        return sum_of_ranks

    return change


def _reduced(change_one: Any) -> Change:
    def change(original: Any) -> Any:
        def reduced(self: Any, total: Any) -> Any:
            own = {name: t.clone() for name, t in total.items()}
            return change_one(self, own, original(self, total))

        return reduced

    return change


def _times(factor: float) -> Change:
    return _reduced(lambda world, own, total: {name: t * factor for name, t in total.items()})


def _lost(world: Any, own: Any, total: Any) -> Any:
    return own


def _twice(world: Any, own: Any, total: Any) -> Any:
    # On rank 0, where the sum is.
    return {name: 2 * t - own[name] for name, t in total.items()}


def _clipped_sum(world: Any, own: Any, total: Any) -> Any:
    norm = sum(float(t.square().sum()) for t in total.values()) ** 0.5
    return {name: t / max(1.0, norm) for name, t in total.items()}


def _every_record(original: Any) -> Any:
    return lambda self, indices: indices


def _own_draws(original: Any) -> Any:
    def draw(self: Any) -> Any:
        s, step = self.settings, self.steps_taken
        drawn = poisson(s.dataset_size, s.expected_batch_size, self._streams.stream("sampling", step))
        return LogicalBatch(step, drawn)

    return draw


def _own_copy(original: Any) -> Any:
    """What rank 0 releases stays there; the others take the sum without noise, of their own records."""

    def published(self: Any, release: Any, like: Any) -> Any:
        own = {name: t.clone() for name, t in like.items()}
        released = original(self, release, like)
        return own if self.rank else released

    return published


def _local_divisor(original: Any) -> Any:
    """The sum of all ranks divided by what one rank expects."""

    def published(self: Any, release: Any, like: Any) -> Any:
        return {name: t * self.size for name, t in original(self, release, like).items()}

    return published


R = ranks.Ranks
FAULTS = [
    Fault("every rank adds the whole noise", trainer.Summer, "sum_of_ranks", _own_noise(1.0)),
    Fault("every rank adds its part of the noise, by the number of ranks", trainer.Summer, "sum_of_ranks",
          _own_noise(0.5), "noise divided by the ranks, with different seeds"),
    Fault("every rank adds the same noise", trainer.Summer, "sum_of_ranks", _own_noise(0.5**0.5, one_key=True),
          "ranks with equal seeds"),
    Fault("a rank keeps its sum without noise", R, "published", _own_copy),
    Fault("the records of a rank are lost", R, "reduced", _reduced(_lost)),
    Fault("the records of a rank count twice", R, "reduced", _reduced(_twice)),
    Fault("the mean over ranks in the place of the sum", R, "reduced", _times(0.5),
          "DistributedDataParallel averages"),
    Fault("every rank reads the whole draw", R, "own", _every_record),
    Fault("each rank draws a sample of its own", trainer.PrivacyEngine, "_draw", _own_draws),
    Fault("the divisor is that of one rank's batch", R, "published", _local_divisor, "division by a local batch"),
    Fault("the sum of all ranks is clipped", R, "reduced", _reduced(_clipped_sum)),
    Fault("each rank clips the sum of its records", clipping.Clipper, "__call__", _aggregate),
]  # fmt: skip
