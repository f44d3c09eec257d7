"""Several Gaussian queries that are answered together, from one sample of the records."""

from __future__ import annotations

import math

from dpcheck.engine.accounting.bounds import number

from dpcheck.errors import DpcheckError


def joint_noise(*noise_multipliers: float) -> float:
    """``(sum of z^-2)^-1/2``, rounded down: the noise multiplier of all of them as one query.

    Each answer divided by the standard deviation of its noise, they are one vector with noise N(0, I), and one record
    moves it by at most ``sqrt(sum of z^-2)``: a Gaussian mechanism, subsampled as a whole if the sample is (Andrew et
    al. 2021, arXiv 1905.03871, theorem 1, for a sum of gradients and a count).

    Args:
        noise_multipliers: standard deviation of the noise divided by the L2 sensitivity, of each query. 0 is no noise.

    Raises:
        DpcheckError: if one is no number, or negative, or there is none.
    """
    values = [number("noise_multiplier", z) for z in noise_multipliers]
    least = min(values, default=-1.0)
    if least < 0:
        raise DpcheckError(f"noise_multipliers={noise_multipliers!r} are not all numbers of at least 0")
    if least == 0:
        return 0.0
    return least / math.sqrt(math.fsum((least / z) ** 2 for z in values)) * (1 - 2.0**-50)


def other_noise(joint: float, one: float) -> float:
    """``(joint^-2 - one^-2)^-1/2``, rounded up: with it and ``one``, two queries have :func:`joint_noise` ``joint``.

    Raises:
        DpcheckError: if ``one`` alone has no more noise than ``joint``.
    """
    joint, one = number("noise_multiplier", joint), number("noise_multiplier", one)
    if joint == 0:
        return 0.0
    room = 1 - joint / one if 0 < joint < one else 0.0
    if room <= 0:
        raise DpcheckError(f"a query with noise multiplier {one!r} leaves no room for another within {joint!r}")
    # room (2 - room) does not cancel as 1 - r^2 does; what the rounding of r does to it grows as room shrinks.
    return joint / math.sqrt(room * (2 - room)) * (1 + 2.0**-50 * (4 + 1 / room))
