"""What an accountant answers, and the checks of what it is asked."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpcheck.errors import DpcheckError

# Of one user: the cost grows with their square.
MOST_RECORDS = 64


@dataclass(frozen=True)
class Bounds:
    """A guarantee: ``lower <= truth <= upper``. ``upper`` is what is quoted.

    Attributes:
        lower, upper: bounds of epsilon (or of delta, where delta was asked for).
        delta: the delta (or epsilon) at which they hold.
        method: how they were found.
    """

    lower: float
    upper: float
    delta: float
    method: str


@dataclass(frozen=True)
class Phase:
    """``steps`` steps of the subsampled Gaussian mechanism with the same noise and rate.

    Attributes:
        noise_multiplier: standard deviation of the noise on the sum, relative to the clipping norm.
        sample_rate: probability of a record to be drawn; of samples of fixed size, their share of all records.
        sampling: "poisson": each record on its own; or "fixed-size": a uniform subset of the records.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    sampling: str = "poisson"


@dataclass(frozen=True)
class Unit:
    """What two neighbouring data sets differ in.

    Attributes:
        adjacency: "add-remove", or "replace-one": a unit gives way to another in its place.
        records: how many records a unit has, at most: those of a user, each drawn and clipped on its own.
    """

    adjacency: str = "add-remove"
    records: int = 1


def check_unit(adjacency: Any, records: Any) -> Unit:
    """The unit.

    Raises:
        DpcheckError: naming the value that is out of range.
    """
    if adjacency not in ("add-remove", "replace-one"):
        raise DpcheckError(
            f"adjacency={adjacency!r} is not known", where="adjacency", next='pass "add-remove" or "replace-one"'
        )
    if isinstance(records, bool) or not isinstance(records, int) or not 1 <= records <= MOST_RECORDS:
        raise DpcheckError(f"records={records!r} is not a whole number from 1 to {MOST_RECORDS}", where="records")
    return Unit(str(adjacency), int(records))


def check_phase(phase: Phase) -> Phase:
    """The phase with plain numbers.

    Raises:
        DpcheckError: naming the value that is out of range.
    """
    sigma = number("noise_multiplier", phase.noise_multiplier)
    rate = number("sample_rate", phase.sample_rate)
    if sigma < 0:
        raise DpcheckError(f"noise_multiplier={sigma!r} is negative", where="noise_multiplier")
    if not 0 < rate <= 1:
        raise DpcheckError(f"sample_rate={rate!r} is not in (0, 1]", where="sample_rate")
    steps: Any = phase.steps
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 0:
        raise DpcheckError(f"steps={steps!r} is not a whole number, zero or more", where="steps")
    if phase.sampling not in ("poisson", "fixed-size"):
        raise DpcheckError(
            f"sampling={phase.sampling!r} is not known", where="sampling", next='pass "poisson" or "fixed-size"'
        )
    return Phase(sigma, rate, int(steps), phase.sampling)


def check_delta(delta: Any) -> float:
    """delta in (0, 1).

    Raises:
        DpcheckError: naming its value.
    """
    value = number("delta", delta)
    if not 0 < value < 1:
        raise DpcheckError(f"delta={value!r} is not in (0, 1)", where="delta", next="use less than 1 / len(dataset)")
    return value


def check_epsilon(epsilon: Any) -> float:
    """epsilon, zero or more.

    Raises:
        DpcheckError: naming its value.
    """
    value = number("epsilon", epsilon)
    if value < 0:
        raise DpcheckError(f"epsilon={value!r} is negative", where="epsilon")
    return value


def check_rate(rate: Any) -> float:
    """A probability.

    Raises:
        DpcheckError: naming its value.
    """
    value = number("false_positive_rate", rate)
    if not 0 <= value <= 1:
        raise DpcheckError(f"false_positive_rate={value!r} is not in [0, 1]", where="false_positive_rates")
    return value


def seen(phases: Sequence[Phase], records: int) -> float:
    """The probability that one of ``records`` records is drawn in a step without noise."""
    rates = [(phase.sample_rate, phase.steps * records) for phase in phases if not phase.noise_multiplier]
    if any(rate == 1 for rate, _ in rates):
        return 1.0
    return -math.expm1(math.fsum(draws * math.log1p(-rate) for rate, draws in rates))


def number(name: str, value: Any) -> float:
    """A finite float.

    Raises:
        DpcheckError: naming the value.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise DpcheckError(f"{name}={value!r} is not a finite number", where=name)
    return float(value)
