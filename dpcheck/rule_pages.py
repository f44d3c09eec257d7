"""One page of documentation for each rule, made of the rule's own text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpcheck.errors import DpcheckError
from dpcheck.registry import Rule
from dpcheck.writing import replace

_FIX = {
    "safe": "`--fix` mends it, and what the model computes stays the same.",
    "unsafe": "`--fix --unsafe-fixes` mends it; the model then computes something else.",
}
_MADE = "<!-- Made by `dpcheck rule --all --markdown docs/rules`; change the rule's own text. -->"


def pages(rules: Sequence[Rule]) -> dict[str, str]:
    """File names and texts: one page for each rule, and the index ``README.md``."""
    ordered = sorted(rules, key=lambda rule: rule.code)
    found = {f"{rule.code}.md": _page(rule) for rule in ordered}
    rows = [f"| [{r.code}]({r.code}.md) | {r.name} | {_cell(r.summary())} | {r.fix or '-'} |" for r in ordered]
    table = ["| rule | name | what it finds | fix |", "|---|---|---|---|", *rows]
    return {**found, "README.md": "\n".join([_MADE, "", "# Rules", "", *table, ""])}


def write_pages(rules: Sequence[Rule], folder: str) -> list[Path]:
    """Write the pages into ``folder``, and return their paths. Pages of rules that are gone are left alone.

    Raises:
        DpcheckError: if the folder is not there, or a page cannot be written.
    """
    if not Path(folder).is_dir():
        raise DpcheckError(f"no such folder: {folder}", "--markdown", f"mkdir -p {folder}")
    written = []
    for name, text in pages(rules).items():
        try:
            replace(Path(folder, name), text.encode())
        except OSError as error:
            what = f"{Path(folder, name)} cannot be written: {error.strerror}"
            raise DpcheckError(what, "--markdown", "pass a folder that can be written") from error
        written.append(Path(folder, name))
    return written


def _page(rule: Rule) -> str:
    parts = [_MADE, "", f"# {rule.code}: {rule.name}", "", rule.summary()]
    parts += ["", _FIX[rule.fix]] if rule.fix in _FIX else []
    for title, text in rule.sections().items():
        parts += ["", f"## {title}", "", text]
    return "\n".join([*parts, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
