"""A statement of a guarantee as text, as JSON and as a page of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from dpcheck import __version__
from dpcheck.errors import DpcheckError

SCHEMA = 1


@dataclass(frozen=True)
class Statement:
    """What may be published of a run.

    Attributes:
        claim: the guarantee in one sentence, or that there is none.
        guaranteed: whether there is one.
        notes: what a reader must know first.
        sentences: what the claim rests on and leaves out, by heading, in order.
        values: the same for machines.
    """

    claim: str
    guaranteed: bool
    notes: tuple[str, ...]
    sentences: tuple[tuple[str, str], ...]
    values: dict[str, Any]


def rendered(statement: Statement, format: str) -> str:
    """``statement`` as "text", "json" or "html".

    JSON: ``schema`` is an integer that grows with every incompatible change, ``version`` is dpcheck's, and
    ``epsilon.upper`` is the guarantee at ``delta``. Numbers that are not finite are the strings ``inf`` and ``-inf``.

    Raises:
        DpcheckError: for another format.
    """
    if format not in FORMATS:
        raise DpcheckError(
            f"format={format!r} is not known", where="format", next=f"pass one of {', '.join(map(repr, FORMATS))}"
        )
    return FORMATS[format](statement)


def _text(statement: Statement) -> str:
    notes = [f"! {note}" for note in statement.notes]
    return "\n".join([*notes, statement.claim, *(f"{title}: {text}" for title, text in statement.sentences)])


def _json(statement: Statement) -> str:
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "claim": statement.claim,
        "guaranteed": statement.guaranteed,
        "notes": statement.notes,
        **statement.values,
        "sentences": dict(statement.sentences),
    }
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


_STYLE = """\
body { font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
h1 { font-size: 1.4em } td, th { padding-bottom: .6em; vertical-align: top } th { text-align: left; padding-right: 1em }
.none, .note { color: #a00; font-weight: bold } footer { color: #666; font-size: .85em }"""


def _html(statement: Statement) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in statement.notes)
    rows = "".join(
        f'<tr><th scope="row">{escape(title)}</th><td>{escape(text)}</td></tr>\n' for title, text in statement.sentences
    )
    kind = "" if statement.guaranteed else ' class="none"'
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Privacy statement</title>
<style>
{_STYLE}
</style>
</head>
<body>
<h1{kind}>{escape(statement.claim)}</h1>
{notes}<table>
{rows}</table>
<footer>dpcheck {escape(__version__)}</footer>
</body>
</html>"""


FORMATS: dict[str, Callable[[Statement], str]] = {"text": _text, "json": _json, "html": _html}
