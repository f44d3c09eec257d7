"""docs/audits.md: its tables, and empirical against certified epsilon as SVG, with logarithmic axes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

_SIDE, _TOP, _LEAST, _MOST = 340, 60, 0.05, 32.0
_TICKS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32)
_LINES = (
    ("second account", "#2ca02c", "2 3"),
    ("an attack, of mechanisms like a Gaussian one", "#08519c", ""),
    ("an attack, of any mechanism", "#6baed6", ""),
)


def put(page: Path, name: str, text: str) -> None:
    """Puts ``text`` between the comments of that name."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = page.read_text()
    new, count = re.subn(f"{start}.*?{end}", lambda _: f"{start}\n{text.strip()}\n{end}", old, flags=re.DOTALL)
    assert count == 1, f"{page} has no place for {name}"
    page.write_text(new)


def drawn(points: dict[str, Sequence[tuple[float, float, float, float]]], canaries: int) -> str:
    """One panel for each example; points are (certified, lower, lower of Gaussian ones, second account)."""
    title = f"Epsilon that an audit with {canaries:,} canaries shows, against the certified one"
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 500" font-family="sans-serif" font-size="12">',
        f"<title>{title}</title>",
        '<rect width="900" height="500" fill="white"/>',
        f'<text x="450" y="24" text-anchor="middle" font-size="15">{title}</text>',
    ]
    for (name, found), left in zip(points.items(), (70, 520), strict=False):
        parts += _panel(left, name, found)
    for i, (label, colour, dash) in enumerate((*_LINES, ("certified", "#999", "6 4"))):
        y = 448 + 22 * (i % 2)
        x = 70 + 450 * (i // 2)
        parts.append(f'<line x1="{x}" x2="{x + 40}" y1="{y}" y2="{y}" {_stroke(colour, dash)}/>')
        parts.append(f'<text x="{x + 50}" y="{y + 4}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, name: str, found: Sequence[tuple[float, float, float, float]]) -> list[str]:
    parts = [f'<text x="{left}" y="{_TOP - 10}" font-size="13">{name}</text>']
    for tick in _TICKS:
        along = _SIDE * _part(tick)
        y, x = _TOP + _SIDE - along, left + along
        parts.append(f'<line x1="{left}" x2="{left + _SIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line x1="{left}" y1="{_TOP + _SIDE}" x2="{left + _SIDE}" y2="{_TOP}" {_stroke("#999", "6 4")}/>')
    middle = left + _SIDE / 2
    parts.append(f'<text x="{middle}" y="{_TOP + _SIDE + 34}" text-anchor="middle">certified epsilon</text>')
    for (_, colour, dash), which in zip(_LINES, (3, 2, 1), strict=True):
        # A bound of nothing has no place on a logarithmic axis.
        shown = [(p[0], p[which]) for p in found if p[which] >= _LEAST]
        at = " ".join(f"{left + _SIDE * _part(x):.1f},{_TOP + _SIDE * (1 - _part(y)):.1f}" for x, y in shown)
        parts.append(f'<polyline points="{at}" fill="none" {_stroke(colour, dash)}/>')
        for place in at.split():
            x, y = place.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
    return parts


def _part(value: float) -> float:
    return math.log(value / _LEAST) / math.log(_MOST / _LEAST)


def _stroke(colour: str, dash: str) -> str:
    return f'stroke="{colour}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
