"""The ledger: an append-only record of every step that touched the data, from which epsilon is computed.

A step is written before anything is computed from its data, so that a crash can only count a step too many.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from dpcheck.engine.accounting import Bounds, Phase, epsilon_of, joint_noise

from dpcheck.errors import DpcheckError

VERSION = 2
# Of each version, the fields that its steps may have beside those of version 1.
_LATER: dict[int, frozenset[str]] = {1: frozenset(), 2: frozenset({"count_noise"})}


@dataclass(frozen=True)
class StepRecord:
    """What one step did to the data.

    Attributes:
        run: the training to which it belongs; several may share a ledger, and all of them count.
        noise_multiplier, max_grad_norm: sigma and C of the sum of gradients.
        expected_batch_size, dataset_size: their quotient is the sample rate.
        private: False if the noise came from a seed.
        sampler, adjacency: for the accountant.
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


Entries = list[tuple[StepRecord, int]]


class Ledger:
    """The steps, in order, run-length encoded in memory.

    Args:
        path: a file that gets one line of JSON for each step, forced to disk before :meth:`append` returns. Steps that
            it already holds count. One process at a time may write to it. None: in memory only.

    Raises:
        DpcheckError: if the file is not a ledger, or cannot be one.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._entries: Entries = []
        # Running totals: where C changes at every step there are as many entries as steps.
        self._steps: Counter[str] = Counter()
        self._phases: Counter[tuple[float, float]] = Counter()
        if self.path is None:
            return
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise DpcheckError(
                f"no ledger can be written to {self.path}", where="ledger", next="pass a path in a folder"
            )
        if self.path.exists():
            for record, count in _read(self.path):
                self._add(record, count)

    def append(self, record: StepRecord, count: int = 1) -> None:
        """Adds ``count`` steps; they are on disk when this returns, if there is a path.

        Raises:
            DpcheckError: for a step that :meth:`epsilon` could not account for: nothing is added then.
        """
        _check_record(record, "Ledger.append")
        if not _is_whole(count):
            raise DpcheckError(f"a step of the ledger has count={count!r}", where="Ledger.append")
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write((json.dumps(_values(record)) + "\n") * count)
                file.flush()
                os.fsync(file.fileno())
        self._add(record, count)

    def _add(self, record: StepRecord, count: int) -> None:
        _push(self._entries, record, count)
        self._steps[record.run] += count
        self._phases[record.joint_noise, record.sample_rate] += count

    def steps(self, run: str | None = None) -> int:
        """How many steps ``run`` took; all runs together if None."""
        return self._steps.total() if run is None else self._steps[run]

    @property
    def entries(self) -> tuple[tuple[StepRecord, int], ...]:
        """Equal steps in a row as (record, count), in order."""
        return tuple(self._entries)

    def phases(self) -> tuple[Phase, ...]:
        """For the accountant: steps of equal noise and rate together, in order of first appearance."""
        return _phases(self._phases)

    def epsilon(self, delta: float) -> Bounds:
        """What all steps together have spent. ``.upper`` is the guarantee."""
        return spent(self.phases(), delta)

    def state_dict(self) -> dict[str, Any]:
        """Plain values only, for ``torch.save`` or JSON."""
        entries = [{**_values(record), "count": count} for record, count in self._entries]
        return {"version": VERSION, "entries": entries}

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Adds the steps of ``state`` that are not here yet. No step that is here is ever taken away.

        Raises:
            DpcheckError: if ``state`` is not a ledger, or it and this one continue the same run in different ways: then
                neither tells everything that touched the data.
        """
        loaded = _parse_state(state)
        runs = dict.fromkeys(record.run for record, _ in loaded)
        for record, count in [entry for run in runs for entry in _missing(run, self._entries, loaded)]:
            self.append(record, count)


def phases_of(entries: tuple[tuple[StepRecord, int], ...]) -> tuple[Phase, ...]:
    """The composition that ``entries`` describe; its order does not matter to the accountant."""
    steps: Counter[tuple[float, float]] = Counter()
    for record, count in entries:
        steps[record.joint_noise, record.sample_rate] += count
    return _phases(steps)


def _phases(steps: Mapping[tuple[float, float], int]) -> tuple[Phase, ...]:
    return tuple(Phase(noise, rate, count) for (noise, rate), count in steps.items())


@lru_cache(maxsize=64)
def spent(phases: tuple[Phase, ...], delta: float) -> Bounds:
    """Epsilon of a composition, remembered."""
    return epsilon_of(phases, delta)


def new_run() -> str:
    """A name for a training, different each time."""
    return secrets.token_hex(8)


def _values(record: StepRecord) -> dict[str, Any]:
    """What is written of a step: as version 1 has it, where there is no count."""
    return {name: value for name, value in asdict(record).items() if name != "count_noise" or value is not None}


def _push(entries: Entries, record: StepRecord, count: int) -> None:
    if entries and entries[-1][0] == record:
        entries[-1] = record, entries[-1][1] + count
    else:
        entries.append((record, count))


def _of_run(run: str, entries: Entries) -> Entries:
    found: Entries = []
    for record, count in entries:
        if record.run == run:
            _push(found, record, count)
    return found


def _missing(run: str, own: Entries, loaded: Entries) -> Entries:
    """The steps of ``run`` in ``loaded`` that go beyond those in ``own``."""
    ours, theirs = _of_run(run, own), _of_run(run, loaded)
    beyond = _remainder(theirs, ours)
    if beyond is not None:
        return beyond
    if _remainder(ours, theirs) is not None:
        return []
    raise DpcheckError(
        f"the ledger and the checkpoint disagree about the steps of run {run}: each holds steps that the other lacks",
        next="load the checkpoint that was saved with this ledger, or start a new run with the ledger file of both",
    )


def _remainder(longer: Entries, shorter: Entries) -> Entries | None:
    """What follows ``shorter`` in ``longer``; None if ``longer`` does not begin with it."""
    rest = list(longer)
    for record, count in shorter:
        if not rest or rest[0][0] != record or rest[0][1] < count:
            return None
        left = rest[0][1] - count
        rest[:1] = [(record, left)] if left else []
    return rest


def _read(path: Path) -> Entries:
    content = path.read_bytes()
    # A last line without its end was being written when the process died: its step had not touched the data yet.
    complete = content[: content.rfind(b"\n") + 1]
    entries: Entries = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        _push(entries, _record(values, f"{path}:{number}", VERSION), 1)
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    return entries


def _parse_state(state: Mapping[str, Any]) -> Entries:
    version = state.get("version")
    if not isinstance(version, int) or version not in _LATER:
        raise DpcheckError(
            f"the ledger has version {version!r}; this dpcheck reads versions up to {VERSION}", where="ledger"
        )
    entries: Entries = []
    for i, entry in enumerate(state["entries"]):
        values = dict(entry)
        count = values.pop("count", None)
        where = f"ledger entry {i}"
        if not isinstance(count, int) or count < 1:
            raise DpcheckError(f"the ledger entry counts {count!r} steps", where=where)
        _push(entries, _record(values, where, version), count)
    return entries


def _record(values: Any, where: str, version: int) -> StepRecord:
    every = {field.name for field in fields(StepRecord)}
    needed = every - _LATER[VERSION]
    if not isinstance(values, dict) or not needed <= set(values) <= needed | _LATER[version]:
        raise DpcheckError(
            "this is no step of a ledger",
            where=where,
            next="restore the ledger from a copy: without it epsilon is unknown",
        )
    record = StepRecord(**values)
    _check_record(record, where)
    return record


def _check_record(record: StepRecord, where: str) -> None:
    _check_values(record, where)
    if (record.sampler, record.adjacency) != ("poisson", "add-remove"):
        raise DpcheckError(
            f"sampler={record.sampler!r} with adjacency={record.adjacency!r} cannot be accounted for here",
            where=where,
        )


def _check_values(record: StepRecord, where: str) -> None:
    possible = {
        "run": isinstance(record.run, str),
        "noise_multiplier": _is_number(record.noise_multiplier) and record.noise_multiplier >= 0,
        "max_grad_norm": _is_number(record.max_grad_norm) and record.max_grad_norm > 0,
        "dataset_size": _is_whole(record.dataset_size),
        "expected_batch_size": _is_whole(record.expected_batch_size),
        "private": isinstance(record.private, bool),
        "count_noise": record.count_noise is None or (_is_number(record.count_noise) and record.count_noise > 0),
    }
    possible["expected_batch_size"] &= possible["dataset_size"] and record.expected_batch_size <= record.dataset_size
    for name, good in possible.items():
        if not good:
            raise DpcheckError(f"a step of the ledger has {name}={getattr(record, name)!r}", where=where)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
