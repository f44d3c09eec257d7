"""How much an audit looks at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Sizes of the checks; what they cost grows in proportion.

    Attributes:
        records: of the user, whose gradients are looked at.
        canaries: at most, in the run that is attacked.
        coordinates: of noise, over all releases.
        draws: records times steps of which it is seen whether they were drawn.
        draw_steps: at most, for that.
        run_steps: of the run that is attacked, at most.
        run_records: whose gradients are computed in that run.
        tries: of a search for the record that moves the sum the most.
    """

    records: int = 10
    canaries: int = 1000
    coordinates: int = 200_000
    draws: int = 4_000_000
    draw_steps: int = 200
    run_steps: int = 300
    run_records: int = 30_000
    tries: int = 18


SHORT = Effort()
LONG = Effort(40, 4000, 4_000_000, 40_000_000, 1000, 10_000, 600_000, 300)
