"""What ``--fix`` does to files: all of it or nothing, only in the project, and put back where it does not pass."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import HEAD, STYLES, tail
from torch import nn

import dpcheck
from dpcheck.cli import main
from dpcheck.errors import DpcheckError
from dpcheck.options.base import CLEAN, FINDINGS
from dpcheck.project import options_of
from dpcheck.rewrite import files
from dpcheck.rewrite.afresh import Fresh
from dpcheck.rewrite.apply import Outcome, apply
from dpcheck.rewrite.files import Project, written
from dpcheck.rewrite.plan import plan
from dpcheck.target import load

FINE = [Fresh(True, "independent", (), None)]
ROWS = "torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])"
MODEL = HEAD + "\nmodel = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))\n" + tail(ROWS)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def file(text: str, path: str = "m.py") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def fixed(path: str, answers: Sequence[Fresh] = FINE) -> Outcome:
    """``--fix --unsafe-fixes`` in this process, with the answers of the new processes given."""
    target = load(path)
    result = dpcheck.fix(target.model, target.loss_fn, target.batch, unsafe=True)
    left = list(answers)
    return apply(target, result, judge=lambda _: [left.pop(0)])


def test_the_command_writes_checks_afresh_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    path = file(MODEL)
    assert main(["m.py", "--fix"]) == FINDINGS
    assert "pass unsafe=True (--unsafe-fixes)" in capsys.readouterr().out
    assert main(["m.py", "--diff", "--unsafe-fixes"]) == FINDINGS
    out = capsys.readouterr().out
    assert "-model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))" in out
    assert "+model = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(1, 8), nn.Linear(8, 3))" in out
    assert path.read_text(encoding="utf-8") == MODEL, "neither of them may write"
    assert main(["m.py", "--fix", "--unsafe-fixes", "--format", "json"]) == CLEAN
    document = json.loads(capsys.readouterr().out)
    source = document["fix"]["source"]
    assert document["ok"] and source["written"] and source["fresh"]["verdict"] == "independent"
    assert [(m["code"], m["module"]) for m in source["mended"]] == [("DP101", "1")]
    assert path.read_text(encoding="utf-8") == MODEL.replace("nn.BatchNorm1d(8)", "nn.GroupNorm(1, 8)")
    assert main(["m.py"]) == CLEAN
    assert sorted(os.listdir()) == ["m.py"], "nothing else may be left behind"


def test_training_fixes_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    path = file(MODEL)
    assert main(["m.py", "--fix", "--unsafe-fixes", "--verify"]) == CLEAN
    assert "copy in memory" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == MODEL


LOADED = MODEL.replace("\n\ndef loss_fn", "\nmodel.load_state_dict(torch.load('w.pt'))\n\n\ndef loss_fn", 1)


def save_weights() -> None:
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).state_dict(), "w.pt")


def test_a_file_that_fails_afresh_is_put_back() -> None:
    """The weights on disk have running statistics, which the new model has not; an optimizer holds the model."""
    save_weights()
    path = file(
        text := LOADED.replace(
            "\n\ndef loss_fn", "\noptimizer = torch.optim.SGD(model.parameters())\n\n\ndef loss_fn", 1
        )
    )
    target = load("m.py")
    outcome = apply(target, dpcheck.fix(target.model, target.loss_fn, target.batch, unsafe=True))
    assert outcome.fresh is None and outcome.put_back is not None
    assert "running_mean" in outcome.put_back
    assert path.read_text(encoding="utf-8") == text
    assert sorted(os.listdir()) == ["m.py", "w.pt"]


BAD = {
    "still found": Fresh(False, "mixing", (("DP101", "1", "..."),), None),
    "another finding": Fresh(False, "mixing", (("DP103", "2", "..."),), None),
    "could not be checked": Fresh(False, "", (), "it raised"),
    "nothing is proven": Fresh(False, "unproven", (), None),
}


def test_what_does_not_pass_is_put_back() -> None:
    path = file(MODEL)
    target = load("m.py")
    result = dpcheck.fix(target.model, target.loss_fn, target.batch, unsafe=True)
    for why, fresh in BAD.items():
        outcome = apply(target, result, judge=lambda _, fresh=fresh: [fresh])  # type: ignore[misc]
        assert outcome.put_back is not None and why in outcome.put_back and outcome.fresh is None
        assert path.read_text(encoding="utf-8") == MODEL


def test_where_edits_fail_the_whole_model_goes_through_fix() -> None:
    """Pretrained weights are loaded into the model as it was, and then it is fixed."""
    save_weights()
    path = file(LOADED)
    outcome = fixed("m.py", [BAD["could not be checked"], *FINE])
    assert outcome.fix.whole and outcome.put_back is None
    assert path.read_text(encoding="utf-8") == LOADED.replace(HEAD, f"{HEAD}import dpcheck\n") + (
        "model = dpcheck.fix(model, loss_fn, sample_batch(), unsafe=True).model\n"
    )


def test_links_stay_links_modes_stay_and_helpers_are_edited() -> None:
    file("[project]\n", "pyproject.toml")
    body = "from torch import nn\n\n\ndef norm(width):\n    return nn.BatchNorm1d(width)\n"
    helper = file(body, "lib/helper_of_this_test.py")
    helper.chmod(0o640)
    os.symlink("../lib/helper_of_this_test.py", (Path("app").mkdir(), "app/helper_of_this_test.py")[1])
    text = MODEL.replace("nn.BatchNorm1d", "helper_of_this_test.norm").replace(
        HEAD, HEAD + "import helper_of_this_test\n"
    )
    path = file(text, "app/m.py")
    outcome = fixed("app/m.py")
    assert outcome.put_back is None and [m.file.name for m in outcome.fix.mended] == [helper.name]
    new = body.replace("BatchNorm1d(", "GroupNorm(1, ")
    assert helper.read_text(encoding="utf-8") == new
    assert stat.S_IMODE(helper.stat().st_mode) == 0o640
    assert Path("app/helper_of_this_test.py").is_symlink() and path.read_text(encoding="utf-8") == text


def test_files_outside_the_project_are_never_edited() -> None:
    body = "from torch import nn\n\n\ndef norm(width):\n    return nn.BatchNorm1d(width)\n"
    outside = file(body, "elsewhere/outside_of_this_test.py")
    text = (
        "import sys\nsys.path.append('elsewhere')\n" + HEAD + "import outside_of_this_test\n" + MODEL.removeprefix(HEAD)
    )
    path = file(text.replace("nn.BatchNorm1d", "outside_of_this_test.norm"), "project/m.py")
    outcome = fixed("project/m.py")
    assert outcome.fix.whole and outside.read_text(encoding="utf-8") == body
    assert "dpcheck.fix" in path.read_text(encoding="utf-8")


def test_a_link_to_a_model_outside_the_project_is_left_alone() -> None:
    real = file(MODEL, "elsewhere/m.py")
    Path("project").mkdir()
    os.symlink("../elsewhere/m.py", "project/m.py")
    outcome = fixed("project/m.py")
    assert not outcome.fix.contents and outcome.fresh is None and outcome.fix.refused
    assert real.read_text(encoding="utf-8") == MODEL


def test_the_project_is_the_nearest_folder_that_looks_like_one() -> None:
    file("", "a/pyproject.toml")
    model = file("", "a/b/m.py")
    assert Project.of(model).root == Path("a").resolve()
    assert Project.of(model).holds("a/c.py") and not Project.of(model).holds("d.py")
    assert not Project.of(model).holds("a/.venv/lib/site-packages/x.py")
    assert not Project(Path.cwd()).holds("<frozen importlib._bootstrap>")


def test_a_class_that_is_passed_around_at_the_top_of_a_file_is_replaced() -> None:
    """Where the model is built while the file is imported, the import system's own code is among the callers."""
    norm = "\n\ndef layer(norm=nn.BatchNorm1d):\n    return norm(8)\n\n\nmodel ="
    path = file(MODEL.replace("\nmodel =", norm).replace("nn.BatchNorm1d(8), nn.Linear", "layer(), nn.Linear"))
    outcome = fixed("m.py")
    assert outcome.put_back is None and not outcome.fix.whole
    assert "def layer(norm=GroupNorm1d):" in path.read_text(encoding="utf-8")


def test_a_span_that_also_serves_a_frozen_layer_is_refused() -> None:
    text = (
        HEAD
        + """
def norm(width):
    return nn.BatchNorm2d(width)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.pretrained, self.own, self.head = norm(3).eval(), norm(3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.own(self.pretrained(x)).mean((2, 3)))
"""
    )
    file(text + tail())
    target = load("m.py")
    fix = plan(target, dpcheck.fix(target.model, target.loss_fn, target.batch, unsafe=True))
    ((change, reason),) = fix.refused
    assert change.module == "own" and "m.py:6" in reason and "'pretrained', which is in eval mode" in reason
    assert "where you make a Net, write dpcheck.fix(Net(), loss_fn, sample_batch(), unsafe=True).model" in reason


def test_what_batch_norm_becomes_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    file(STYLES["helper with several widths"])
    target = load("m.py")
    result = dpcheck.fix(target.model, target.loss_fn, target.batch, unsafe=True, batch_norm_to="instance")
    ((_, content),) = plan(target, result, to="instance").contents.values()
    assert "nn.GroupNorm(outside, outside, 1e-5)" in content.decode()
    ((_, content),) = plan(target, result, to="frozen").contents.values()
    assert 'loss_fn, sample_batch(), unsafe=True, batch_norm_to="frozen").model' in content.decode()
    file('[tool.dpcheck]\nbatch-norm-to = "layer"\n', "pyproject.toml")
    file(MODEL.replace("1d(8)", "1d(8, eps=1e-3)").replace("4, 8", "4, 32").replace("(8, ", "(32, "))
    main(["m.py", "--diff", "--unsafe-fixes", "-q"])
    assert "nn.GroupNorm(1, 32, eps=1e-3)" in capsys.readouterr().out
    main(["m.py", "--diff", "--unsafe-fixes", "--batch-norm-to", "group", "-q"])
    assert "nn.GroupNorm(2, 32, eps=1e-3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[tool.dpcheck]\nbatch-norm-to = "large"\n', "batch-norm-to cannot be 'large'"),
        ("[tool.dpcheck]\nunsafe = true\n", "unknown key 'unsafe'"),
        ("[tool.dpcheck\n", "options cannot be read"),
    ],
)
def test_options_of_the_project_that_are_wrong_are_named(text: str, words: str) -> None:
    file(text, "pyproject.toml")
    with pytest.raises(DpcheckError, match=words):
        options_of(Path("m.py"))


def test_a_read_only_file_or_one_that_has_changed_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    path = file("a").resolve()
    with pytest.raises(DpcheckError, match="has changed"), written({path: (b"b", b"c")}):
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DpcheckError, match="read-only"), written({path: (b"a", b"c")}):
        pass
    assert path.read_bytes() == b"a"


def test_files_are_never_half_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever step of writing the second of two files fails, both are as they were, and nothing else is left."""
    one, two = file("1", "one.py").resolve(), file("2", "two.py").resolve()
    for name in ("fsync", "replace"):
        real, calls = getattr(os, name), [0]

        def failing(*args: Any, real: Any = real, calls: list[int] = calls) -> Any:
            calls[0] += 1
            if calls[0] == 2:
                raise OSError("disk full")
            return real(*args)

        monkeypatch.setattr(files.os, name, failing)
        with pytest.raises(DpcheckError, match="disk full"), written({one: (b"1", b"one"), two: (b"2", b"two")}):
            pass
        monkeypatch.undo()
        monkeypatch.chdir(one.parent)
        assert (one.read_bytes(), two.read_bytes()) == (b"1", b"2")
        assert sorted(os.listdir()) == ["one.py", "two.py"]


def test_an_interruption_puts_files_back_but_not_over_what_was_saved_meanwhile() -> None:
    one, two = file("1", "one.py").resolve(), file("2", "two.py").resolve()
    with pytest.raises(KeyboardInterrupt), written({one: (b"1", b"one"), two: (b"2", b"two")}):
        assert (one.read_bytes(), two.read_bytes()) == (b"one", b"two")
        two.write_bytes(b"saved by the user")
        raise KeyboardInterrupt
    assert (one.read_bytes(), two.read_bytes()) == (b"1", b"saved by the user")
