"""What a user can do at a line that no fix can change, and why none can."""

from __future__ import annotations

import ast
import linecache

from dpcheck.diagnostic import Diagnostic, Location

_ORDER = "what a sample gets there is told by its rank among the others, and nothing of its own means the same"
_MOVED = "what a sample gets there is another one's, and nothing of its own means the same"
_SCAN = "what a sample gets there is told by those before it, and a batch has no order that means anything"
# Words of ops -> why they have no fix.
_WHY = {
    _ORDER: ("sort", "argsort", "topk", "kthvalue", "median", "msort"),
    _MOVED: ("roll", "flip"),
    _SCAN: ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"),
}
_AXES = ("dim", "dims", "axis")


def advice(diagnostic: Diagnostic, why: str | None = None) -> str:
    """Why there is no automatic fix, at which line, and what may be written there instead.

    Args:
        why: the reason, where the op has none of its own.
    """
    at, help_ = diagnostic.location, f": {diagnostic.help}" if diagnostic.help else ""
    if at is None:
        return f"no automatic fix{help_}"
    op = (diagnostic.op or "").split(".")[1:2]
    by_op = next((reason for reason, words in _WHY.items() if op and op[0] in words), None)
    line, reason = linecache.getline(at.file, at.line).strip(), by_op or why
    shown = f": `{line}`" * bool(line) + (f" ({reason})" if reason else "")
    other = along_own_axis(at) if by_op else None
    return f"no automatic fix at {at}{shown}{help_}" + (f"; within a sample it is `{other}`" if other else "")


def along_own_axis(at: Location) -> str | None:
    """The call at a place with its last axis where it names the first: ``h.roll(1, 0)`` -> ``h.roll(1, -1)``.

    Returns:
        ``None`` if it is not a call on one line that names axis 0 alone.
    """
    if at.end_line != at.line or at.column is None or at.end_column is None:
        return None
    text = linecache.getline(at.file, at.line).encode()[at.column : at.end_column].decode()
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(call, ast.Call):
        return None
    named = [keyword.value for keyword in call.keywords if keyword.arg in _AXES]
    for node in named or call.args[-1:]:
        alone = node.elts[0] if isinstance(node, ast.Tuple | ast.List) and len(node.elts) == 1 else node
        if isinstance(alone, ast.Constant) and alone.value == 0 and type(alone.value) is int:
            before, after = text.encode()[: alone.col_offset], text.encode()[alone.end_col_offset :]
            return f"{before.decode()}-1{after.decode()}"
    return None
