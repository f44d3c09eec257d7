"""--output-file where writing goes wrong or the path is no file; what ignored findings do to a certificate."""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_files import CLEAN_MODEL, HEAD, MIXING_MODEL

from dpcheck.cli import CLEAN, ERROR, FINDINGS, main

SARIF = ["m.py", "--format", "sarif", "--output-file"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(HEAD + CLEAN_MODEL, encoding="utf-8")
    return tmp_path


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file gets more than 20 kB, which the kernel refuses as it refuses a write to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file(folder: Path, full_disk: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.sarif").write_text("old")
    assert main([*SARIF, "out.sarif"]) == ERROR
    assert "out.sarif cannot be written" in capsys.readouterr().err
    assert Path("out.sarif").read_text() == "old" and sorted(os.listdir(folder)) == ["m.py", "out.sarif"]


@pytest.mark.parametrize("path", ["/proc/dpcheck.sarif", "m.py/out.sarif", "", "x" * 300])
def test_a_path_that_takes_no_file_is_an_error_that_says_so(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SARIF, path]) == ERROR
    said = capsys.readouterr()
    assert "written" in said.err and "internal error" not in said.err and not said.out


def test_a_pipe_is_written_to_and_stays_one() -> None:
    os.mkfifo("pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()), daemon=True)
    reader.start()
    assert main([*SARIF, "pipe"]) == CLEAN
    reader.join(10)
    assert json.loads(read[0])["version"] == "2.1.0"
    assert Path("pipe").is_fifo()


def test_an_ignored_finding_is_not_certified(capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.py").write_text(HEAD + MIXING_MODEL, encoding="utf-8")
    assert main(["m.py", "--ignore", "DP1"]) == CLEAN
    assert main(["m.py", "--ignore", "DP1", "--certificate", "c.json"]) == FINDINGS
    assert "certifies nothing" in capsys.readouterr().out
    assert json.loads(Path("c.json").read_text())["valid"] is False
