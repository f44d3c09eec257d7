"""Settings of every test: one thread a worker (two workers fill two cores), repeatable random numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# pytest would keep torch's structured trace, thousands of records a capture.
logging.getLogger("torch.__trace").propagate = False
settings.register_profile("dpcheck", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dpcheck")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
