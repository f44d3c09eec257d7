"""Samples that are not Poisson, or not at the rate that is accounted for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from dpcheck.engine import settings, trainer

from faults.base import Change, Fault


def _other(draw: Any) -> Change:
    """``draw(original, n, expected, stream)`` in the place of ``poisson``."""
    return lambda original: lambda n, expected, stream: draw(original, n, expected, stream)


def _fixed_size(original: Any, n: int, expected: int, stream: Any) -> Any:
    order = np.argsort(stream.words(n), kind="stable")
    return torch.from_numpy(np.sort(order[:expected]))


_ORDER: list[int] = []


def _shuffled(original: Any, n: int, expected: int, stream: Any) -> Any:
    if len(_ORDER) < expected or max(_ORDER, default=0) >= n:
        _ORDER[:] = np.argsort(stream.words(n), kind="stable").tolist()
    taken, _ORDER[:expected] = _ORDER[:expected], []
    return torch.tensor(sorted(taken))


def _in_order(original: Any, n: int, expected: int, stream: Any) -> Any:
    start = int(stream.words(1)[0] % np.uint64(n))
    return (torch.arange(expected) + start).remainder(n).sort().values


def _twice(original: Any, n: int, expected: int, stream: Any) -> Any:
    return original(n, min(n, 2 * expected), stream)


def _tenth_more(original: Any, n: int, expected: int, stream: Any) -> Any:
    return original(10 * n, min(10 * n, 11 * expected), stream)[: 10 * n].remainder(n).unique()


def _never_empty(original: Any, n: int, expected: int, stream: Any) -> Any:
    drawn = original(n, expected, stream)
    while not len(drawn):
        drawn = original(n, expected, stream)
    return drawn


def _cut(original: Any, n: int, expected: int, stream: Any) -> Any:
    return original(n, expected, stream)[: max(1, expected)]


def _pairs(original: Any, n: int, expected: int, stream: Any) -> Any:
    first = original((n + 1) // 2, (expected + 1) // 2, stream) * 2
    both = torch.cat([first, first + 1])
    return both[both < n].sort().values


def _repeated(original: Any, n: int, expected: int, stream: Any) -> Any:
    words = stream.words(expected)
    return torch.from_numpy((words % np.uint64(n)).astype(np.int64)).sort().values


def _in_float32(original: Any, n: int, expected: int, stream: Any) -> Any:
    uniform = (stream.words(n) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    return torch.from_numpy(np.flatnonzero(uniform < np.float32(expected / n)))


def _last_dropped(original: Any, n: int, expected: int, stream: Any) -> Any:
    drawn = original(n, expected, stream)
    return drawn[drawn < n - n // 10]


def _one_size(original: Any) -> Any:
    """The rate of a loader that leaves out its last batch, accounted for all records."""

    def record(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        return replace(found, dataset_size=found.dataset_size + found.dataset_size // 5)

    return record


FAULTS = [
    Fault("samples of fixed size", trainer, "poisson", _other(_fixed_size), "opacus #80"),
    Fault("shuffled batches accounted for as Poisson", trainer, "poisson", _other(_shuffled), "opacus #128"),
    Fault("neighbouring records in order", trainer, "poisson", _other(_in_order)),
    Fault("twice the rate", trainer, "poisson", _other(_twice)),
    Fault("a tenth more than the rate", trainer, "poisson", _other(_tenth_more)),
    Fault("empty draws are drawn again", trainer, "poisson", _other(_never_empty), "opacus #161"),
    Fault("large draws are cut", trainer, "poisson", _other(_cut)),
    Fault("records are drawn in pairs", trainer, "poisson", _other(_pairs)),
    Fault("records are drawn with replacement", trainer, "poisson", _other(_repeated)),
    Fault("the rate is rounded up to a multiple of 2**-24", trainer, "poisson", _other(_in_float32),
          "torch.rand(float32) < q"),
    Fault("the last tenth is never drawn", trainer, "poisson", _other(_last_dropped)),
    Fault("q from the wrong size of the data set", settings.Settings, "record", _one_size, "truncated loader"),
]  # fmt: skip
