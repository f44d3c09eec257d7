"""A budget for people: a table in the terminal, and curves as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from rich.console import Console
from rich.table import Table

from dpcheck.budget import Budget
from dpcheck.engine.accounting import at_least, at_most

_BAR = 40


def show(console: Console, budget: Budget) -> None:
    """Print the run, what it costs, and both curves."""
    for phase in budget.phases[:5]:
        noise = at_most(phase.noise_multiplier, 5)
        console.print(f"{phase.steps} steps, sampling rate {phase.sample_rate:.4g}, noise multiplier {noise}")
    if len(budget.phases) > 5:
        console.print(f"and {len(budget.phases) - 5} more phases, {budget.steps} steps together")
    total, user = budget.epsilon, f", users of at most {budget.records} records" if budget.records > 1 else ""
    console.print(
        f"[bold]epsilon at most {at_most(total.upper, 5)}[/] and at least {at_least(total.lower, 5)}, "
        f"at delta = {total.delta:g}, for {budget.adjacency} adjacency{user} ({total.method})"
    )
    if total.delta > 1 / budget.dataset_size:
        console.print(
            f"[yellow]delta = {total.delta:g} is more than 1/N = {1 / budget.dataset_size:.3g}[/]: giving away one "
            "record at random would satisfy it"
        )
    if math.isinf(total.upper):
        console.print("[bold red]epsilon is infinite[/]: nothing is guaranteed")
    else:
        _accountants(console, budget)
        _bars(console, "steps", [(f"{n}", b.upper) for n, b in budget.over_steps])
        _bars(console, "delta", [(f"{b.delta:g}", b.upper) for b in budget.over_delta])


def _accountants(console: Console, budget: Budget) -> None:
    total, rdp = budget.epsilon, budget.rdp
    table = Table(box=None, pad_edge=False)
    table.add_column("accountant")
    table.add_column("epsilon")
    table.add_row(total.method, f"{at_least(total.lower, 5)} to {at_most(total.upper, 5)}")
    if rdp is None:
        table.add_row("Renyi", "not computed for these neighbours or samples")
    else:
        more = f", {100 * (rdp / total.upper - 1):.0f} % more" if 0 < total.upper < rdp < math.inf else ""
        table.add_row("Renyi", f"at most {at_most(rdp, 5)}{more}")
    # 14062 steps at rate 256/60000 with noise 1.1, delta 1e-5.
    table.add_row("GDP, CLT", "not offered: a limit, no bound; it can say 2.32 where the truth is above 2.38")
    console.print()
    console.print(table)


def _bars(console: Console, name: str, rows: Sequence[tuple[str, float]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(name, justify="right")
    table.add_column("epsilon", justify="right")
    table.add_column("")
    most = max((value for _, value in rows if math.isfinite(value)), default=0.0) or 1.0
    for label, value in rows:
        bar = "█" * max(1, round(_BAR * value / most)) if math.isfinite(value) else ""
        table.add_row(label, at_most(value, 4), bar)
    console.print()
    console.print(table)


def svg(budget: Budget) -> str:
    """Epsilon over the steps and over delta, side by side; the band is between both bounds."""
    steps = [(float(n), b.lower, b.upper) for n, b in budget.over_steps]
    deltas = [(math.log10(b.delta), b.lower, b.upper) for b in budget.over_delta]
    title = f"epsilon at most {at_most(budget.epsilon.upper, 4)} at delta = {budget.epsilon.delta:g}"
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 360" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="900" height="360" fill="white"/>',
        f'<text x="450" y="22" text-anchor="middle" font-size="15">{escape(title)}</text>',
        _panel(70, steps, "steps", lambda x: f"{x:.0f}"),
        _panel(520, deltas, "delta", lambda x: f"1e{x:.0f}"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


_WIDTH, _HEIGHT, _TOP = 340, 250, 45


def _panel(left: int, points: Sequence[tuple[float, float, float]], name: str, label: Callable[[float], str]) -> str:
    points = [point for point in points if math.isfinite(point[2])]
    if not points:
        return f'<text x="{left}" y="200">epsilon is infinite</text>'
    xs = [x for x, _, _ in points]
    low, high, top = min(xs), max(xs), max(upper for _, _, upper in points) * 1.05 or 1.0

    def at(x: float, y: float) -> str:
        across = (x - low) / (high - low) if high > low else 0.5
        return f"{left + _WIDTH * across:.1f},{_TOP + _HEIGHT * (1 - y / top):.1f}"

    upper, lower = [at(x, b) for x, _, b in points], [at(x, a) for x, a, _ in points]
    bottom = _TOP + _HEIGHT
    marks = []
    for i in range(5):
        y, value = bottom - _HEIGHT * i / 4, top * i / 4
        marks.append(f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for x in sorted({low, xs[len(xs) // 2], high}):
        place = at(x, 0).split(",")[0]
        marks.append(f'<text x="{place}" y="{bottom + 18}" text-anchor="middle">{label(x)}</text>')
    middle = left + _WIDTH / 2
    return "\n".join(
        [
            *marks,
            f'<polygon points="{" ".join([*upper, *reversed(lower)])}" fill="#9ecae1"/>',
            f'<polyline points="{" ".join(upper)}" fill="none" stroke="#08519c" stroke-width="2"/>',
            f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">{name}</text>',
            f'<text x="{left}" y="{_TOP - 8}">epsilon</text>',
        ]
    )
