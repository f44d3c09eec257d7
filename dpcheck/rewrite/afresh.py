"""A model file in a new process: does what was written load, run and pass?"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dpcheck.api import check
from dpcheck.errors import DpcheckError
from dpcheck.rehearsal import rehearse
from dpcheck.target import load


@dataclass(frozen=True)
class Fresh:
    """What a new process says of a model file.

    Attributes:
        ok: proven, without findings, and a rehearsal of training passed.
        verdict: as in a report; empty if the check did not come to one.
        findings: (code, module, message) of every finding.
        error: why it could not be checked.
    """

    ok: bool
    verdict: str
    findings: tuple[tuple[str, str, str], ...]
    error: str | None


def load_afresh(targets: Sequence[str]) -> list[Fresh]:
    """Check files (``model.py[:symbol]``), all of them in one new process.

    Raises:
        DpcheckError: if the process ends without an answer.
    """
    # -P: the folder where the user happens to be is not searched for modules, as for the command itself.
    command = [sys.executable, "-P", "-m", "dpcheck.rewrite.afresh", *targets]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return [Fresh(**{**a, "findings": tuple(map(tuple, a["findings"]))}) for a in json.loads(done.stdout)]
    except ValueError as error:
        lines = done.stderr.strip().splitlines()
        raise DpcheckError(
            f"the new process gave no answer (exit code {done.returncode}): {lines[-1] if lines else ''}",
            where=", ".join(targets),
            next="run it again with --traceback, or fix in memory with dpcheck.fix",
        ) from error


def _judged(text: str) -> Fresh:
    try:
        target = load(text)
        report = check(target.model, target.loss_fn, target.batch, unit=target.unit)
        problem = rehearse(target.model, target.loss_fn, target.batch, unit=target.unit) if report.ok else None
    except DpcheckError as error:
        return Fresh(False, "", (), textwrap.shorten(error.what, 400))
    if problem is not None:
        return Fresh(False, report.verdict, (), f"the rehearsal of training failed: {problem}")
    findings = tuple((d.code, d.module or "", d.message) for d in report.diagnostics)
    return Fresh(report.ok, report.verdict, findings, None)


def main() -> None:
    """Print what is found of the files that are named as arguments, as JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        answers = [asdict(_judged(text)) for text in sys.argv[1:]]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
