"""A fix that is killed while it writes several files is undone by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from styles import HEAD, tail

from dpcheck.cli import main
from dpcheck.errors import DpcheckError
from dpcheck.rewrite.files import written
from dpcheck.rewrite.journal import journal_of, recorded, recover

# Writes m.py and helper.py, and is killed: after the first (1), or after both and half of a third (2).
KILLED = """
import os, signal, sys
from pathlib import Path
from dpcheck.rewrite import files
from dpcheck.rewrite.journal import journal_of, recorded

written, real = [], files.replace
def replace(path, content):
    if len(written) == int(sys.argv[1]):
        path.with_name(f".{path.name}.abc.dpcheck").write_bytes(content[:1])
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(path)
    real(path, content)
files.replace = replace

paths = [Path(name).resolve() for name in ("m.py", "helper.py", "third.py")]
contents = {path: (path.read_bytes(), b"new " + path.read_bytes()) for path in paths}
with recorded(journal_of(paths[0]), contents), files.written(contents):
    pass
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_a_killed_fix_wrote_is_put_back(count: int) -> None:
    names = ("m.py", "helper.py", "third.py")
    for name in names:
        Path(name).write_text(f"# {name}\n")
    done = subprocess.run([sys.executable, "-c", KILLED, str(count)])
    assert done.returncode == -signal.SIGKILL
    assert [Path(name).read_text().startswith("new") for name in names] == [i < count for i in range(3)]
    if count == 2:
        Path("helper.py").write_text("# saved by the user\n")
    restored = [path.name for path in recover(Path("m.py"))]
    assert restored == [name for name in names[:count] if count < 2 or name != "helper.py"]
    assert Path("m.py").read_text() == "# m.py\n" and Path("third.py").read_text() == "# third.py\n"
    assert Path("helper.py").read_text() == ("# saved by the user\n" if count == 2 else "# helper.py\n")
    assert sorted(os.listdir()) == sorted(names) and recover(Path("m.py")) == ()


def test_a_record_that_was_not_finished_means_that_nothing_was_written() -> None:
    Path("m.py").write_text("a")
    journal_of(Path("m.py")).write_bytes(b'[["m.p')
    assert recover(Path("m.py")) == () and os.listdir() == ["m.py"]


def test_a_run_that_still_writes_is_left_alone() -> None:
    path = Path("m.py").resolve()
    path.write_bytes(b"a")
    contents = {path: (b"a", b"b")}
    with recorded(journal_of(path), contents), written(contents):
        with pytest.raises(DpcheckError, match="another run"):
            recover(path)
        with pytest.raises(DpcheckError, match="another run"), recorded(journal_of(path), contents):
            pass
        assert path.read_bytes() == b"b"
    assert os.listdir() == ["m.py"]


def test_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    clean = HEAD + "\nmodel = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))\n" + tail()
    Path("m.py").write_text(clean)
    Path("helper.py").write_text("# helper\n")
    Path("third.py").write_text("# third\n")
    subprocess.run([sys.executable, "-c", KILLED, "1"])
    assert Path("m.py").read_text().startswith("new ")
    Path("m.py").write_text(clean)
    main(["m.py"])
    assert "half fixed m.py" in capsys.readouterr().out
    Path("m.py").write_text("new " + clean)
    main(["m.py", "--fix"])
    assert "m.py is put back" in capsys.readouterr().out and Path("m.py").read_text() == clean
