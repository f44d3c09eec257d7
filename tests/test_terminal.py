"""Colours and widths: on a terminal, in a pipe, and as NO_COLOR, FORCE_COLOR, COLUMNS and TERM ask."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
import torch
from dpcheck.engine.metrics import Bar, Metrics

from dpcheck.report import terminal

# A sentence of 300 characters, a table and a spinner, in the words of the package.
SCRIPT = """
from rich.table import Table
from dpcheck.report import terminal
console = terminal()
with terminal(stderr=True).status("checking"):
    console.print("[red]" + "word " * 60 + "[/]")
table = Table("[green]first[/]", "second")
table.add_row("x" * 50, "y" * 50)
console.print(table)
"""
ESCAPE, COLOUR, CURSOR = "\x1b", re.compile(r"\x1b\[[0-9;]*3[0-7]m"), re.compile(r"\x1b\[(\?25[lh]|\d*[AK])")


def environment(**given: str) -> dict[str, str]:
    asked = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {k: v for k, v in os.environ.items() if k not in asked} | {"TERM": "xterm-256color"} | given


def piped(**given: str) -> str:
    arguments = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment(**given), timeout=60, check=True)
    assert "checking" not in done.stderr and ESCAPE not in done.stderr
    return done.stdout


def on_a_terminal(columns: int, **given: str) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**given)
    ) as process:
        os.close(theirs)
        printed = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            printed += more
        assert process.wait(60) == 0
    os.close(ours)
    return printed.decode()


def width(text: str) -> int:
    return max(len(re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", line).rstrip()) for line in text.splitlines())


def test_a_terminal_gets_colours_progress_and_its_width() -> None:
    text = on_a_terminal(60)
    assert COLOUR.search(text) and CURSOR.search(text) and width(text) <= 60
    assert width(on_a_terminal(60, COLUMNS="45")) <= 45


def test_no_color_and_a_dumb_terminal_get_none() -> None:
    assert not COLOUR.search(on_a_terminal(60, NO_COLOR="1"))
    assert ESCAPE not in on_a_terminal(60, TERM="dumb")


@pytest.mark.parametrize("given", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_pipe_gets_plain_text_in_whole_lines(given: dict[str, str]) -> None:
    text = piped(**given)
    assert ESCAPE not in text and "word " * 59 in text
    assert width(text[text.index("\n") :]) == 107  # the table, not folded


def test_a_pipe_takes_columns_for_tables_and_folds_no_sentence() -> None:
    text = piped(COLUMNS="50")
    assert "word " * 59 in text and width(text[text.index("\n") :]) <= 50


def test_forced_colours_in_a_pipe_change_nothing_else() -> None:
    text = piped(FORCE_COLOR="1")
    assert COLOUR.search(text) and not CURSOR.search(text)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == piped()
    assert not COLOUR.search(piped(FORCE_COLOR="1", NO_COLOR="1"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("given", [{}, {"FORCE_COLOR": "1"}])
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_bar_of_a_training_moves_on_a_terminal_and_is_one_line_elsewhere(
    stream: type[io.StringIO], given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    for name, value in environment(**given).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream())
    with Bar(3, 0) as bar:
        for step in range(3):
            bar.show(Metrics(step, None, None, 0, torch.empty(0), {}, 1.0, 1e-5, ()))
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "3/3" in text and bool(CURSOR.search(text)) == (stream is Terminal)
    if stream is io.StringIO:
        assert len(text.splitlines()) == 1 and ESCAPE not in text


def test_a_closed_pipe_is_no_error() -> None:
    command = f"'{sys.executable}' -m dpcheck rule --all | sleep 0; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stdout.strip() == "2" and "Traceback" not in done.stderr and "Error" not in done.stderr


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    terminal(quiet=True).print("something")
    assert capsys.readouterr().out == ""
