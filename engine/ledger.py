"""The ledger: an append-only record of every step that touched the data, from which epsilon is computed.

A step is written before anything is computed from its data, so that a crash can only count a step too many.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from dpcheck.engine.accounting import Bounds, Phase, epsilon_of
from dpcheck.engine.step_record import StepRecord, adjacency_of, check_record, is_whole

from dpcheck.errors import DpcheckError
from dpcheck.writing import append_whole

VERSION = 2
# Of each version, the fields that its steps may have beside those of version 1.
_LATER: dict[int, frozenset[str]] = {1: frozenset(), 2: frozenset({"count_noise"})}


_WROTE = "pass the file that `dpcheck train --ledger PATH` or Ledger(path) wrote"
Entries = list[tuple[StepRecord, int]]
Sort = tuple[float, float, str]


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
        self._phases: Counter[Sort] = Counter()
        if self.path is None:
            return
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise DpcheckError(
                f"no ledger can be written to {self.path}", where="ledger", next="pass a path in a folder"
            )
        if self.path.exists():
            entries, complete = _read(self.path)
            for record, count in entries:
                self._add(record, count)
            if complete < self.path.stat().st_size:
                os.truncate(self.path, complete)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ledger:
        """The ledger of a file, in memory: the file is not changed.

        Raises:
            DpcheckError: if there is no such file, or it is not a ledger.
        """
        if not Path(path).is_file():
            raise DpcheckError(f"there is no ledger {path}", where="ledger", next=_WROTE)
        ledger = cls()
        for record, count in _read(Path(path))[0]:
            ledger._add(record, count)
        return ledger

    def append(self, record: StepRecord, count: int = 1) -> None:
        """Adds ``count`` steps; they are on disk when this returns, if there is a path.

        Raises:
            DpcheckError: for a step that :meth:`epsilon` could not account for, and if the file cannot be written, as
                on a full disk: nothing is added then.
        """
        check_record(record, "Ledger.append")
        adjacency_of([*self._first, record])
        if not is_whole(count):
            raise DpcheckError(f"a step of the ledger has count={count!r}", where="Ledger.append")
        if self.path is not None:
            append_whole(self.path, ((json.dumps(_values(record)) + "\n") * count).encode())
        self._add(record, count)

    def _add(self, record: StepRecord, count: int) -> None:
        adjacency_of([*self._first, record])
        _push(self._entries, record, count)
        self._steps[record.run] += count
        self._phases[_sort(record)] += count

    @property
    def _first(self) -> list[StepRecord]:
        return [record for record, _ in self._entries[:1]]

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
        """What all steps together have spent, for the adjacency that all of them have. ``.upper`` is the guarantee."""
        return spent(self.phases(), delta, adjacency_of(self._first))

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
    steps: Counter[Sort] = Counter()
    for record, count in entries:
        steps[_sort(record)] += count
    return _phases(steps)


def _sort(record: StepRecord) -> Sort:
    """What the accountant needs to know of a step. The clipping norm is not: the noise is relative to it."""
    return record.joint_noise, record.sample_rate, record.sampler


def _phases(steps: Mapping[Sort, int]) -> tuple[Phase, ...]:
    return tuple(Phase(noise, rate, count, sampler) for (noise, rate, sampler), count in steps.items())


@lru_cache(maxsize=64)
def spent(phases: tuple[Phase, ...], delta: float, adjacency: str = "add-remove") -> Bounds:
    """Epsilon of a composition, remembered."""
    return epsilon_of(phases, delta, adjacency=adjacency)


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


def _read(path: Path) -> tuple[Entries, int]:
    """The steps, and how many bytes hold them."""
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
    return entries, len(complete)


def _parse_state(state: Mapping[str, Any]) -> Entries:
    mapping: Mapping[str, Any] = state if isinstance(state, Mapping) else {"version": VERSION}
    version, written = mapping.get("version"), mapping.get("entries")
    if not isinstance(version, int) or version not in _LATER:
        raise DpcheckError(
            f"the ledger has version {version!r}; this dpcheck reads versions up to {VERSION}", where="ledger"
        )
    if not isinstance(written, list) or not all(isinstance(entry, Mapping) for entry in written):
        raise DpcheckError(
            f"this is no ledger: {str(state)[:60]}", where="ledger", next="pass engine.state_dict() as it was saved"
        )
    entries: Entries = []
    for i, entry in enumerate(written):
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
    check_record(record, where)
    return record
