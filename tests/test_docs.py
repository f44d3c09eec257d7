"""The documentation: rule pages are what the rules say, commands and links exist, YAML is YAML, examples run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dpcheck.rules import RULES

from dpcheck.cli import CLEAN, COMMANDS, ERROR, main
from dpcheck.rule_pages import pages

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS, *sorted((ROOT / "docs" / "rules").glob("*.md"))]


def test_rule_pages_are_those_of_the_rules() -> None:
    """If not: dpcheck rule --all --markdown docs/rules."""
    kept = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "rules").iterdir()}
    assert kept == pages(RULES)
    for rule in RULES:
        assert all(f"## {title}" in kept[f"{rule.code}.md"] for title in rule.sections())


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rule", "--all", "--markdown", str(tmp_path)]) == CLEAN
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == pages(RULES)
    assert main(["rule", "--all", "--markdown", str(tmp_path / "none")]) == ERROR
    assert main(["rule", "DP101", "--markdown", str(tmp_path)]) == ERROR
    assert "no such folder" in capsys.readouterr().err


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands_in(text: str) -> list[str]:
    """Lines of code that call dpcheck: in blocks, indented code, YAML and between backticks."""
    lines = [line.strip().removeprefix("- ").removeprefix("run: ") for line in text.splitlines()]
    inline = re.findall(r"`(dpcheck [^`]*)`", text)
    return [line for line in (*lines, *inline) if re.match(r"dpcheck( [\w\[\]./:\"$-]+)", line)]


@pytest.fixture(scope="module")
def options_of() -> Any:
    """The options of each subcommand, as its help says."""
    known: dict[str, set[str]] = {}

    def options(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
        if command not in known:
            with pytest.raises(SystemExit):
                main([command, "--help"] if command else ["--help"])
            known[command] = {*re.findall(r"(--?[a-z][\w-]*)", capsys.readouterr().out), "--traceback"}
        return known[command]

    return options


@pytest.mark.parametrize("page", [*PAGES, ROOT / "action.yml"], ids=lambda p: p.name)
def test_every_command_in_it_has_its_options(page: Path, options_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands_in(page.read_text(encoding="utf-8")):
        words = shlex.split(line.replace("[", " ").replace("]", " "), comments=True)[1:]
        command = words[0] if words and words[0] in COMMANDS else ""
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options_of(command, capsys), line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_action_and_the_hook_are_what_their_readers_want() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    assert action["runs"]["using"] == "composite"
    assert all("description" in given for given in action["inputs"].values())
    steps = action["runs"]["steps"]
    for step in steps:
        assert ("uses" in step) != ("run" in step)
        if "run" in step:
            assert step["shell"] == "bash"
            # What a caller gives reaches the shell as a variable: it cannot be read as code.
            assert "${{" not in step["run"]
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == set(action["inputs"])
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["id"] == hook["entry"] == "dpcheck"
    assert hook["pass_filenames"] is False


def test_the_yaml_of_the_page_on_ci_is_yaml_and_fits_the_action() -> None:
    found = [yaml.safe_load(text) for text in blocks((ROOT / "docs" / "ci.md").read_text(encoding="utf-8"), "yaml")]
    workflow = next(d for d in found if isinstance(d, dict) and "jobs" in d)
    (step,) = (s for s in workflow["jobs"]["dpcheck"]["steps"] if "dpcheck" in s["uses"])
    inputs = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["inputs"]
    assert step["with"].keys() <= inputs.keys()
    assert workflow["permissions"]["security-events"] == "write"
    (repo,) = next(d for d in found if isinstance(d, dict) and "repos" in d)["repos"]
    assert [hook["id"] for hook in repo["hooks"]] == ["dpcheck"]


MODEL = """\
import torch
from torch import nn

def make_model():
    return nn.Linear(3, 2)

def loss_fn(model, batch):
    return model(batch).square().sum(1)

def sample_batch():
    return torch.randn(4, 3)
"""


@pytest.mark.parametrize("page", DOCS, ids=lambda p: p.name)
def test_examples_in_python_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    torch.manual_seed(0)
    for text in blocks(page.read_text(encoding="utf-8"), "python"):
        names: dict[str, Any] = {}
        exec(compile(text, str(page), "exec"), names)
        for name, value in names.items():
            if name.startswith("test_"):
                value()


def test_the_readme_has_every_rule() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"docs/rules/(DP\d+)\.md", text)) == {rule.code for rule in RULES}
    assert dict(re.findall(r"docs/rules/(DP\d+)\.md.*\| (\S+) \|$", text, re.MULTILINE)) == {
        rule.code: rule.fix or "-" for rule in RULES
    }
