"""What people and machines read."""

from __future__ import annotations

import io
import itertools
import json as standard_json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from dpcheck.diagnostic import BufferFact, Diagnostic, Location, ParameterFact, Report
from dpcheck.report import full, json, tables, terminal


def shown(report: Report, **options: object) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False, emoji=False)
    full.show(console, report, "model.py:net", **options)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def report_of(*diagnostics: Diagnostic) -> Report:
    parameters = (
        ParameterFact(
            "w", (3, 4), True, "covered", ("aten.mm.default", "aten.mm.default"), ("head.w",),
            owner="Linear", uses=(Location("/a/m.py", 7), Location("/a/m.py", 8)),
        ),
        ParameterFact("scale", (), False, "frozen"),
    )  # fmt: skip
    buffers = (BufferFact("mean", "data"), BufferFact("steps", "derived"), BufferFact("mask", "constant"))
    verdict = "mixing" if diagnostics else "independent"
    return Report(verdict, diagnostics, buffers, parameters, "none" if diagnostics else "graph", ("a note",), 0.5)


def at(path: Path, line: str, expression: str) -> Location:
    path.write_text(line + "\n", encoding="utf-8")
    start = len(line[: line.index(expression)].encode())
    return Location(str(path), 1, 1, start, start + len(expression.encode()), "f")


@pytest.mark.parametrize(
    "line",
    [
        "    h = x.mean(0)",
        "\th = x.mean(0)  # tab",
        "\tif a:\th = x.mean(0)",
        "größe = f('日本') + x.mean(0)",
        "y = '[bold]' + x.mean(0) + ':smile:'",
    ],
)
def test_carets_stand_under_the_expression(tmp_path: Path, line: str) -> None:
    location = at(tmp_path / "m.py", line, "x.mean(0)")
    lines = shown(report_of(Diagnostic("DP103", "batch-statistics", "mixes", location))).splitlines()
    source, carets = next((a, b) for a, b in itertools.pairwise(lines) if "^" in b)
    assert source.endswith(line.expandtabs(4).removeprefix("\t")) or line.startswith("\t")
    assert cell_len(carets[: carets.index("^")]) == cell_len(source[: source.index("x.mean(0)")])
    assert carets.count("^") == len("x.mean(0)")


def test_a_span_over_several_lines_is_marked_to_the_end_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("h = f(x,   \n      y)\n")
    lines = shown(report_of(Diagnostic("DP103", "n", "m", Location(str(path), 1, 2, 4, 8)))).splitlines()
    assert next(line for line in lines if "^" in line).endswith("|     ^^^^")


@given(message=st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40))
def test_messages_are_printed_as_they_are(message: str) -> None:
    assert message in shown(report_of(Diagnostic("DP103", "n", message, help=message)))


def test_the_verdict_says_what_can_be_fixed_and_how() -> None:
    safe, unsafe = (Diagnostic("DP101", "batch-norm", "m", module="bn", fix=fix) for fix in ("safe", "unsafe"))  # type: ignore[arg-type]
    text = shown(report_of(safe, unsafe))
    assert "model.py:net: mixing: samples depend on each other" in text
    assert "2 findings (1 fixable with --fix, 1 with --fix --unsafe-fixes); the engine refuses this model" in text
    assert "--> module 'bn'" in text
    assert "no findings; gradients by the graph's samplers" in shown(report_of())


def test_brief_output_is_the_findings_alone() -> None:
    assert shown(report_of(), brief=True) == ""
    assert shown(report_of(Diagnostic("DP101", "batch-norm", "m")), brief=True) == "DP101 batch-norm: m\n\n"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    red = "\x1b[1;31m"
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        console = terminal()
        console.file = io.StringIO()
        full.show(console, report_of(Diagnostic("DP101", "batch-norm", "m")), "x")
        assert (red in console.file.getvalue()) == (no_color == "")


def test_lines_to_a_pipe_are_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    message = "word " * 60
    full.show_diagnostic(terminal(), Diagnostic("DP101", "batch-norm", message.strip()))
    assert message.strip() in capsys.readouterr().out


def test_the_table_of_parameters_names_sites_ties_and_written_buffers() -> None:
    console = Console(file=io.StringIO(), width=120)
    tables.show_parameters(console, report_of())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    row = next(line for line in text.splitlines() if "3x4" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["w", "3x4", "Linear", "m.py:7 and 1 more", "covered", "mm", "head.w"]
    assert "scalar" in text
    assert "buffer mean: written, from data" in text
    assert "buffer steps: written, from weights or constants" in text
    assert "mask" not in text


def test_json_keeps_every_field_and_is_strict_json() -> None:
    diagnostic = Diagnostic("DP101", "batch-norm", "m", Location("m.py", 3, 3, 4, 9), module="bn")
    text = json.render({"check": report_of(diagnostic), "train": {"epsilon": float("inf"), "x": float("nan")}})
    document = standard_json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["schema"] == json.SCHEMA
    assert document["train"] == {"epsilon": "inf", "x": "nan"}
    check = document["check"]
    assert not check["ok"]
    assert check["verdict"] == "mixing"
    assert check["diagnostics"][0]["location"] == {
        "file": "m.py", "line": 3, "end_line": 3, "column": 4, "end_column": 9, "function": None,
    }  # fmt: skip
    assert check["parameters"][0]["shape"] == [3, 4]
