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
# Of Laplace noise: exp of its inverse must be a number.
LEAST_SCALE = 0.01


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
    """``steps`` steps of a subsampled mechanism with the same noise and rate.

    Attributes:
        noise_multiplier: standard deviation of the noise on the sum, relative to the clipping norm (of
            ``mechanism="laplace"``: its scale, relative to how far one record can move the number).
        sample_rate: probability of a record to be drawn; of samples of fixed size, their share of all records.
        sampling: "poisson": each record on its own; or "fixed-size": a uniform subset of the records.
        mechanism: "gaussian", or "laplace" for one number.
        cut: at least the probability that a step draws more records than are used, of Poisson samples that are cut to
            a largest size; see :func:`cut_probability`.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    sampling: str = "poisson"
    mechanism: str = "gaussian"
    cut: float = 0.0


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
    if phase.mechanism not in ("gaussian", "laplace"):
        raise DpcheckError(
            f"mechanism={phase.mechanism!r} is not known", where="mechanism", next='pass "gaussian" or "laplace"'
        )
    if phase.mechanism == "laplace" and 0 < sigma < LEAST_SCALE:
        raise DpcheckError(
            f"noise_multiplier={sigma!r} is too little to account for", where="noise_multiplier", next="pass 0 for none"
        )
    cut = check_rate(phase.cut, "cut")
    if cut and phase.sampling != "poisson":
        raise DpcheckError(f"cut={cut!r} is for Poisson samples, not for {phase.sampling!r}", where="cut")
    return Phase(sigma, rate, int(steps), phase.sampling, phase.mechanism, cut)


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


def check_rate(rate: Any, name: str) -> float:
    """A probability.

    Raises:
        DpcheckError: naming its value.
    """
    value = number(name, rate)
    if not 0 <= value <= 1:
        raise DpcheckError(f"{name}={value!r} is not in [0, 1]", where=name)
    return value


def seen(phases: Sequence[Phase], records: int) -> float:
    """At most the probability that one of ``records`` records is drawn, and not left out, in a step without noise."""
    bare = [phase for phase in phases if not phase.noise_multiplier]
    left_out = math.fsum(phase.steps * phase.cut for phase in bare)
    if any(phase.sample_rate == 1 for phase in bare):
        return max(0.0, 1.0 - left_out)
    log = math.fsum(phase.steps * records * math.log1p(-phase.sample_rate) for phase in bare)
    return max(0.0, -math.expm1(log) - left_out)


def number(name: str, value: Any) -> float:
    """A finite float.

    Raises:
        DpcheckError: naming the value.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise DpcheckError(f"{name}={value!r} is not a finite number", where=name)
    return float(value)
