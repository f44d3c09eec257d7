"""Bounds that stay bounds when they are printed."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def at_most(value: float, digits: int = 4) -> str:
    """``value`` rounded up to significant digits: an upper bound stays one in print."""
    return _rounded(value, digits, ROUND_CEILING)


def at_least(value: float, digits: int = 4) -> str:
    """``value`` rounded down to significant digits."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{float(Context(prec=digits, rounding=rounding).plus(Decimal(value))):g}"
