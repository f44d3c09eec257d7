"""One step of a ledger: what it did to the data, and whether the accountant has a bound for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dpcheck.engine.accounting import joint_noise

from dpcheck.errors import DpcheckError

# Sampler and adjacency for which the accountant has a bound.
_ACCOUNTED = (("poisson", "add-remove"), ("poisson", "replace-one"), ("fixed-size", "replace-one"))


@dataclass(frozen=True)
class StepRecord:
    """What one step did to the data.

    Attributes:
        run: the training to which it belongs; several may share a ledger, and all of them count.
        noise_multiplier, max_grad_norm: sigma and C of the sum of gradients.
        expected_batch_size, dataset_size: their quotient is the sample rate.
        private: False if the noise came from a seed.
        sampler, adjacency: "poisson" and "add-remove", or what else the accountant has a bound for.
        count_noise: standard deviation of the noise on a count, if the step also released one that a record changes by
            1/2 (:class:`dpcheck.engine.kinds.AdaptiveQuantile`).
    """

    run: str
    noise_multiplier: float
    max_grad_norm: float
    expected_batch_size: int
    dataset_size: int
    private: bool
    sampler: str = "poisson"
    adjacency: str = "add-remove"
    count_noise: float | None = None

    @property
    def joint_noise(self) -> float:
        """The noise multiplier of all that the step released."""
        count = () if self.count_noise is None else (2 * self.count_noise,)
        return joint_noise(self.noise_multiplier, *count) if count else self.noise_multiplier

    @property
    def sample_rate(self) -> float:
        """q, the probability with which each record is drawn."""
        return self.expected_batch_size / self.dataset_size


def adjacency_of(records: Iterable[StepRecord]) -> str:
    """What neighbouring data sets differ in, in all steps; "add-remove" if there are none.

    Raises:
        DpcheckError: if steps differ in it.
    """
    found = sorted({record.adjacency for record in records})
    if len(found) > 1:
        raise DpcheckError(
            f"steps of the ledger differ in adjacency ({' and '.join(found)}): no one epsilon holds for all of them",
            where="ledger",
            next="keep a ledger for each adjacency",
        )
    return found[0] if found else "add-remove"


def check_record(record: StepRecord, where: str) -> None:
    """Refuses a step that the accountant could not account for.

    Raises:
        DpcheckError: naming the value, at ``where``.
    """
    _check_values(record, where)
    if (record.sampler, record.adjacency) not in _ACCOUNTED:
        raise DpcheckError(
            f"sampler={record.sampler!r} with adjacency={record.adjacency!r} has no bound, so epsilon is unknown",
            where=where,
            next="sample by Poisson, or with a fixed size for replacing a record",
        )


def _check_values(record: StepRecord, where: str) -> None:
    possible = {
        "run": isinstance(record.run, str),
        "noise_multiplier": _is_number(record.noise_multiplier) and record.noise_multiplier >= 0,
        "max_grad_norm": _is_number(record.max_grad_norm) and record.max_grad_norm > 0,
        "dataset_size": is_whole(record.dataset_size),
        "expected_batch_size": is_whole(record.expected_batch_size),
        "private": isinstance(record.private, bool),
        "count_noise": record.count_noise is None or (_is_number(record.count_noise) and record.count_noise > 0),
    }
    possible["expected_batch_size"] &= possible["dataset_size"] and record.expected_batch_size <= record.dataset_size
    for name, good in possible.items():
        if not good:
            raise DpcheckError(f"a step of the ledger has {name}={getattr(record, name)!r}", where=where)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """A whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
