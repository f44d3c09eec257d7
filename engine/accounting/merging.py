"""Many different phases as a few: each is replaced by one that costs no less, and by one that costs no more.

More noise is post-processing of less: normal noise is a sum of independent normal ones, and Laplace noise of scale b is
that of a smaller scale plus an independent variable. A higher rate makes the mixtures of
:mod:`dpcheck.engine.accounting.pairs` stochastically larger, so that the half-lines, on which a divergence is attained,
get more mass under P and less under Q. So of some phases the least noise with the highest rate dominates, and the most
noise with the lowest rate is dominated, and the same holds of compositions (Zhu, Dong and Wang 2022, theorem 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from dpcheck.engine.accounting.bounds import Phase

_Choice = Callable[[Iterable[float]], float]
# Each different phase costs some ten milliseconds.
_MOST = 200
_FINEST = 1e-4


def merged(phases: Sequence[Phase]) -> tuple[list[Phase], list[Phase]]:
    """At most about 200 phases that cost no less together, and as many that cost no more; the same if they are few."""
    sampled = {replace(phase, steps=0, cut=0.0) for phase in phases if not _plain(phase)}
    if len(sampled) <= _MOST:
        return list(phases), list(phases)
    width = _FINEST
    while len({_cell(phase, width) for phase in sampled}) > _MOST:
        width *= 1.1
    groups: dict[object, list[Phase]] = {}
    for phase in phases:
        groups.setdefault(phase if _plain(phase) else _cell(phase, width), []).append(phase)
    return [_of(group, min, max) for group in groups.values()], [_of(group, max, min) for group in groups.values()]


def _plain(phase: Phase) -> bool:
    return phase.sample_rate == 1 and phase.mechanism == "gaussian"


def _cell(phase: Phase, width: float) -> tuple[object, ...]:
    sigma, rate = math.log(phase.noise_multiplier), math.log(phase.sample_rate)
    return phase.sampling, phase.mechanism, math.floor(sigma / width), math.floor(rate / width)


def _of(group: list[Phase], noise: _Choice, rate: _Choice) -> Phase:
    return replace(
        group[0],
        noise_multiplier=noise([phase.noise_multiplier for phase in group]),
        sample_rate=rate([phase.sample_rate for phase in group]),
        steps=sum(phase.steps for phase in group),
        cut=0.0,
    )
