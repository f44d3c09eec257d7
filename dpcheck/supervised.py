"""The process in which the user's file runs, and what it tells the one that waits for it."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

# The process that answers, and where to; set once by main.
_process: int | None = None
_writer = -1


def refuse_copies() -> None:
    """End a copy of the process that a target has forked. Called where the target's code returns to ours."""
    if _process is not None and os.getpid() != _process:
        faulthandler.dump_traceback(_writer, all_threads=False)
        os.write(_writer, b"forked\n")
        os._exit(2)


def ask_patience() -> None:
    """Tell the one that waits that this process ends by itself some time after Ctrl-C, with an answer."""
    if _process is not None and os.getpid() == _process:
        os.write(_writer, b"patience\n")


def main() -> int:
    """Run the command with all arguments but the first, which is the file descriptor for the answer."""
    global _process, _writer
    _process, _writer = os.getpid(), int(sys.argv[1])
    os.set_inheritable(_writer, False)
    faulthandler.enable(_writer, all_threads=False)
    faulthandler.register(signal.SIGUSR1, _writer, all_threads=False)
    from dpcheck.cli import main as run

    code: int | str | None
    try:
        code = run(sys.argv[2:])
    except SystemExit as end:  # --help and the like
        code = end.code
    refuse_copies()
    sys.stdout.flush()
    os.write(_writer, f"\nanswer {code if isinstance(code, int) else 0 if code is None else 2}\n".encode())
    return int(code or 0) if not isinstance(code, str) else 2


if __name__ == "__main__":
    # The module by its own name, so that what imports it finds the same one.
    from dpcheck import supervised

    sys.exit(supervised.main())
