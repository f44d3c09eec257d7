"""Writing a source fix, checking the file afresh, and putting it back if it does not pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpcheck.fixer import FixResult
from dpcheck.rewrite.afresh import Fresh, load_afresh
from dpcheck.rewrite.files import written
from dpcheck.rewrite.journal import journal_of, recorded
from dpcheck.rewrite.losses import LossFix
from dpcheck.rewrite.plan import SourceFix, plan
from dpcheck.target import Target

Judge = Callable[[Sequence[str]], list[Fresh]]


@dataclass(frozen=True)
class Outcome:
    """What became of a source fix.

    Attributes:
        fix: what was written, or was tried.
        fresh: what a new process says of the files as they are now; ``None`` if nothing was written.
        put_back: why the files are as they were, if they were put back.
    """

    fix: SourceFix
    fresh: Fresh | None
    put_back: str | None = None


class _Rejected(Exception):
    pass


def apply(
    target: Target, result: FixResult, *, to: str = "group", loss: LossFix | None = None, judge: Judge = load_afresh
) -> Outcome:
    """Write the edits that have the effect of ``result``; where they fail, try one line with ``dpcheck.fix``.

    Args:
        target: as it was loaded before; the files must not have changed since.
        to, loss: as for :func:`dpcheck.rewrite.plan.plan`.
        judge: checks the written file, in a new process.

    Raises:
        DpcheckError: if a file cannot be written.
    """
    outcome = _attempt(target, result, plan(target, result, to=to, loss=loss), judge)
    if outcome.put_back is None or outcome.fix.whole:
        return outcome
    second = plan(target, result, to=to, loss=loss, only_whole=True)
    last = _attempt(target, result, second, judge) if second.whole else outcome
    return outcome if last.put_back is not None else last


def _attempt(target: Target, result: FixResult, fix: SourceFix, judge: Judge) -> Outcome:
    if not fix.contents:
        return Outcome(fix, None)
    try:
        with recorded(journal_of(target.path), fix.contents), written(fix.contents):
            (fresh,) = judge([f"{target.path}:{target.symbol}"])
            wrong = why_not(fix, fresh, result)
            if wrong:
                raise _Rejected(wrong)
    except _Rejected as error:
        return Outcome(fix, None, str(error))
    return Outcome(fix, fresh)


def why_not(fix: SourceFix, fresh: Fresh, result: FixResult) -> str | None:
    """Why what a new process found of the written file is not what was wanted; ``None`` if it is."""
    if fresh.error is not None:
        return f"the written file could not be checked: {fresh.error}"
    mended = {(m.change.code, m.change.module) for m in fix.mended}
    known = {(d.code, d.module or "") for d in result.before.diagnostics}
    for code, module, message in fresh.findings:
        if (code, module) in mended:
            return f"{code} is still found at {module!r} in the written file: {message}"
        if (code, module) not in known:
            return f"the written file has another finding, {code} at {module!r}: {message}"
    if not fresh.findings and not fresh.ok:
        return f"nothing is proven of the written file ({fresh.verdict})"
    return None
