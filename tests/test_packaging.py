"""What is installed: the wheel holds the tree, it works on its own, and it is clean for ruff and mypy."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Where the parts of the package lie in the tree.
FOLDERS = {"dpcheck": "dpcheck", "rules": "dpcheck/rules", "engine": "dpcheck/engine"}
_KEPT = (".py", ".typed", ".json")


def _run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree (building leaves files behind) and unpacked."""
    copy, out, wheel = (tmp_path_factory.mktemp(name) for name in ("tree", "unpacked", "wheel"))
    for name in ("pyproject.toml", "README.md", "LICENSE", *FOLDERS):
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy)], check=True)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheel))
    build = _run(sys.executable, "-m", "pip", "wheel", *options, str(copy))
    assert build.returncode == 0, build.stderr
    (path,) = wheel.glob("*.whl")
    zipfile.ZipFile(path).extractall(out)
    return out


def test_the_wheel_holds_the_tree_and_nothing_else(unpacked: Path) -> None:
    tree = {
        str(Path(target, path.relative_to(ROOT / source)))
        for source, target in FOLDERS.items()
        for path in (ROOT / source).rglob("*")
        if path.suffix in _KEPT
    }
    packed = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    code = {name for name in packed if ".dist-info/" not in name}
    assert code == tree
    (entry,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "dpcheck = dpcheck.cli:main" in entry.read_text()


def test_the_unpacked_wheel_runs_without_the_tree(unpacked: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import dpcheck.engine, dpcheck.rules; "
        "from dpcheck.cli import main; print(dpcheck.engine.__file__); sys.exit(main(['rule', 'DP101']))"
    )
    done = _run(sys.executable, "-I", "-c", code, str(unpacked), cwd=unpacked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(unpacked))
    assert "batch-norm" in done.stdout


def test_mypy_is_strict_and_clean(unpacked: Path) -> None:
    """On the wheel, where the packages lie as they are imported."""
    done = _run(
        sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", os.devnull,
        cwd=unpacked,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_is_clean() -> None:
    for command in (["check"], ["format", "--check"]):
        done = _run(sys.executable, "-m", "ruff", *command, "--no-cache", ".")
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_is_short() -> None:
    """One idea each."""
    folders = ("dpcheck", "rules", "engine", "tests", "examples", "benchmarks")
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 310
    }
    assert not long


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["rule", "DP101"], ["rule", "--all"]])
def test_help_and_rules_do_not_import_torch(command: list[str]) -> None:
    code = "import sys; from dpcheck.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    done = _run(sys.executable, "-c", code + "sys.exit('torch' in sys.modules)", *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout
