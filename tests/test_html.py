"""The page: well formed, self-contained, everything from the model escaped, and every finding at its line."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from model_files import HEAD, MIXING_MODEL

from dpcheck.cli import CLEAN, ERROR, FINDINGS, main
from dpcheck.diagnostic import BufferFact, Diagnostic, Ignored, Location, ParameterFact, Report
from dpcheck.report import html
from dpcheck.report.tree import tree_of

EVIL = "<script>alert('x')</script>\"&\x07"
_VOID = {"meta", "br"}


class Page(HTMLParser):
    """Reads a page: tags must nest; text and attributes are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.marked: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "mark" in self.open:
            self.marked.append(data)


def report(tmp_path: Path) -> tuple[Report, Path]:
    file = tmp_path / "m<b>.py"
    file.write_text("x = 1\nä = mean(x)  # <i>\ny = 2\n", encoding="utf-8")
    where = Location(str(file), 2, 2, 5, 12)
    first = Diagnostic("DP103", "batch-statistics", EVIL, where, module="body.norm", help=EVIL, related=(where,))
    other = Diagnostic("DP202", "no-gradient-path", EVIL, None, parameter="head.bias", fix="safe")
    parameters = (
        ParameterFact("body.norm.weight", (3,), True, "mixed", ("aten.sum.dim_IntList",), owner=EVIL),
        ParameterFact("body.fine.weight", (3, 2), True, "covered", ("aten.mm.default",), (EVIL,), uses=(where,)),
        ParameterFact("head.bias", (), True, "no-gradient"),
        ParameterFact("old.weight", (1,), False, "frozen"),
    )
    made = Report("mixing", (first, other), (BufferFact("table.ids", "constant"),), parameters, "none", (EVIL,), 1.0)
    return made, file


def test_nothing_of_the_model_is_markup_and_nothing_is_fetched(tmp_path: Path) -> None:
    made, file = report(tmp_path)
    text = html.render({"check": made, "target": str(file), "symbol": EVIL})
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "i", "object"}
    assert not any(key in ("src", "href") or key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert "https://" not in text and "url(" not in text
    assert "alert('x')" in page.text
    assert "\x07" not in text
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in page.tags


def test_a_finding_marks_its_expression_in_characters(tmp_path: Path) -> None:
    made, file = report(tmp_path)
    page = Page(html.render({"check": made, "target": str(file), "symbol": "m"}))
    assert page.marked == ["mean(x)"]
    assert "DP103" in page.text and "DP202" in page.text and "prefers-color-scheme: dark" in page.text


def test_a_guess_and_what_is_ignored_are_said_and_not_green(tmp_path: Path) -> None:
    given = {"target": "my model.py", "symbol": "m"}
    known = Diagnostic("DP202", "x", "x", fix="safe", ignored=Ignored("ignore"))
    for report, says in (
        (Report("independent", (), (), (), "graph", ("GUESS: the loss is one",)), "GUESS: the loss"),
        (Report("independent", (known,), (), (), "graph"), "Ignored: --ignore"),
    ):
        page = Page(html.render({**given, "check": report}))
        assert says in page.text
        classes = [attrs.get("class") for tag, attrs in page.tags if tag == "p"]
        assert classes[0] == "verdict open"
    assert "dpcheck 'my model.py' --fix" in page.text
    proven = Page(html.render({**given, "check": Report("independent", (), (), (), "graph")}))
    assert ("p", {"class": "verdict good"}) in proven.tags


def test_the_tree_has_the_worst_of_what_is_below(tmp_path: Path) -> None:
    made, _ = report(tmp_path)
    tree = tree_of(made)
    found = {child.name: child for child in tree.children}
    assert tree.verdict == "mixing"
    assert {name: child.verdict for name, child in found.items()} == {
        "body": "mixing", "head": "mixing", "old": "frozen", "table": "unproven",
    }  # fmt: skip
    assert [(c.name, c.verdict, c.codes) for c in found["body"].children] == [
        ("norm", "mixing", ("DP103",)), ("fine", "independent", ()),
    ]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(HEAD + MIXING_MODEL)
    return "m.py"


def test_the_command_writes_a_page_of_findings(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([model, "--format", "html", "--output-file", "report.html"]) == FINDINGS
    page = Page(Path("report.html").read_text())
    assert "DP101" in page.text and "mixing" in page.text
    assert page.marked == ["model(x)"]
    assert main([model, "--format", "html", "--diff"]) == ERROR
    assert "--diff only shows" in capsys.readouterr().err


def test_the_page_of_a_training_has_all_parts(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--fix", "--unsafe-fixes", "--no-baseline", "--format", "html", "--output-file", "report.html"]
    assert main(["train", model, *options]) == CLEAN
    page = Page(Path("report.html").read_text())
    for part in ("Fixes", "GroupNorm", "Per-sample gradients", "differential privacy", "Budget", "independent"):
        assert part in page.text
    assert any(tag == "polyline" for tag, _ in page.tags)
