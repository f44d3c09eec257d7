"""Lower bounds of epsilon from one run: canaries that were in or out by the toss of a coin, and guesses which.

* Against (epsilon, delta): theorem 5.2 of Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846). It needs no assumption
  about the mechanism but that the coins were fair and independent.
* Against a trade-off function f: the recursion of Mahloujifar, Melis and Chaudhuri 2024 (arXiv 2410.22235, algorithm 2
  with two outcomes), tighter where the mechanism is known to be like a Gaussian one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from dpcheck.engine.auditing.exact import Bools, Floats
from scipy import special

# Of the canaries, for how many a guess is made: the surest ones. The best of these is taken, and paid for.
_SHARES = (0.02, 0.1, 0.3, 1.0)
_LARGEST = 60.0


@dataclass(frozen=True)
class Guesses:
    """The outcome of one attack.

    Attributes:
        canaries: m, each in with probability 1/2.
        made: r, how many guesses were made.
        right: v of them were right.
    """

    canaries: int
    made: int
    right: int


def guess(scores: Floats, present: Bools) -> tuple[Guesses, ...]:
    """Of the canaries with the highest scores "in" and of as many with the lowest "out", by share of all.

    Args:
        scores: [m], larger for canaries that are more likely to be in.
        present: bool [m].
    """
    order, m = np.argsort(scores, kind="stable"), len(scores)
    found = []
    for share in _SHARES:
        half = max(1, int(m * share) // 2)
        right = int(present[order[m - half :]].sum()) + int((~present[order[:half]]).sum())
        found.append(Guesses(m, 2 * half, right))
    return tuple(dict.fromkeys(found))


def epsilon_lower(guesses: Sequence[Guesses], delta: float, confidence: float) -> float:
    """The largest epsilon that is refuted at this confidence, 0 if none is."""
    level = (1 - confidence) / len(guesses)
    return max(_largest(lambda epsilon, g=g: p_value(g, epsilon, delta) <= level) for g in guesses)  # type: ignore[misc]


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Probability of so many right guesses or more, at most, if the run is (epsilon, delta)-DP (theorem 5.2)."""
    r, v = guesses.made, guesses.right
    rate = special.expit(epsilon)
    tail = 1.0 if v == 0 else float(special.bdtrc(v - 1, r, rate))
    # P[v > W >= v - i] / i, the largest over i: where delta's mass does the most harm.
    i = np.arange(1, v + 1)
    inside = special.bdtr(v - 1, r, rate) - np.where(
        v - i - 1 < 0, 0.0, special.bdtr(np.maximum(v - i - 1, 0), r, rate)
    )
    harm = float((inside / i).max()) if v else 0.0
    return min(1.0, tail + 2 * guesses.canaries * delta * max(harm, 0.0))


def _largest(refuted: Callable[[float], bool]) -> float:
    low, high = 0.0, _LARGEST
    if not refuted(low):
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


TradeOff = Callable[[float], float]


def refuted(guesses: Guesses, trade_off: TradeOff, level: float) -> bool:
    """Whether ``trade_off`` cannot hold, if so many right guesses have probability ``level`` or more.

    Args:
        trade_off: f, or anything below it; f(x) is the least rate of false negatives at a rate x of false positives.
    """
    m, r, v = guesses.canaries, guesses.made, guesses.right
    # Probabilities that a given canary is guessed right (wrong) and that at least i guesses of all are right.
    right, wrong = level * v / m, level * (r - v) / m
    for i in range(v - 1, -1, -1):
        least = max(wrong, trade_off(1 - right))
        right, wrong = right + i / (r - i) * (least - wrong) if i < r else right, least
    return right + wrong > r / m


def gaussian(mu: float) -> TradeOff:
    """The trade-off function of N(0, 1) against N(mu, 1)."""
    return lambda x: float(special.ndtr(special.ndtri(min(1.0, max(0.0, 1 - x))) - mu))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of N(0, 1) against N(mu, 1) at ``delta`` (Dong, Roth and Su 2022, corollary 1)."""

    def spends_more(epsilon: float) -> bool:
        first = special.ndtr(-epsilon / mu + mu / 2)
        return bool(first - math.exp(epsilon + special.log_ndtr(-epsilon / mu - mu / 2)) > delta)

    return _largest(spends_more) if mu > 0 else 0.0


def gaussian_lower(guesses: Sequence[Guesses], delta: float, confidence: float) -> float:
    """Epsilon of the most private Gaussian mechanism that is not refuted: a lower bound for runs that are like one."""
    level = (1 - confidence) / len(guesses)
    mu = max(_largest(lambda mu, g=g: mu == 0 or refuted(g, gaussian(mu), level)) for g in guesses)  # type: ignore[misc]
    return gaussian_epsilon(mu, delta)
