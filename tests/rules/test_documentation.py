"""The documentation of every rule is executed: the bad example fires exactly that rule, the good one is clean."""

from __future__ import annotations

import linecache
import re
from typing import Any

import pytest
from dpcheck.rules import RULES, by_code

import dpcheck
from dpcheck.errors import DpcheckError
from dpcheck.registry import SECTIONS, Rule

IDS = [rule.code for rule in RULES]


def run_block(rule: Rule, section: str) -> dpcheck.Report:
    (code,) = re.findall(r"```python\n(.*?)```", rule.sections()[section], re.DOTALL)
    file = f"<{rule.code} {section}>.py"
    linecache.cache[file] = (len(code), None, code.splitlines(True), file)
    names: dict[str, Any] = {}
    exec(compile(code, file, "exec"), names)
    return dpcheck.check(names["model"], names["loss_fn"], names["batch"])


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_the_bad_example_fires_exactly_this_rule(rule: Rule) -> None:
    report = run_block(rule, "Example")
    assert {d.code for d in report.diagnostics} == {rule.code}
    assert not report.ok


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_the_good_example_is_clean(rule: Rule) -> None:
    report = run_block(rule, "Use instead")
    assert report.ok, report.diagnostics


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_every_section_says_something(rule: Rule) -> None:
    sections = rule.sections()
    assert list(sections) == list(SECTIONS)
    assert all(len(text) > 4 for text in sections.values())


def test_codes_and_names_are_unique_and_of_a_known_family() -> None:
    assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)
    assert all(re.fullmatch(r"DP[123459]\d\d", rule.code) for rule in RULES)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.name) for rule in RULES)


def test_a_rule_is_found_by_code_and_by_name() -> None:
    for rule in RULES:
        assert by_code(rule.code.lower()) is rule
        assert by_code(rule.name) is rule


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(DpcheckError, match="batch-norm"):
        by_code("batchnorm")
