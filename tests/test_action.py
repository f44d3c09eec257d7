"""The steps of action.yml are run: by bash as GitHub's runner calls it, with the files and variables it sets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_files import CLEAN_MODEL, HEAD, MIXING_MODEL

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step.get("name"): step for step in ACTION["runs"]["steps"]}


class Runner:
    """The job of one workflow that uses the action with these inputs, in a checkout at ``folder``."""

    def __init__(self, folder: Path, **inputs: str) -> None:
        defaults = {name: str(given.get("default", "")) for name, given in ACTION["inputs"].items()}
        self.values = {f"inputs.{name}": value for name, value in defaults.items()}
        self.values |= {f"inputs.{name.replace('_', '-')}": value for name, value in inputs.items()}
        self.values["github.action_path"] = str(ROOT)
        self.folder, self.printed = folder, ""

    def text(self, template: str) -> str:
        """With what stands in ``${{ }}`` replaced by its value."""
        return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: self.values.get(found[1], ""), template)

    def wants(self, step: dict[str, Any]) -> bool:
        """Whether a step's ``if`` holds: comparisons of names and strings, with and, or and brackets."""
        words = step.get("if", "true").strip("${} ").replace("&&", " and ").replace("||", " or ")
        if words == "true":
            return True
        named = re.sub(r"\b(?:inputs|steps)\.[\w.-]+", lambda found: repr(self.values.get(found[0], "")), words)
        assert re.fullmatch(r"[\w'\s=()-]*", named)
        return bool(eval(named, {"__builtins__": {}}))

    def run(self, name: str, path: str = "") -> int:
        """One step; what it writes to ``$GITHUB_OUTPUT`` can be read by later steps."""
        step, output = STEPS[name], self.folder / "github_output"
        output.write_text("")
        script = self.folder / "step.sh"
        script.write_text(self.text(step["run"]))
        given = {key: self.text(value) for key, value in step.get("env", {}).items()}
        base = {
            "PATH": os.pathsep.join([path, str(Path(sys.executable).parent), os.environ["PATH"]]).strip(os.pathsep),
            "HOME": str(self.folder), "CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(output),
            "GITHUB_WORKSPACE": str(self.folder), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        assert step["shell"] == "bash"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder, env=base | given, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        self.printed = done.stdout + done.stderr
        for line in output.read_text().splitlines():
            key, _, value = line.partition("=")
            self.values[f"steps.{step.get('id', '')}.outputs.{key}"] = value
        return done.returncode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("clean.py", CLEAN_MODEL), ("mixing.py", MIXING_MODEL)):
        (tmp_path / name).write_text(HEAD + text, encoding="utf-8")
    return tmp_path


def test_a_clean_model_passes_and_its_sarif_is_uploaded(folder: Path) -> None:
    job = Runner(folder, target="clean.py")
    assert job.run("Check") == 0, job.printed
    assert json.loads((folder / "dpcheck.sarif").read_text())["runs"][0]["results"] == []
    assert job.wants(STEPS["Upload"]) and not Runner(folder, upload="false").wants(STEPS["Upload"])
    assert job.run("Result") == 0


def test_findings_are_uploaded_and_then_fail_the_job_unless_told_otherwise(folder: Path) -> None:
    job = Runner(folder, target="mixing.py")
    assert job.run("Check") == 0, job.printed
    (result,) = json.loads((folder / "dpcheck.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] == "DP101"
    assert job.wants(STEPS["Upload"])
    assert job.run("Result") == 1 and "::error::" in job.printed
    job.values["inputs.exit-zero"] = "true"
    assert job.run("Result") == 0


def test_an_error_fails_at_once_and_nothing_is_uploaded(folder: Path) -> None:
    job = Runner(folder, target="no file; touch owned")
    assert job.run("Check") == 2 and "no such file" in job.printed
    assert job.values["steps.check.outputs.code"] == "2"
    assert not job.wants(STEPS["Upload"]) and not (folder / "owned").exists()
    # Steps behind a failed one are left out by the runner; this one would fail, too.
    assert job.run("Result") == 2


def test_a_check_that_was_killed_fails_whatever_exit_zero_says(folder: Path) -> None:
    (folder / "bin").mkdir()
    killed = folder / "bin" / "dpcheck"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    job = Runner(folder, target="clean.py", exit_zero="true")
    assert job.run("Check", path=str(folder / "bin")) == 137
    assert not job.wants(STEPS["Upload"])


def test_options_in_several_lines_are_all_passed(folder: Path) -> None:
    job = Runner(folder, target="mixing.py", arguments="--ignore DP1\n--ignore   DP2\n--no-such-option\n")
    assert job.run("Check") == 2 and "--no-such-option" in job.printed


def test_the_packages_are_installed_from_the_action_s_folder_and_the_user_s_command_fails_the_job(folder: Path) -> None:
    """``python`` is one that writes down what it is asked for: nothing is downloaded."""
    (folder / "bin").mkdir()
    recorder = folder / "bin" / "python"
    recorder.write_text('#!/bin/sh\necho "python $*"\n')
    recorder.chmod(0o755)
    job = Runner(folder, install="echo extra; false; echo not reached")
    assert job.run("Install", path=str(folder / "bin")) == 1
    lines = job.printed.splitlines()
    assert lines[-1] == "extra" and lines[1].endswith(f" {ROOT}") and "torch==2.13" in lines[0]
    assert Runner(folder).run("Install", path=str(folder / "bin")) == 0
