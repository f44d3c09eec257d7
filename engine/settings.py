"""The arguments of PrivacyEngine, each checked by name and value, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dpcheck.engine import accounting
from dpcheck.engine.adaptive import gradient_noise, settled_count_noise
from dpcheck.engine.kinds import AdaptiveQuantile, Clipping, kind_of
from dpcheck.engine.sampling import physical_size
from dpcheck.engine.step_record import StepRecord

from dpcheck.errors import DpcheckError
from dpcheck.unit import Unit

_RECORDS_AT_ONCE = 256


@dataclass(frozen=True)
class Settings:
    """A run of DP-SGD.

    Attributes:
        dataset_size: N, records or users.
        expected_batch_size: B. The sample rate is B / N, and gradients are divided by B, whatever was drawn.
        max_grad_norm: C, the L2 sensitivity of the sum of clipped gradients; the first one where it is adapted.
        noise_multiplier: sigma, of all that a step releases together.
        delta: of the guarantee.
        steps: at which the run ends.
        physical_batch_size: samples in one call of the clipper, which may compute them in parts; 1 in secure mode.
        target_epsilon: for which the noise was calibrated, if it was.
        seed: of a run that is not private; None otherwise.
        secure: cryptographic randomness and integer arithmetic.
        unit: what is protected; the data set has N of them.
        clipping: the kind.
        count_noise: standard deviation on the count of unclipped gradients by which C is adapted, if it is.
    """

    dataset_size: int
    expected_batch_size: int
    max_grad_norm: float
    noise_multiplier: float
    delta: float
    steps: int
    physical_batch_size: int
    target_epsilon: float | None
    seed: int | None
    secure: bool
    unit: Unit
    clipping: Clipping
    count_noise: float | None

    @property
    def gradient_noise(self) -> float:
        """The noise on the sum of gradients has standard deviation ``gradient_noise * C``: sigma, but for adapted C."""
        return gradient_noise(self.noise_multiplier, self.count_noise)

    @property
    def sample_rate(self) -> float:
        """q = B / N."""
        return self.expected_batch_size / self.dataset_size

    def record(self, run: str, max_grad_norm: float) -> StepRecord:
        """What a step of ``run`` with the norm ``max_grad_norm`` does to the data."""
        return StepRecord(
            run=run,
            noise_multiplier=self.gradient_noise,
            max_grad_norm=max_grad_norm,
            expected_batch_size=self.expected_batch_size,
            dataset_size=self.dataset_size,
            private=self.seed is None,
            count_noise=self.count_noise,
        )

    def plain(self) -> dict[str, Any]:
        """In plain values."""
        return {**asdict(self), "clipping": repr(self.clipping)}

    def notes(self) -> tuple[str, ...]:
        """What a reader of any result must know first."""
        notes = []
        if self.seed is not None:
            notes.append(
                f"NOT PRIVATE: samples and noise come from seed={self.seed}, which anybody can repeat; "
                "leave seed out to train privately"
            )
        if self.noise_multiplier == 0:
            notes.append("NOT PRIVATE: noise_multiplier=0 adds no noise, so epsilon is infinite")
        if self.delta > 1 / self.dataset_size:
            notes.append(
                f"delta={self.delta:g} is above 1/{self.dataset_size}: it would allow publishing a random "
                f"{self.unit.noun}"
            )
        return tuple(notes)


def settle(
    *,
    dataset_size: int,
    expected_batch_size: int,
    max_grad_norm: float,
    delta: float,
    noise_multiplier: float | None,
    target_epsilon: float | None,
    epochs: float | None,
    steps: int | None,
    physical_batch_size: int | None,
    seed: int | None,
    secure: bool,
    unit: Unit,
    clipping: Clipping | str = "flat",
) -> Settings:
    """Checks the arguments and calibrates the noise.

    Raises:
        DpcheckError: names the argument and its value, or the two of which only one may be given.
    """
    batch = _whole("expected_batch_size", expected_batch_size)
    if batch > dataset_size:
        raise DpcheckError(
            f"expected_batch_size={batch} is more than the {dataset_size} {unit.noun}s of the data set",
            where="expected_batch_size",
        )
    max_grad_norm = _number("max_grad_norm", max_grad_norm)
    delta = _number("delta", delta)
    if delta >= 1:
        raise DpcheckError(f"delta={delta:g} is not between 0 and 1", where="delta", next="take at most 1/len(dataset)")
    _one_of("steps", steps, "epochs", epochs)
    _one_of("noise_multiplier", noise_multiplier, "target_epsilon", target_epsilon)
    if steps is None:
        steps = accounting.steps_of(_number("epochs", epochs), dataset_size, batch)
    steps = _whole("steps", steps)
    if target_epsilon is not None:
        target_epsilon = _number("target_epsilon", target_epsilon)
        noise = accounting.noise_multiplier(target_epsilon, batch / dataset_size, steps, delta)
    else:
        noise = 0.0 if noise_multiplier == 0 else _number("noise_multiplier", noise_multiplier)
    kind = kind_of(clipping)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise DpcheckError(f"seed={seed!r} is not a whole number", where="seed")
    if not isinstance(secure, bool):
        raise DpcheckError(f"secure={secure!r} is neither True nor False", where="secure")
    if seed is not None and secure:
        raise DpcheckError("seed and secure=True exclude each other: what a seed repeats is not private", where="seed")
    return Settings(
        dataset_size=dataset_size,
        expected_batch_size=batch,
        max_grad_norm=max_grad_norm,
        noise_multiplier=noise,
        delta=delta,
        steps=steps,
        physical_batch_size=_physical(physical_batch_size, batch, dataset_size, secure, unit),
        target_epsilon=target_epsilon,
        seed=seed,
        secure=secure,
        unit=unit,
        clipping=kind,
        count_noise=settled_count_noise(kind, noise, batch) if isinstance(kind, AdaptiveQuantile) else None,
    )


def _physical(given: int | None, expected: int, dataset_size: int, secure: bool, unit: Unit) -> int:
    if given is not None:
        given = _whole("physical_batch_size", given)
    if not secure:
        # As many records at once for users as without them.
        limit = max(1, _RECORDS_AT_ONCE // (unit.max_rows or 1))
        return physical_size(expected, dataset_size, limit) if given is None else given
    if given not in (None, 1):
        raise DpcheckError(
            f"physical_batch_size={given} with secure=True: each {unit.noun}'s gradient is put on the grid by itself",
            where="physical_batch_size",
            next="leave physical_batch_size out",
        )
    return 1


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DpcheckError(f"{name}={value!r} is not a positive whole number", where=name)
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DpcheckError(f"{name}={value!r} is not a positive finite number", where=name)
    return float(value)


def _one_of(first: str, a: Any, second: str, b: Any) -> None:
    if a is None and b is None:
        raise DpcheckError(f"neither {first} nor {second} is given", next=f"pass {first}=... or {second}=...")
    if a is not None and b is not None:
        raise DpcheckError(
            f"both {first}={a!r} and {second}={b!r} are given", next=f"pass {first} or {second}, not both"
        )
