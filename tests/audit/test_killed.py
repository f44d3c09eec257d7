"""kill -9 at any point of a step or of writing a checkpoint: nothing is under-counted, nothing is unreadable."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dpcheck.engine.checkpoint import load_checkpoint, save_checkpoint
from dpcheck.engine.ledger import Ledger
from tiny import Closed, engine

from dpcheck import writing


def _train(folder: Path, ready: int) -> None:
    """Resumes what there is, and trains until it is killed; one byte in ``seen`` for each look at the records."""
    seen = os.open(folder / "seen", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    class Watched(Closed):
        def before(self, batch: Any) -> None:
            os.write(seen, b".")

    trained = engine(ledger=folder / "ledger", clipper=Watched, physical_batch_size=40)
    if (folder / "run.pt").exists():
        load_checkpoint(trained, folder / "run.pt")
    os.write(ready, b"!")
    for batch in trained:
        trained.step(batch)
        if batch.step % 3 == 0:
            save_checkpoint(trained, folder / "run.pt")


def _killed(folder: Path, steps: int, prepare: Callable[[], None] = lambda: None) -> None:
    """A child that trains, killed when the ledger has so many steps more, or a moment later, or by itself before."""
    ledger, chance = folder / "ledger", random.Random(steps)
    goal = (ledger.stat().st_size if ledger.exists() else 0) + 150 * steps
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare()
            _train(folder, writable)
        finally:
            os._exit(3)
    os.close(writable)
    resumed = os.read(readable, 1)
    os.close(readable)
    status = (0, 0)
    while resumed and status == (0, 0) and (ledger.stat().st_size if ledger.exists() else 0) < goal:
        time.sleep(0.0005)
        status = os.waitpid(child, os.WNOHANG)
    if status == (0, 0):
        time.sleep(chance.choice([0, 0.001, 0.003]))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status[1]), f"the child stopped by itself with {os.waitstatus_to_exitcode(status[1])}"


def _examine(folder: Path, before: int) -> int:
    seen = (folder / "seen").stat().st_size
    steps = Ledger(folder / "ledger").steps()
    # Empty draws look at no record, so there may be fewer looks than steps; never more.
    assert steps >= seen, f"{seen} steps looked at records, {steps} are counted"
    assert steps >= before
    resumed = engine(ledger=folder / "ledger")
    assert resumed.ledger.steps() == steps
    if (folder / "run.pt").exists():
        load_checkpoint(resumed, folder / "run.pt")
        assert resumed.ledger.steps() == steps, "loading the checkpoint changed the count"
    return steps


def _kill_often(folder: Path, times: int) -> None:
    chance, steps = random.Random(5), 0
    for _ in range(times):
        _killed(folder, chance.randrange(6))
        steps = _examine(folder, steps)
    assert steps > times
    # What a killed writer leaves behind does not hinder the next one.
    assert (folder / "run.pt").exists()


def test_a_run_that_is_killed_again_and_again(tmp_path: Path) -> None:
    _kill_often(tmp_path, 8)


@pytest.mark.long
def test_a_run_that_is_killed_two_hundred_times(tmp_path: Path) -> None:
    _kill_often(tmp_path, 220)


POINTS = {
    "before the ledger is forced to disk": (os, "fsync", 3, False),
    "after the ledger is forced to disk": (os, "fsync", 3, True),
    "before a checkpoint takes its place": (os, "replace", 2, False),
    "after a checkpoint took its place": (os, "replace", 2, True),
    "while the ledger is written": (writing, "append_whole", 4, False),
    "before records are looked at": (Closed, "__call__", 4, False),
    "after records were looked at": (Closed, "__call__", 4, True),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(tmp_path: Path, point: str) -> None:
    owner, name, after, done = POINTS[point]

    def prepare() -> None:
        original, calls = getattr(owner, name), [0]

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] < after:
                return original(*args, **kwargs)
            if name == "append_whole":
                with args[0].open("ab", buffering=0) as file:
                    file.write(args[1][: len(args[1]) // 2])
            elif done:
                original(*args, **kwargs)
            return os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, call)
        if name == "append_whole":
            from dpcheck.engine import ledger

            ledger.append_whole = call  # type: ignore[assignment]

    _killed(tmp_path, 1000, prepare)
    steps = _examine(tmp_path, 0)
    _killed(tmp_path, 2)
    _examine(tmp_path, steps)
