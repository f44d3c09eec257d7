"""Targets that do what they should not: there is an error of ours and exit code 2, and never a silent 0."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from dpcheck.cli import main
from dpcheck.errors import DpcheckError
from dpcheck.options.base import time_limit
from dpcheck.supervise import supervised

CLEAN = """
import torch
model = torch.nn.Linear(3, 1)
def loss_fn(model, batch): return model(batch).sum(1)
def sample_batch(): return torch.ones(4, 3)
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "t.py"


@pytest.mark.parametrize(
    ("code", "says", "line"),
    [
        ("import os\nos._exit(0)", "ended the process (exit code 0) before there was a verdict", None),
        ("import os\n\nos.kill(os.getpid(), 11)", "died by SIGSEGV", 3),
        (
            "import os\nos.kill(os.getpid(), 9)",
            "died by SIGKILL before there was a verdict; a process",
            None,
        ),
        ("import os\nos.fork()" + CLEAN, "the target forked", None),
    ],
)
def test_what_ends_or_doubles_the_process_is_no_verdict(code: str, says: str, line: int | None, target: Path) -> None:
    target.write_text(code)
    with pytest.raises(DpcheckError) as caught:
        supervised(["t.py"], 120.0)
    assert says in caught.value.what and caught.value.next
    assert line is None or caught.value.where == f"{target}:{line}"


def test_what_loops_is_stopped_at_its_line(target: Path) -> None:
    target.write_text("import time\nopen('begun', 'w').close()\nwhile True:\n    time.sleep(0.01)\n")
    start = time.monotonic()
    with pytest.raises(DpcheckError) as caught:
        supervised(["t.py"], 40.0)
    assert time.monotonic() - start < 90 and "no verdict after 40 s" in caught.value.what
    assert Path("begun").exists() and caught.value.where == f"{target}:4"


def test_the_command_of_a_shell_is_supervised_and_prints(
    target: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target.write_text("import os, sys\nos.system('echo said by a child')\nprint('said')\nsys.stdin.read()" + CLEAN)
    monkeypatch.setattr(sys, "argv", ["dpcheck", "t.py"])
    assert main() == 0
    out = capfd.readouterr().out
    assert "t.py:model: independent" in out and "said by a child" in out
    target.write_text("import sys\nsys.exit(0)")
    assert main() == 2
    captured = capfd.readouterr()
    assert "SystemExit: 0" in captured.err and f"{target}:2" in captured.err


def test_the_time_limit_is_for_checks_and_can_be_chosen() -> None:
    assert time_limit(["m.py"]) == 600 and time_limit(["verify", "m.py"]) == 600
    assert time_limit(["m.py", "--train"]) is None and time_limit(["m.py", "--train", "--timeout", "9"]) == 9
    for wrong in ("0", "-1", "nan", "soon"):
        with pytest.raises(DpcheckError, match="--timeout"):
            time_limit(["m.py", f"--timeout={wrong}"])
