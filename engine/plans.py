"""The plans that a clipper keeps, by what they hold for; too many of them are said to be too many."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpcheck.engine.memory import room, samples_within
from dpcheck.engine.plan import Plan

from dpcheck import inputs

log = logging.getLogger("dpcheck")

KEPT = 32
# Samples of a plan from which the memory of larger ones is estimated.
FEW = 8


@dataclass(frozen=True)
class Planned:
    """A plan, and how many of its samples to compute at once (all, if memory suffices)."""

    plan: Plan
    at_once: int

    @classmethod
    def of(cls, plan: Plan, size: int, budget: int | None) -> Planned:
        """``budget``: bytes for one call; ``None`` for no limit."""
        return cls(plan, size if budget is None else samples_within(plan, size, budget))


class Room:
    """How many samples to plan for: a plan for a few tells, before one for many takes too much memory itself."""

    def __init__(self) -> None:
        # Of samples with so many elements, and for any with fewer.
        self._elements, self._samples = 0, 0

    def limit(self, batch: Any, size: int, budget: int | None, make: Callable[[Any], Plan | None]) -> int:
        """At most ``size``; a plan for the first :data:`FEW` samples of ``batch`` is made if it has wider ones."""
        if budget is None or size <= 2 * FEW:
            return size
        elements = sum(t[0].numel() for _, t in inputs.tensors(batch))
        if elements > self._elements:
            plan = make(inputs.take(batch, range(FEW)))
            if plan is None:
                return size
            self._elements, self._samples = elements, max(FEW, room(plan, FEW, budget))
        return min(size, self._samples)


class Plans:
    """The :data:`KEPT` plans that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, Planned] = OrderedDict()
        self._told = False

    def __len__(self) -> int:
        return len(self._kept)

    def latest(self) -> Plan | None:
        """The plan that was used last."""
        return next(reversed(self._kept.values())).plan if self._kept else None

    def get(self, key: Any) -> Planned | None:
        """The plan for ``key`` (:func:`dpcheck.engine.provable.key_of`), if it is kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Any, planned: Planned) -> None:
        """Keeps a plan in the place of the one that was not used for longest; warns once when that is given up."""
        self._kept[key] = planned
        if len(self._kept) > KEPT:
            self._warn()
            self._kept.popitem(last=False)

    def _warn(self) -> None:
        if self._told:
            return
        self._told = True
        shapes = list(dict.fromkeys(key[0] for key in self._kept))
        if len(shapes) > KEPT // 2:
            shown = "; ".join(", ".join(map(_shape, leaves)) for leaves in shapes[-4:])
            why, mend = (
                f"batches of {len(shapes)} shapes, lately {shown}",
                "pad to a few lengths: dpcheck.bucketed(...)",
            )
        else:
            why, mend = "attributes of the model that change with every step", "keep what changes in buffers"
        log.warning(
            "more than the %d plans that are kept were made, for %s: each new one takes seconds. Next: %s",
            KEPT, why, mend,
        )  # fmt: skip


def _shape(leaf: Any) -> str:
    return str(list(leaf[0])) if isinstance(leaf, tuple) else str(leaf)
