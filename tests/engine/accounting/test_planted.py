"""Bugs planted in the accountant: each error that is left out of the budget must show as a bound beyond the truth.

Where an error is normally too small to show, its cause is first enlarged; the bounds, which count it, must still hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
from dpcheck.engine.accounting import accountant, estimate, pld, quadrature
from dpcheck.engine.accounting.accountant import epsilon_bounds
from dpcheck.engine.accounting.bounds import Phase, Unit
from dpcheck.engine.accounting.estimate import Composition, Step
from dpcheck.engine.accounting.inversion import Kernel, Tilt
from dpcheck.engine.accounting.pairs import Direction, Loss, Mixture, Pair
from dpcheck.engine.accounting.pld import Attempt, Curve, curve
from dpcheck.engine.accounting.quadrature import Panels
from exact import delta_of_steps

# sigma, rate, direction, steps, epsilon
SETTINGS: list[tuple[float, float, Direction, int, float]] = [
    (1.0, 0.01, "remove", 2, 0.25),
    (0.7, 0.1, "add", 2, 0.2),
    (0.5, 0.1, "remove", 2, 3.0),
    (0.3, 0.3, "remove", 1, 2.0),
    (3.0, 0.3, "add", 2, 0.1),
]
exact_delta = cache(delta_of_steps)


def violations(radians: float = 1e4) -> list[tuple[str, float]]:
    """Bounds of delta on the wrong side of the exact value, and by how much, relatively."""
    wrong = []
    for sigma, rate, direction, steps, at in SETTINGS:
        composition = Composition((Step(Loss((Pair(Mixture.binomial(sigma, rate, 1), direction),)), steps),), 0.0)
        truth = exact_delta(sigma, rate, direction, steps, at)
        here = curve(composition, truth, Attempt(0.04, radians, 0.0), at)
        assert here is not None
        lower, upper = here.delta_lower(at), here.delta_upper(at)
        wrong += [("lower", lower / truth - 1)] if lower > truth * (1 + 1e-9) else []
        wrong += [("upper", upper / truth - 1)] if upper < truth * (1 - 1e-9) else []
    return wrong


@pytest.mark.parametrize("radians", [300.0, 1e3, 1e4, 4e4])
def test_nothing_is_violated_at_any_width_of_the_smoothing(radians: float) -> None:
    assert violations(radians) == []


def _short_period(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = pld._period
    monkeypatch.setattr(pld, "_period", lambda *args: factor * right(*args))


def _few_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quadrature, "_FIRST_PANELS", 2)
    monkeypatch.setattr(quadrature, "_MOST_PANELS", 3)


def _much_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_OUTSIDE", 0.3)


@pytest.mark.parametrize("enlarge", [partial(_short_period, 0.25), _few_panels, _much_outside])
def test_enlarged_errors_are_counted(
    enlarge: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarge(monkeypatch)
    assert violations() == []


def test_an_alias_that_is_not_counted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    _short_period(0.25, monkeypatch)
    monkeypatch.setattr(Tilt, "alias", lambda *_: 0.0)
    assert "lower" in dict(violations())


def test_a_quadrature_error_that_is_not_counted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    _few_panels(monkeypatch)
    monkeypatch.setattr(Panels, "log_error", lambda self, *_: np.full(self.halves.shape, -math.inf))
    assert violations()


def test_mass_outside_that_is_not_counted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    _much_outside(monkeypatch)
    monkeypatch.setattr(Pair, "outside", lambda *_: 0.0)
    assert "upper" in dict(violations())


def test_smoothing_moved_to_the_wrong_side_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As rounding losses down for the upper bound."""
    monkeypatch.setattr(
        Curve, "delta_upper", lambda self, e: self.smooth.upper(e + self.kernel.log_real(1.0)) + self.outside
    )
    assert "upper" in dict(violations(300.0))


def test_smoothing_that_is_taken_for_the_truth_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Curve, "delta_lower", lambda self, e: self.smooth.lower(e))
    assert "lower" in dict(violations())


def test_an_end_of_the_line_that_is_not_counted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernel, "cut", lambda self, t: 3.0 / self.width)
    monkeypatch.setattr(Kernel, "tail", lambda *_: 0.0)
    assert violations()


def test_one_direction_only_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding a record is cheaper here: its epsilon is below the certified lower bound of both."""
    phases = [Phase(1.0, 0.01, 1000)]
    whole = epsilon_bounds(phases, 1e-5, Unit())
    right = accountant.compositions
    monkeypatch.setattr(accountant, "compositions", lambda *args: right(*args)[1:])
    assert epsilon_bounds(phases, 1e-5, Unit()).upper < whole.lower


def test_bounds_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpcheck.errors import DpcheckError

    monkeypatch.setattr(accountant, "epsilon_between", lambda *_: (1.5, 2.5))
    monkeypatch.setattr(accountant, "rdp_upper", lambda *_: 1.0)
    with pytest.raises(DpcheckError, match="contradicts itself"):
        epsilon_bounds([Phase(1.0, 0.01, 1000)], 1e-5, Unit())
