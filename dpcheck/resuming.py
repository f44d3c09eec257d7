"""Training that is kept on disk, can be stopped with Ctrl-C, and goes on where it was."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dpcheck.engine.accounting import at_most
from dpcheck.engine.checkpoint import read_checkpoint, save_checkpoint
from dpcheck.engine.ledger import Ledger
from dpcheck.engine.metrics import Bar
from dpcheck.engine.trainer import PrivacyEngine
from dpcheck.errors import DpcheckError
from dpcheck.supervised import ask_patience
from dpcheck.writing import refuse_unwritable

log = logging.getLogger("dpcheck")
# Seconds between two checkpoints; more where writing one takes a noticeable part of them.
EVERY, SHARE = 60.0, 20.0
_LEDGER = ".ledger.jsonl"


@dataclass(frozen=True)
class Keeping:
    """Where a run is kept.

    Attributes:
        checkpoint: the file that is kept up to date; None to write one only when the run is stopped.
        resume: whether the run in it goes on.
        stopped: the file to begin with when the run is stopped and there is no checkpoint.
        again: from a checkpoint to the command that resumes it.
    """

    checkpoint: Path | None
    resume: bool
    stopped: Path
    again: Callable[[Path], str]


def kept_in(options: Any, again: Callable[[Path], str]) -> tuple[Keeping, str | None]:
    """What ``--checkpoint``, ``--resume`` and ``--ledger`` say, and the path of the ledger.

    Steps taken after a checkpoint are known from the ledger alone, so that there always is one beside a checkpoint.

    Raises:
        DpcheckError: for a checkpoint that exists and is not resumed, one without its ledger, and for paths that
            cannot be written.
    """
    new, resume = (getattr(options, f"train_{name}", None) for name in ("checkpoint", "resume"))
    ledger: str | None = getattr(options, "train_ledger", None)
    stopped = Path(Path(options.target.partition(":")[0]).stem + ".checkpoint")
    if new and resume:
        raise DpcheckError(
            "--checkpoint and --resume exclude each other", next="--resume PATH keeps that one up to date"
        )
    if new:
        refuse_unwritable(new, "--checkpoint")
        if Path(new).exists():
            raise DpcheckError(
                f"{new} exists", "--checkpoint", f"go on with its run: --resume {new}, or pass another path"
            )
    if resume:
        ledger = ledger or resume + _LEDGER
        _refuse_incomplete(resume, ledger)
    ledger = ledger or (new + _LEDGER if new else None)
    if ledger and Path(ledger).is_file():
        Ledger.read(ledger)  # refuses what is none
    path = new or resume
    return Keeping(Path(path) if path else None, bool(resume), stopped, again), ledger


def _refuse_incomplete(checkpoint: str, ledger: str) -> None:
    engine = read_checkpoint(checkpoint)["engine"]
    if not Path(ledger).is_file():
        raise DpcheckError(
            f"there is no ledger {ledger}: steps taken after the checkpoint would not be counted",
            "--resume",
            "pass --ledger PATH, the ledger of the run; without it, what was spent is unknown",
        )
    saved = Ledger()
    saved.absorb(engine["ledger"])
    known, taken = (of.steps(engine["run"]) for of in (Ledger.read(ledger), saved))
    if known < taken:
        raise DpcheckError(
            f"the ledger {ledger} has {known} steps of the run of {checkpoint}, which took {taken}",
            "--ledger",
            "pass the ledger of that run; without it, what was spent is unknown",
        )


def fit(engine: PrivacyEngine, keeping: Keeping, *, progress: bool) -> None:
    """Takes all steps that are left.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the step is over and a checkpoint is written, with what to do next.
    """
    bar = Bar(engine.settings.steps, engine.steps_taken) if progress else contextlib.nullcontext()
    due = time.monotonic() + EVERY
    with bar as shown, _asked_to_stop() as asked:
        for batch in engine:
            metrics = engine.step(batch)
            if shown is not None:
                shown.show(metrics)
            if asked() and len(engine):
                raise KeyboardInterrupt(_stopped(engine, keeping))
            if keeping.checkpoint is not None and time.monotonic() >= due:
                due = _saved(engine, keeping.checkpoint)
    if keeping.checkpoint is not None:
        save_checkpoint(engine, keeping.checkpoint)


def _saved(engine: PrivacyEngine, path: Path) -> float:
    """Write a checkpoint; returns when the next is due."""
    start = time.monotonic()
    try:
        save_checkpoint(engine, path)
    except DpcheckError as error:
        log.warning("no checkpoint was written, training goes on: %s", error.what)
    now = time.monotonic()
    return now + max(EVERY, SHARE * (now - start))


def _stopped(engine: PrivacyEngine, keeping: Keeping) -> str:
    """Keeps the run; returns what there is to say."""
    path, number = keeping.checkpoint or keeping.stopped, 1
    while path != keeping.checkpoint and path.exists():
        number += 1
        path = keeping.stopped.with_stem(f"{keeping.stopped.stem}-{number}")
    save_checkpoint(engine, path)
    if engine.ledger.path is None:
        Ledger(str(path) + _LEDGER).absorb(engine.ledger.state_dict())
    s = engine.settings
    spent = (
        "NOT PRIVATE" if s.seed is not None else f"epsilon <= {at_most(engine.epsilon().upper)} at delta {s.delta:g}"
    )
    return (
        f"stopped after {engine.steps_taken} of {s.steps} steps ({spent}); the run is kept in {path}\n"
        f"  next: {keeping.again(path)}"
    )


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, or somebody asked to end; a second time ends at once. What is ignored stays so."""
    asked: list[int] = []
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = {number: handler for number, handler in usual.items() if signal.getsignal(number) == handler}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        restore()
        print("stopping after this step; Ctrl-C again to stop at once, without a checkpoint", file=sys.stderr)

    def restore() -> None:
        for number, handler in ours.items():
            signal.signal(number, handler)

    for number in ours:
        signal.signal(number, ask)
    ask_patience()
    try:
        yield lambda: bool(asked)
    finally:
        restore()
