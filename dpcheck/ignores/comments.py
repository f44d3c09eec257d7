"""``# dpcheck: ignore[DP103] reason`` in the user's source."""

from __future__ import annotations

import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

from dpcheck.diagnostic import Location
from dpcheck.errors import DpcheckError
from dpcheck.ignores.selection import code_of

_MARK = re.compile(r"#\s*dpcheck:\s*(?P<rest>.*)", re.IGNORECASE)
_FORM = re.compile(r"ignore\[(?P<codes>[^\]]*)\]\s*(?:[:-]\s*)?(?P<reason>.*)", re.IGNORECASE)
_HOW = "write # dpcheck: ignore[DP103] and the reason"


@dataclass(frozen=True)
class Comment:
    """One comment.

    Attributes:
        file, line: where it stands.
        codes: whole codes of rules.
        reason: why the findings may be ignored.
        alone: nothing else is on its line; it is then about the next line.
        wrong: why it ignores nothing, if it is not written as it must be.
    """

    file: str
    line: int
    codes: tuple[str, ...]
    reason: str
    alone: bool
    wrong: str | None = None

    def covers(self, code: str, at: Location) -> bool:
        """Whether it is about a finding: at its line or lines, or a line of its own above the first."""
        if self.wrong is not None or code not in self.codes:
            return False
        first, last = at.line, at.end_line or at.line
        return first <= self.line <= last or (self.alone and self.line == first - 1)


def comments_of(file: str) -> tuple[Comment, ...]:
    """The comments of a file; none of one that cannot be read or is no Python."""
    try:
        text = Path(file).read_bytes()
        tokens = list(tokenize.tokenize(io.BytesIO(text).readline))
    except (OSError, SyntaxError, tokenize.TokenError, UnicodeDecodeError):
        return ()
    found = []
    for token in tokens:
        marked = _MARK.match(token.string) if token.type == tokenize.COMMENT else None
        if marked is not None:
            alone = not token.line[: token.start[1]].strip()
            found.append(_comment(file, token.start[0], marked["rest"].strip(), alone=alone))
    return tuple(found)


def _comment(file: str, line: int, rest: str, *, alone: bool) -> Comment:
    form = _FORM.fullmatch(rest)
    if form is None:
        return Comment(file, line, (), "", alone, f"cannot be read: {_HOW}")
    selectors = [part.strip() for part in form["codes"].split(",") if part.strip()]
    try:
        codes = tuple(code_of(selector, f"{file}:{line}") for selector in selectors)
    except DpcheckError as error:
        return Comment(file, line, (), "", alone, f"{error.what}; {error.next}")
    wrong = None
    if not codes or any(len(code) != len("DP103") for code in codes):
        wrong = f"names no whole code: {_HOW}"
    elif not form["reason"].strip():
        wrong = f"gives no reason: {_HOW}"
    return Comment(file, line, codes, form["reason"].strip(), alone, wrong)
