"""Rules that are selected, and comments: against a plain reading of the rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from dpcheck.rules import RULES
from hypothesis import given
from hypothesis import strategies as st

from dpcheck.diagnostic import Diagnostic, Location
from dpcheck.errors import DpcheckError
from dpcheck.ignores.comments import comments_of
from dpcheck.ignores.selection import Selection, code_of, selection

CODES = sorted(rule.code for rule in RULES)
PREFIXES = sorted({code[:n] for code in CODES for n in range(len(code) + 1)})


def finding(code: str, line: int = 1, end: int | None = None, file: str = "m.py") -> Diagnostic:
    return Diagnostic(code, "name", "message", Location(file, line, end))


@given(
    st.sampled_from(CODES),
    st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=3),
    st.lists(st.sampled_from(PREFIXES)),
)
def test_the_longest_prefix_decides(code: str, select: list[str], ignore: list[str]) -> None:
    answers = ["fails" if code[:n] in select else None for n in range(len(code) + 1)]
    answers = ["ignored" if code[:n] in ignore else answer for n, answer in enumerate(answers)]
    expected = next((answer for answer in reversed(answers) if answer), "ignored")
    by = Selection(tuple(select), tuple(ignore)).of(finding(code), "m.py")
    assert ("fails" if by is None else "ignored") == expected


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_is_named_by_code_name_or_beginning(rule: object) -> None:
    code, name = rule.code, rule.name  # type: ignore[attr-defined]
    assert code_of(code.lower(), "") == code_of(name, "") == code
    assert code_of(code[:3], "") == code[:3]
    assert code_of("all", "") == ""


@pytest.mark.parametrize(("selector", "near"), [("DP999", "DP9"), ("batch-nor", "batch-norm"), ("XX1", "rule --all")])
def test_a_selector_of_no_rule_is_an_error(selector: str, near: str) -> None:
    with pytest.raises(DpcheckError, match=f"no rule '{selector}'") as caught:
        code_of(selector, "--ignore")
    assert near in str(caught.value.next)
    assert caught.value.where == "--ignore"


def test_options_come_before_the_project(tmp_path: Path) -> None:
    project = {"select": ["DP2"], "ignore": ["DP101"], "per-file-ignores": {"old/*.py": ["DP1"]}}
    of_project = selection(select=None, extend=[], ignore=[], project=project, root=tmp_path)
    assert str(of_project.of(finding("DP302"), "m.py")) == "not selected"
    chosen = selection(select=["DP1"], extend=["DP3"], ignore=[], project=project, root=tmp_path)
    assert chosen.of(finding("DP302"), "m.py") is None
    assert str(chosen.of(finding("DP101"), "m.py")) == "--ignore"
    assert chosen.of(finding("DP103"), str(tmp_path / "new" / "m.py")) is None
    assert str(chosen.of(finding("DP103"), str(tmp_path / "old" / "m.py"))) == "per-file-ignores old/*.py"


SOURCE = """\
a = f(x)  # dpcheck: ignore[DP103] this is known
text = "# dpcheck: ignore[DP103] a string is no comment"
# dpcheck: ignore[DP101, batch-statistics] for the next line
b = g(
    x,  # dpcheck: ignore[DP104] inside the call
)
c = 1  # dpcheck: ignore[DP103]
d = 1  # dpcheck: ignore[DP1] a whole family
e = 1  # dpcheck: ignore[DP777] no rule
f = 1  # dpcheck: ignore everything
"""


def test_comments_are_about_their_line_or_the_next(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(SOURCE)
    comments = comments_of(str(file))
    assert [c.line for c in comments] == [1, 3, 5, 7, 8, 9, 10]

    def ignored(code: str, line: int, end: int | None = None) -> bool:
        return any(c.covers(code, Location(str(file), line, end)) for c in comments)

    assert ignored("DP103", 1) and not ignored("DP101", 1) and not ignored("DP103", 2)
    assert ignored("DP101", 4, 6) and ignored("DP103", 4, 6) and ignored("DP104", 4, 6)
    assert not ignored("DP104", 6) and not ignored("DP101", 5)
    assert not any(ignored(code, line) for code in CODES for line in (7, 8, 9, 10))


def test_a_comment_that_is_not_as_it_must_be_ignores_nothing_and_says_why(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(SOURCE)
    wrong = [c.wrong or "" for c in comments_of(str(file)) if c.wrong]
    assert [words in text for words, text in zip(("no reason", "whole code", "DP777", "be read"), wrong, strict=True)]
    assert all(text for text in wrong)
    file.write_text("def f(:\n  # dpcheck: ignore[DP103] reason\n")
    comments_of(str(file))
    assert comments_of(str(tmp_path / "missing.py")) == ()
