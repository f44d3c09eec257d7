"""Which findings fail a run, and how much is said about them."""

from __future__ import annotations

import argparse

from dpcheck.errors import DpcheckError

_ABOUT = """\
an ignored finding does not fail the run. It is still one: the verdict counts it and says so, and so do --fix, --verify
and --train. In the source: # dpcheck: ignore[DP103] and the reason, at the line or alone above it. CODE is a code, the
beginning of one (DP1), a name or ALL; lists have commas. [tool.dpcheck] has the same keys, and per-file-ignores."""


def add_ignoring(p: argparse.ArgumentParser) -> None:
    """``--select`` and its like, ``--baseline`` and what is said."""
    g = p.add_argument_group("findings", _ABOUT)
    g.add_argument("--select", action="append", metavar="CODE", help="only these fail (ALL)")
    g.add_argument("--extend-select", action="append", default=[], metavar="CODE", help="these too")
    g.add_argument("--ignore", action="append", default=[], metavar="CODE", help="these do not fail")
    g.add_argument("--baseline", metavar="FILE", help="only findings that are not in this file fail")
    g.add_argument("--write-baseline", metavar="FILE", help="write the findings of now to it, and exit 0")
    g.add_argument("--statistics", action="store_true", help="count the findings by rule in the place of showing them")
    g.add_argument("--exit-zero", action="store_true", help="exit 0 also with findings")
    p.add_argument("--quiet", "-q", action="store_true", help="print findings, results and errors only")
    p.add_argument("--verbose", "-v", action="store_true", help="print ignored findings, too")


def refuse_conflicts(options: argparse.Namespace) -> None:
    """Raise what excludes each other, and what names no rule.

    Raises:
        DpcheckError: naming both.
    """
    from dpcheck.ignores.selection import code_of, split

    for option in ("select", "extend_select", "ignore"):
        for selector in split(getattr(options, option) or []):
            code_of(selector, f"--{option.replace('_', '-')}")
    if options.quiet and options.verbose:
        raise DpcheckError("--quiet and --verbose exclude each other", next="leave one out")
    if options.statistics and options.format != "full":
        raise DpcheckError("--statistics is a table of --format full", next="leave --format out, or --statistics")
    if options.write_baseline and (options.fix or options.diff or options.train or options.verify):
        raise DpcheckError(
            "--write-baseline takes down the findings as they are; it excludes --fix, --diff, --verify and --train",
            next="leave the others out",
        )
