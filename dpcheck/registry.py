"""Rules: one diagnostic each, with the text that documents it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from dpcheck.diagnostic import Applicability, Diagnostic

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts

SECTIONS = ("What it finds", "Why it breaks privacy", "Example", "Use instead", "Fix safety", "References")


class Rule:
    """One rule. Its docstring has the sections of :data:`SECTIONS`; both code blocks in it are executed by the tests.

    A rule claims events (where samples meet) or scans the facts, or both. Every event goes to the first rule, in
    the order of ``dpcheck.rules.RULES``, that claims it.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    fix: ClassVar[Applicability | None] = None

    def claims(self, event: Event, facts: Facts) -> bool:
        """Whether this rule is the one to report ``event``."""
        return False

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        """The diagnostic of an event that this rule claimed."""
        raise NotImplementedError(f"{type(self).__name__} claims events but does not diagnose them")

    def scan(self, facts: Facts) -> Iterable[Diagnostic]:
        """Diagnostics that do not come from an event."""
        return ()

    @classmethod
    def summary(cls) -> str:
        """The first line of its documentation."""
        return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def sections(cls) -> dict[str, str]:
        """The documentation of the rule, by section title."""
        text = inspect.cleandoc(cls.__doc__ or "")
        parts = re.split(rf"^({'|'.join(SECTIONS)})\n-+\n", text, flags=re.MULTILINE)
        return {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def apply(rules: Sequence[Rule], facts: Facts) -> tuple[Diagnostic, ...]:
    """All diagnostics, each once, ordered by source location and code."""
    found: dict[Diagnostic, None] = {}
    for event in facts.events:
        rule = next(rule for rule in rules if rule.claims(event, facts))
        found[rule.diagnose(event, facts)] = None
    for rule in rules:
        for diagnostic in rule.scan(facts):
            found[diagnostic] = None

    def order(d: Diagnostic) -> tuple[str, int, int, str, str]:
        at = d.location
        return (at.file if at else "", at.line if at else 0, (at.column or 0) if at else 0, d.code, d.module or "")

    return tuple(sorted(found, key=order))
