"""The verdict on compact models of real kinds is that of the isolation oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from zoo_models import CLEAN, MIXING, Case

import dpcheck
from dpcheck.oracle import isolate


def made(make: Callable[[], Case]) -> Case:
    torch.manual_seed(0)
    model, loss_fn, batch = make()
    return model.train(), loss_fn, batch


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_model_is_proven_and_can_be_trained_from_its_graph(name: str) -> None:
    model, loss_fn, batch = made(CLEAN[name])
    report = dpcheck.check(model, loss_fn, batch)
    assert (report.verdict, report.method, report.diagnostics) == ("independent", "graph", ())
    found = isolate(model, loss_fn, batch)
    assert not found.failed and not found.mixing


@pytest.mark.parametrize("name", MIXING)
def test_a_model_whose_samples_mix_is_found(name: str) -> None:
    model, loss_fn, batch = made(MIXING[name])
    assert isolate(model, loss_fn, batch).mixing
    assert dpcheck.check(model, loss_fn, batch).verdict == "mixing"
