"""The settings at which accountants are compared, and what counts as a fault of ours."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dpcheck.engine.accounting import Bounds, Phase, cut_probability, epsilon_of, joint_noise


@dataclass(frozen=True)
class Case:
    """A composition and the delta at which its epsilon is asked for.

    Attributes:
        kind: of mechanism and sampling, for people.
        queries: noise multipliers of several queries on one sample, of which ``phases`` has the joint one.
        dataset_size, largest_batch: where samples are cut to a largest size; ``phases`` has the chance of a cut.
    """

    kind: str
    phases: tuple[Phase, ...]
    delta: float
    adjacency: str = "add-remove"
    records: int = 1
    queries: tuple[float, ...] = ()
    dataset_size: int = 0
    largest_batch: int = 0

    def bounds(self) -> Bounds:
        """Ours."""
        return epsilon_of(self.phases, self.delta, adjacency=self.adjacency, records=self.records)

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "phases": [list(asdict(phase).values()) for phase in self.phases]}


def case_of(row: dict[str, Any]) -> Case:
    """What :meth:`Case.as_row` wrote."""
    given = {name: row[name] for name in Case.__dataclass_fields__}
    return Case(**given | {"phases": tuple(Phase(*phase) for phase in row["phases"]), "queries": (*row["queries"],)})


# rate, sigma, steps
_POISSON: list[tuple[float, float, int]] = [
    (256 / 60000, 1.1, 14062), (0.01, 1.0, 10_000), (0.01, 1.0, 1_000), (0.01, 0.6, 100), (0.1, 0.5, 1_000),
    (1e-3, 4.0, 100_000), (1e-3, 1.0, 10_000), (1e-3, 0.7, 100_000), (0.05, 2.0, 2_000), (0.2, 5.0, 1_000),
    (0.5, 10.0, 500), (0.5, 2.0, 20), (0.3, 1.0, 5), (0.02, 0.8, 300), (1e-4, 0.6, 100_000),
    (0.9, 20.0, 3_000), (0.1, 1.0, 1), (0.1, 1.0, 2), (0.05, 0.7, 3), (0.25, 1.5, 50),
    (0.01, 8.0, 100_000), (0.004, 0.9, 5_000), (0.02, 3.0, 30_000),
]  # fmt: skip
_OTHERS: list[tuple[float, float, int]] = [(0.01, 1.0, 1_000), (0.1, 2.0, 200), (0.3, 1.5, 5), (0.004, 1.1, 5_000)]
_WHOLE: list[tuple[float, int]] = [(5.0, 30), (0.3, 1), (1.0, 1), (50.0, 1_000), (2.0, 10)]
_LAPLACE: list[tuple[float, float, int]] = [
    (1.0, 1.0, 1), (1.0, 0.25, 1), (1.0, 10.0, 50), (0.1, 2.0, 100), (0.01, 1.0, 2_000), (0.5, 4.0, 20)
]  # fmt: skip
_MIXED: list[tuple[Phase, ...]] = [
    (Phase(1.0, 0.01, 1_000), Phase(2.0, 0.02, 2_000)),
    (Phase(0.8, 0.02, 100), Phase(1.2, 0.01, 500), Phase(3.0, 0.05, 300)),
    (Phase(1.1, 0.01, 1_000), Phase(10.0, 1.0, 5)),
    (Phase(1.5, 0.05, 200), Phase(5.0, 0.1, 20, mechanism="laplace")),
]


_JOINT: list[tuple[tuple[float, ...], float, int]] = [
    ((1.1, 12.8), 0.01, 1_000), ((2.0, 2.0), 0.1, 100), ((3.0, 4.0, 5.0), 1.0, 3)
]  # fmt: skip
# data set, expected and largest batch, sigma, steps
_CUT: list[tuple[int, int, int, float, int]] = [
    (60_000, 256, 400, 1.1, 10_000), (50_000, 512, 800, 1.0, 2_000), (10_000, 1_000, 1_300, 2.0, 300)
]  # fmt: skip
_USERS: list[tuple[float, float, int, int]] = [
    (0.01, 1.0, 500, 2),
    (0.1, 2.0, 50, 4),
    (0.05, 4.0, 200, 8),
    (1, 20, 10, 3),
]


def cases() -> list[Case]:
    """All of them."""
    replaced = {"adjacency": "replace-one"}
    return [
        *(Case("Poisson", (Phase(s, q, n),), delta) for q, s, n in _POISSON for delta in (1e-5, 1e-7, 1e-10)),
        *(Case("replace-one", (Phase(s, q, n),), delta, **replaced) for q, s, n in _OTHERS for delta in (1e-5, 1e-8)),
        *(
            Case("fixed size", (Phase(s, q, n, "fixed-size"),), delta, **replaced)
            for q, s, n in _OTHERS
            for delta in (1e-5, 1e-8)
        ),
        *(Case("whole", (Phase(s, 1.0, n),), delta) for s, n in _WHOLE for delta in (1e-5, 1e-12)),
        *(Case("Laplace", (Phase(s, q, n, mechanism="laplace"),), 1e-5) for q, s, n in _LAPLACE),
        *(Case("mixed", phases, delta) for phases in _MIXED for delta in (1e-5, 1e-8)),
        *(Case("joint queries", (Phase(joint_noise(*z), q, n),), 1e-6, queries=z) for z, q, n in _JOINT),
        *(_cut(*given) for given in _CUT),
        *(Case("users", (Phase(s, q, n),), 1e-6, records=k) for q, s, n, k in _USERS),
    ]


def _cut(size: int, expected: int, largest: int, sigma: float, steps: int) -> Case:
    rate = expected / size
    phase = Phase(sigma, rate, steps, cut=cut_probability(size, rate, largest))
    return Case("cut to size", (phase,), 1e-6, dataset_size=size, largest_batch=largest)


def faults(row: dict[str, Any], believed: bool = True) -> list[str]:
    """What contradicts a peer, and where ours is looser; with ``believed=False`` from claims that others refute."""
    google, prv = row["dp_accounting"] or (0.0, math.inf), row["prv_accountant"] or (0.0, math.inf)
    trust_google, trust_prv = row["delta"] >= 1e-8, prv[0] <= google[1]
    lower, upper, found = row["lower"], row["upper"], []
    if trust_prv == believed:
        if upper < prv[0]:
            found.append(f"upper {upper:.5f} is below prv-accountant's lower {prv[0]:.5f}")
        if lower > prv[1]:
            found.append(f"lower {lower:.5f} is above prv-accountant's upper {prv[1]:.5f}")
    if trust_google == believed:
        if upper < google[0]:
            found.append(f"upper {upper:.5f} is below dp-accounting's lower {google[0]:.5f}")
        if lower > google[1]:
            found.append(f"lower {lower:.5f} is above dp-accounting's upper {google[1]:.5f}")
    if not believed:
        return found
    if upper > 1.01 * google[1]:
        found.append(f"upper {upper:.5f} is more than 1 % above dp-accounting's {google[1]:.5f}")
    if row["rdp"] is not None and upper > row["rdp"]:
        found.append(f"upper {upper:.5f} is above {row['rdp']:.5f} by dp-accounting's RDP")
    if row["exact"] is not None and not lower * (1 - 1e-9) <= row["exact"] <= upper * (1 + 1e-9):
        found.append(f"the closed form {row['exact']:.9f} is not within {lower:.9f} and {upper:.9f}")
    return found
