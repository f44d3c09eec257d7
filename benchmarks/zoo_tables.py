"""The tables of the zoo benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Result = dict[str, Any]


def wrong(result: Result) -> bool:
    """A crash, a pass of a model whose samples mix, an alarm on one whose samples do not, or a wrong clipped sum."""
    if "broken" in result:
        return False
    if "crash" in result or ("twin" in result and wrong(result["twin"])):
        return True
    return _disagrees(result) or ("exact" in result and not result["exact"].get("ok", False))


def _disagrees(result: Result) -> bool:
    return result["verdict"] != "unproven" and (result["verdict"] == "mixing") != result["oracle"]["mixing"]


def tables(results: list[Result]) -> str:
    """Verdicts for each zoo, the same for Opacus, then every model that needs a word."""
    rows = _by_zoo(results)
    ours = ("models", "indep.", "mixing", "unproven", "crash", "agree", "s, median", "s, max")
    theirs = ("models", "accepts", "refuses", "raised", "agree", "false pass", "false alarm")
    lines = ["dpcheck against the isolation oracle", _row("zoo", *ours)]
    lines += [_ours(name, group) for name, group in rows.items()]
    lines += ["", "Opacus's ModuleValidator on the same models, against the same oracle", _row("zoo", *theirs)]
    lines += [_theirs(name, group) for name, group in rows.items()]
    exact = {name: [r["exact"] for r in group if "exact" in r] for name, group in rows.items()}
    if any(exact.values()):
        head = ("models", "exact", "graph", "vmap", "single", "float64", "own dtype", "clipped", "s, median")
        lines += ["", "Clipped sums and norms against those of single samples (largest relative errors; of the clipped "
                  "sum in tolerances)", _row("zoo", *head)]  # fmt: skip
        lines += [_exact(name, group) for name, group in exact.items() if group]
    return "\n".join(lines + _words(results))


def _row(name: str, *cells: Any) -> str:
    return f"{name:34}" + "".join(f"{cell:>12}" for cell in cells)


def _by_zoo(results: list[Result]) -> dict[str, list[Result]]:
    rows: dict[str, list[Result]] = {}
    for result in results:
        if "broken" in result:
            continue
        rows.setdefault(result["zoo"], []).append(result)
        if "twin" in result:
            rows.setdefault(f"{result['zoo']}, batch norm replaced", []).append(result["twin"])
    return rows


def _count(group: list[Result], says: Callable[[Result], bool]) -> int:
    return sum(1 for result in group if says(result))


def _ours(name: str, group: list[Result]) -> str:
    answered = [r for r in group if "crash" not in r]
    proven = [r for r in answered if r["verdict"] != "unproven"]
    agree = _count(proven, lambda r: not _disagrees(r))
    seconds = sorted(r["seconds"] for r in answered) or [0.0]
    verdicts = [_count(answered, lambda r, v=v: r["verdict"] == v) for v in ("independent", "mixing", "unproven")]  # type: ignore[misc]
    times = f"{seconds[len(seconds) // 2]:.1f}", f"{seconds[-1]:.1f}"
    return _row(name, len(group), *verdicts, len(group) - len(answered), f"{agree}/{len(proven)}", *times)


def _theirs(name: str, group: list[Result]) -> str:
    answered = [r for r in group if "crash" not in r]
    says = [_count(answered, lambda r, s=s: r["opacus"]["says"] == s) for s in ("accepts", "refuses", "raised")]  # type: ignore[misc]
    passed = _count(answered, lambda r: r["opacus"]["says"] == "accepts" and r["oracle"]["mixing"])
    alarms = _count(answered, lambda r: r["opacus"]["says"] == "refuses" and not r["oracle"]["mixing"])
    share = f"{says[0] + says[1] - passed - alarms}/{says[0] + says[1]}"
    return _row(name, len(answered), *says, share, passed, alarms)


def _exact(name: str, group: list[Result]) -> str:
    answered = [r for r in group if "crash" not in r]
    methods = [_count(answered, lambda r, m=m: r["method"] == m) for m in ("graph", "vmap", "single")]  # type: ignore[misc]
    worst = [f"{max((r[key] for r in answered), default=0.0):.1e}" for key in ("float64", "own", "clipped")]
    seconds = sorted(r["seconds"] for r in answered) or [0.0]
    right = _count(answered, lambda r: r["ok"])
    return _row(name, len(group), right, *methods, *worst, f"{seconds[len(seconds) // 2]:.1f}")


def _words(results: list[Result]) -> list[str]:
    """Every model that is wrong, unproven or could not be built."""
    lines: list[str] = []
    for result in results:
        for what, r in (("", result), (" (batch norm replaced)", result.get("twin"))):
            if r is None:
                continue
            name = f"{result['zoo']} {result['name']}{what}"
            if "broken" in r or "crash" in r:
                lines.append(
                    f"  {name}: {'not run' if 'broken' in r else 'crash'}: {r.get('broken') or r.get('crash')}"
                )
            elif "exact" in r and not r["exact"].get("ok", False):
                lines.append(f"  {name}: WRONG SUMS: {r['exact'].get('crash') or r['exact']}")
            elif _disagrees(r):
                lines.append(f"  {name}: WRONG: {r['verdict']}, oracle {r['oracle']['worst']:.1e} {_events(r)}")
            elif r["verdict"] == "unproven":
                found = (
                    "mixing" if r["oracle"]["mixing"] else f"no difference ({r['oracle']['comparisons']} comparisons)"
                )
                lines.append(f"  {name}: unproven: {_events(r)}; oracle: {found}")
            if r.get("exact", {}).get("method", "graph") != "graph":
                lines.append(f"  {name}: computed by {r['exact']['method']}: {r['exact']['reason']}")
    return ["", *lines] if lines else []


def _events(result: Result) -> str:
    texts = [f"{e['op'] or 'no graph'} {e['reason']}" for e in result["events"][:3]]
    return "; ".join(dict.fromkeys(texts))
