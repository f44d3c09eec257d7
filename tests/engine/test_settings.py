"""Arguments by name and value, and what the statement says of them."""

import logging

import pytest
from dpcheck.engine.accounting import at_least, at_most
from hypothesis import given
from hypothesis import strategies as st
from white_box import make, records, released

from dpcheck.errors import DpcheckError


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"expected_batch_size": 0}, "expected_batch_size=0"),
        ({"expected_batch_size": 2.5}, "expected_batch_size=2.5"),
        ({"expected_batch_size": True}, "expected_batch_size=True"),
        ({"expected_batch_size": 14}, "expected_batch_size=14 is more than the 13 records"),
        ({"max_grad_norm": 0}, "max_grad_norm=0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm=inf"),
        ({"delta": 0}, "delta=0"),
        ({"delta": 1.0}, "delta=1"),
        ({"delta": float("nan")}, "delta=nan"),
        ({"noise_multiplier": -0.5}, "noise_multiplier=-0.5"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier=nan"),
        ({"noise_multiplier": None}, "neither noise_multiplier nor target_epsilon"),
        ({"noise_multiplier": 1.0, "target_epsilon": 3.0}, "both noise_multiplier=1.0 and target_epsilon=3.0"),
        ({"target_epsilon": -3.0}, "target_epsilon=-3.0"),
        ({"target_epsilon": 1e-9, "delta": 1e-12}, "target_epsilon=1e-09 cannot be reached"),
        ({"steps": None}, "neither steps nor epochs"),
        ({"steps": 5, "epochs": 2}, "both steps=5 and epochs=2"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"epochs": 0.0}, "epochs=0.0"),
        ({"physical_batch_size": 0}, "physical_batch_size=0"),
        ({"physical_batch_size": 4, "secure": True}, "physical_batch_size=4 with secure=True"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": 1, "secure": True}, "seed and secure=True exclude"),
        ({"secure": "yes"}, "secure='yes'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(kwargs, says):
    with pytest.raises(DpcheckError, match=says.replace(".", r"\.")):
        make(records(), **kwargs)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (0.1, 1), (2.5, 7), (5, 13)])
def test_epochs_are_rounded_up_to_steps(epochs, steps):
    assert make(records(13), expected_batch_size=5, epochs=epochs).settings.steps == steps


def test_zero_noise_and_a_large_delta_are_said(caplog):
    with caplog.at_level(logging.WARNING, "dpcheck"):
        engine = make(records(), noise_multiplier=0, delta=0.5)
    assert "epsilon is infinite" in caplog.text
    assert "delta=0.5 is above 1/13" in caplog.text
    released(engine)
    assert engine.epsilon().upper == float("inf")
    assert "No guarantee" in engine.report()


def test_the_statement_names_steps_with_other_settings():
    engine = make(records(), noise_multiplier=2.0)
    released(engine)
    other = make(records(), noise_multiplier=3.0)
    other.load_state_dict(engine.state_dict())
    assert "1 with noise 2 x 1 and rate 13/13" in other.report()
    assert "other settings" not in engine.report()


@given(st.floats(1e-9, 1e6), st.integers(4, 6))
def test_printed_bounds_stay_bounds(value, digits):
    low, high = float(at_least(value, digits)), float(at_most(value, digits))
    assert low <= value <= high
    assert high - low <= value * 1.1 * 10.0 ** (1 - digits)
