"""Fixes every model of the zoos whose samples mix, with dpcheck and with Opacus's ModuleValidator.

    python benchmarks/fixers.py [--zoo NAME ...] [--match PATTERN] [--among PATH] [--workers N] [--json PATH]

``--among`` names the JSON of a run of zoo.py: only models that mix there are run. Needs what zoo.py needs.
Exit code 1 when less than 95 % of the models that mix are fixed, verified and take a private step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from fixers_judge import judge
from zoo import common_options, entries_of, one_by_one

Result = dict[str, Any]
ENOUGH = 0.95


def main() -> int:
    parser = common_options("dpcheck.fix and Opacus's ModuleValidator.fix on the model zoos")
    parser.add_argument("--among", type=Path, nargs="+", help="JSON of zoo.py, whose mixing models are run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = [r for path in options.among or () for r in json.loads(path.read_text())]
    wanted = {(r["zoo"], r["name"]) for r in known if r.get("verdict") == "mixing"}
    results: list[Result] = []
    for zoo in options.zoo:
        entries = [e for e in entries_of(zoo, options.match) if not options.among or (zoo, e.name) in wanted]
        for done in one_by_one(entries, options, judge):
            results.append({"zoo": zoo, **done})
            print(line(results[-1]), file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    print(table(results))
    mixing = [r for r in results if r.get("mixes", True)]
    return 0 if sum(map(done_by_dpcheck, mixing)) >= ENOUGH * len(mixing) else 1


def done_by_dpcheck(result: Result) -> bool:
    """Fixed, verified and trained."""
    return bool(result.get("fixed") and result.get("verified") and result.get("stepped"))


def done_by_opacus(result: Result) -> bool:
    """Its fix did not raise, the samples are apart, and a step runs whose per-sample gradients add up."""
    theirs = result.get("opacus", {})
    return theirs.get("mixes") is False and theirs.get("stepped") is True


def line(result: Result) -> str:
    """One model, on one line."""
    name = f"{result['zoo']:13}{result['name']:32}{result['wall']:6.0f} s  "
    if not result.get("mixes", True):
        return f"{name}does not mix"
    ours = (
        "fixed, verified, stepped" if done_by_dpcheck(result) else f"NOT DONE: {result.get('crash') or result['why']}"
    )
    theirs = result.get("opacus", {})
    other = "done" if done_by_opacus(result) else " ".join(theirs.get("why", "-").split())
    return f"{name}dpcheck: {' '.join(ours.split())[:160]}; Opacus: {other[:120]}"


def table(results: list[Result]) -> str:
    """Counts for each zoo, then every model that dpcheck does not fix, and what became of Opacus's."""
    mixing = [r for r in results if r.get("mixes", True)]
    head = ("mixing", "fixed", "verified", "stepped", "all three", "fix raised", "still mix", "no step", "done")
    rows = [f"{'':14}{'dpcheck':>50}{'Opacus':>50}", f"{'zoo':14}" + "".join(f"{cell:>11}" for cell in head)]
    for zoo in (*dict.fromkeys(r["zoo"] for r in mixing), "all"):
        group = [r for r in mixing if zoo in (r["zoo"], "all")]
        theirs = [r.get("opacus", {}) for r in group]
        cells = (
            len(group),
            *(sum(bool(r.get(key)) for r in group) for key in ("fixed", "verified", "stepped")),
            sum(map(done_by_dpcheck, group)),
            sum("raised" in t for t in theirs),
            sum(t.get("mixes") is True for t in theirs),
            sum(t.get("mixes") is False and not t.get("stepped") for t in theirs),
            sum(map(done_by_opacus, group)),
        )
        rows.append(f"{zoo:14}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join([*rows, "", *(line(r) for r in mixing if not (done_by_dpcheck(r) and done_by_opacus(r)))])


if __name__ == "__main__":
    sys.exit(main())
