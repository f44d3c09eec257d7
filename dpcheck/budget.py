"""What a run would spend, or what a ledger says was spent: over its steps, and over delta."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpcheck.engine.accounting import Bounds, Phase, epsilon_of, noise_multiplier, rdp_epsilon_of, steps_of
from dpcheck.engine.ledger import Ledger, phases_of
from dpcheck.engine.step_record import StepRecord, adjacency_of
from dpcheck.errors import DpcheckError

Taken = tuple[tuple[StepRecord, int], ...]
_POINTS = 10
_DELTAS = tuple(10.0**-k for k in range(3, 13))


@dataclass(frozen=True)
class Budget:
    """A composition and its price.

    Attributes:
        dataset_size: N.
        steps: of the whole composition.
        phases: of the whole composition.
        adjacency, records: what neighbouring data sets differ in.
        epsilon: of all steps, at its ``delta``.
        over_steps: after some numbers of steps, the last being all, epsilon at that delta.
        over_delta: epsilon of all steps at other deltas.
        rdp: the upper bound by Renyi differential privacy alone; ``None`` where it is not computed: of users, of
            replacing one.
    """

    dataset_size: int
    steps: int
    phases: tuple[Phase, ...]
    adjacency: str
    records: int
    epsilon: Bounds
    over_steps: tuple[tuple[int, Bounds], ...]
    over_delta: tuple[Bounds, ...]
    rdp: float | None


def planned(
    *,
    dataset_size: int,
    batch_size: int,
    delta: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    target_epsilon: float | None = None,
    noise: float | None = None,
    records: int = 1,
) -> Budget:
    """The budget of a run that is yet to be.

    Args:
        dataset_size: N, records or users.
        batch_size: expected; each record is drawn with probability batch_size / N.
        delta: at most 1 / N is meant; by default 1e-5 or 1 / (10 N), whichever is less.
        epochs: steps = epochs * N / batch_size, rounded up; or steps.
        target_epsilon: for which the noise is calibrated; or noise, the noise multiplier.
        records: of a user, at most; each is drawn and clipped on its own.

    Raises:
        DpcheckError: naming the value that is out of range, or that is missing or one too many.
    """
    for name, value in (("--dataset-size", dataset_size), ("--batch-size", batch_size)):
        if value < 1:
            raise DpcheckError(f"{name} {value} is not positive", where=name)
    if batch_size > dataset_size:
        raise DpcheckError(
            f"--batch-size {batch_size} is more than --dataset-size {dataset_size}",
            where="--batch-size",
            next="pass another --batch-size",
        )
    _one_of("--epochs", epochs, "--steps", steps)
    _one_of("--target-epsilon", target_epsilon, "--noise-multiplier", noise)
    rate, delta = batch_size / dataset_size, usual_delta(dataset_size) if delta is None else delta
    if epochs is not None:
        if not 0 < epochs < math.inf:
            raise DpcheckError(f"--epochs {epochs} is not a positive number", where="--epochs")
        steps = steps_of(epochs, dataset_size, batch_size)
    assert steps is not None
    if steps < 1:
        raise DpcheckError(f"--steps {steps} is not positive", where="--steps")
    if target_epsilon is not None:
        noise = noise_multiplier(target_epsilon, rate, steps, delta, records=records)
    assert noise is not None
    phase = Phase(noise, rate, steps)
    parts = [(n, (Phase(noise, rate, n),)) for n in _points(steps)]
    return _budget(dataset_size, (phase,), parts, delta, "add-remove", records)


def spent(ledger: Ledger, delta: float | None) -> Budget:
    """The budget that the steps of a ledger have spent.

    Raises:
        DpcheckError: if it holds no step, or steps of several data sets.
    """
    entries = ledger.entries
    sizes = {record.dataset_size for record, _ in entries}
    if len(sizes) != 1:
        why = "holds no step" if not sizes else f"is of data sets with {' and '.join(map(str, sorted(sizes)))} records"
        raise DpcheckError(f"the ledger {why}", where="--ledger", next="pass the ledger of one data set")
    (size,) = sizes
    parts = [(n, phases_of(_first(entries, n))) for n in _points(ledger.steps())]
    delta = usual_delta(size) if delta is None else delta
    return _budget(size, ledger.phases(), parts, delta, adjacency_of(record for record, _ in entries), 1)


def usual_delta(dataset_size: int) -> float:
    """1e-5, or 1 / (10 N) if that is less."""
    return min(1e-5, 0.1 / dataset_size)


def _budget(
    dataset_size: int,
    phases: tuple[Phase, ...],
    parts: Sequence[tuple[int, tuple[Phase, ...]]],
    delta: float,
    adjacency: str,
    records: int,
) -> Budget:
    def at(composition: tuple[Phase, ...], delta: float) -> Bounds:
        return epsilon_of(composition, delta, adjacency=adjacency, records=records)

    applies = (adjacency, records) == ("add-remove", 1) and all(phase.sampling == "poisson" for phase in phases)
    return Budget(
        dataset_size,
        sum(phase.steps for phase in phases),
        phases,
        adjacency,
        records,
        at(phases, delta),
        tuple((n, at(composition, delta)) for n, composition in parts),
        tuple(at(phases, other) for other in _DELTAS),
        rdp_epsilon_of(phases, delta) if applies else None,
    )


def _points(steps: int) -> list[int]:
    """Numbers of steps at which to look, the last being all."""
    return sorted({1, *(math.ceil(steps * i / _POINTS) for i in range(1, _POINTS + 1))})


def _first(entries: Taken, steps: int) -> Taken:
    found = []
    for record, count in entries:
        taken = min(count, steps)
        if taken:
            found.append((record, taken))
        steps -= taken
    return tuple(found)


def _one_of(first: str, a: object, second: str, b: object) -> None:
    if (a is None) == (b is None):
        both = "both are" if a is not None else "neither is"
        raise DpcheckError(f"{both} given of {first} and {second}", next=f"pass {first} or {second}")
