"""The user's file runs in a process of its own, with a time limit: whatever it does, there is an answer of ours.

No exit code of that process is believed: 0 is the answer only where the process says that it came to a verdict.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from dpcheck.errors import DpcheckError
from dpcheck.source import is_library, is_torch_or_ours

# Seconds for a check; training has no limit unless one is asked for.
TIME_LIMIT = 600.0
# Seconds until a process that was interrupted is killed.
_PATIENCE = 3.0
_FRAME = re.compile(rb'  File "(?P<file>[^"\n]+)", line (?P<line>\d+)')


def supervised(arguments: Sequence[str], timeout: float | None) -> int:
    """Run ``dpcheck ARGUMENTS`` in a new process; returns its exit code.

    Args:
        arguments: of the command.
        timeout: in seconds; ``None`` is no limit.

    Raises:
        DpcheckError: if the process takes too long, dies, ends before there is an answer, or goes on as two.
    """
    reader, writer = os.pipe()
    # -P: the folder where the user happens to be is not searched for modules.
    command = [sys.executable, "-P", "-m", "dpcheck.supervised", str(writer), *arguments]
    sys.stdout.flush()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(writer,), start_new_session=True)
    os.close(writer)
    said = bytearray()
    try:
        with _stopped_by_signals():
            try:
                _listen(process, reader, timeout, said)
            except (KeyboardInterrupt, SystemExit) as stop:
                # What trains takes its step to the end and writes a checkpoint, unless it is interrupted again.
                number = signal.SIGTERM if isinstance(stop, SystemExit) else signal.SIGINT
                _end(process, number, None if b"patience\n" in said else _PATIENCE)
                said += _read(reader, 0.0)
                if isinstance(stop, SystemExit) or _answer(said) is None:
                    raise
    finally:
        _end(process, signal.SIGKILL, 5.0)
        os.close(reader)
    answer = _answer(said)
    if b"forked\n" in said:
        raise DpcheckError(
            "the target forked the process while it was loaded: two copies of the check would go on",
            _where(said),
            'start processes below if __name__ == "__main__":, not on import',
        )
    if answer is not None:
        return answer
    code = process.returncode
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = "; a process that takes too much memory is killed so" if name == "SIGKILL" else ""
        raise DpcheckError(
            f"the process died by {name} before there was a verdict{memory}", _where(said), _alone(arguments)
        )
    raise DpcheckError(
        f"the target ended the process (exit code {code}) before there was a verdict",
        _where(said),
        "take os._exit and the like out of the file; nothing was checked",
    )


def _alone(arguments: Sequence[str]) -> str:
    target = next((a for a in arguments if not a.startswith("-")), "model.py").partition(":")[0]
    return f"see whether `python {target}` dies as well"


def _answer(said: bytes | bytearray) -> int | None:
    found = re.search(rb"^answer (\d+)$", said, re.MULTILINE)
    return int(found[1]) if found else None


def _listen(process: subprocess.Popen[bytes], reader: int, timeout: float | None, said: bytearray) -> None:
    """Put into ``said`` what the process says until it ends.

    Raises:
        DpcheckError: when the time is over, with the line that ran then.
    """
    end = None if timeout is None else time.monotonic() + timeout
    os.set_blocking(reader, False)
    while process.poll() is None and b"forked\n" not in said:
        said += _read(reader, 0.1)
        if b"\nanswer " in b"\n" + said:
            # Threads that the target has left behind need not be waited for long.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10.0)
            break
        if end is not None and time.monotonic() > end:
            process.send_signal(signal.SIGUSR1)
            said += _read(reader, 2.0)
            raise DpcheckError(
                f"no verdict after {timeout:g} s, the time limit",
                _where(said),
                "mend what loops there, or give more time: --timeout 3600",
            )
    said += _read(reader, 0.0)


def _read(reader: int, seconds: float) -> bytes:
    if not select.select([reader], [], [], seconds)[0]:
        return b""
    time.sleep(0.01 if seconds else 0.0)
    try:
        data = os.read(reader, 1 << 20)
    except BlockingIOError:
        return b""
    if not data and seconds:
        time.sleep(seconds)  # the other end is closed; the process has yet to end
    return data


def _where(said: bytes | bytearray) -> str | None:
    """The innermost line of the user's own in a traceback that the process left."""
    frames = [(os.fsdecode(frame["file"]), int(frame["line"])) for frame in _FRAME.finditer(said)]
    own = [f"{file}:{line}" for file, line in frames if not is_torch_or_ours(file) and not is_library(file)]
    return own[0] if own else None


def _end(process: subprocess.Popen[bytes], number: signal.Signals, seconds: float | None) -> None:
    """Send a signal to the process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """A signal that would end us ends the other process, too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
