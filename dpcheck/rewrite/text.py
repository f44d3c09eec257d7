"""A source file as text that can be edited at exact places: encoding, line ends and everything else stay."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dpcheck.diagnostic import Location
from dpcheck.errors import DpcheckError

_NOTHING = {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_BOM = b"\xef\xbb\xbf"
_ENDS = re.compile(r"\r\n|\r|\n")
_Token = tuple[str, int, int]  # text, start, end


@dataclass(frozen=True)
class Edit:
    """Put ``text`` in the place of characters ``start`` to ``end``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Argument:
    """An argument of a call as it is written, parentheses included; ``comma`` is where the one after it stands."""

    node: ast.expr | ast.keyword
    start: int
    end: int
    comma: int | None

    @property
    def name(self) -> str | None:
        return self.node.arg if isinstance(self.node, ast.keyword) else None

    @property
    def value(self) -> ast.expr:
        return self.node.value if isinstance(self.node, ast.keyword) else self.node

    @property
    def unpacks(self) -> bool:
        return isinstance(self.node, ast.Starred) or (isinstance(self.node, ast.keyword) and self.node.arg is None)


class SourceFile:
    """A file's text and syntax tree.

    Raises:
        DpcheckError: if it cannot be read or parsed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.data = path.read_bytes()
            self.encoding = tokenize.detect_encoding(io.BytesIO(self.data).readline)[0]
            self.text = self.data.removeprefix(_BOM).decode(self.encoding.removesuffix("-sig"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python has shown its warnings when the file ran
                self.tree = ast.parse(self.data)
        except (OSError, SyntaxError, ValueError) as error:
            raise DpcheckError(f"the file cannot be read as Python: {error}", where=str(path)) from error
        self.newline = "\r\n" if "\r\n" in self.text else "\n"
        self._starts = [0, *(m.end() for m in _ENDS.finditer(self.text))]

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """From its parent to the module."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def offset(self, line: int, column: int) -> int:
        """The character at a 1-based line and a column in UTF-8 bytes, as :mod:`ast` counts."""
        start = self._starts[line - 1]
        if self.text.isascii():
            return start + column
        end = self._starts[line] if line < len(self._starts) else len(self.text)
        return start + len(self.text[start:end].encode()[:column].decode())

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.expr | ast.stmt | ast.keyword) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def call_at(self, at: Location) -> ast.Call | None:
        """The call at a location. Every call ends at a parenthesis of its own, while Python may move its start."""
        end = at.end_line, at.end_column
        calls = (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))
        return next((call for call in calls if (call.end_lineno, call.end_col_offset) == end), None)

    def arguments(self, call: ast.Call) -> list[Argument]:
        """The arguments in the order in which they are written."""
        given: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
        nodes = sorted(given, key=lambda n: (n.lineno, n.col_offset))
        spans = [self.span(node) for node in nodes]
        pieces: list[list[_Token]] = [[]]
        commas: list[int] = []
        for token in self.tokens(call)[1:-1]:
            if token[0] == "," and not any(start <= token[1] < end for start, end in spans):
                commas.append(token[1])
                pieces.append([])
            else:
                pieces[-1].append(token)
        ends: list[int | None] = [*commas, None]
        return [
            Argument(node, piece[0][1], piece[-1][2], comma)
            for node, piece, comma in zip(nodes, pieces, ends, strict=False)
        ]

    def tokens(self, call: ast.Call) -> list[_Token]:
        """From the parenthesis that opens the arguments to the one that closes them, without comments."""
        start, (_, end) = self.span(call.func)[1], self.span(call)
        # The callee may stand in parentheses of its own.
        match = re.compile(r"(?:[\s\\)]|#[^\r\n]*)*\(").match(self.text, start, end)
        assert match is not None
        start = match.end() - 1
        piece = self.text[start:end]
        starts = [0, *(m.end() for m in _ENDS.finditer(piece))]
        return [
            (t.string, start + starts[t.start[0] - 1] + t.start[1], start + starts[t.end[0] - 1] + t.end[1])
            for t in tokenize.generate_tokens(io.StringIO(piece, newline="").readline)
            if t.type not in _NOTHING
        ]

    def without(self, removed: list[Argument], written: list[Argument]) -> list[Edit]:
        """The edits that remove arguments of a call with their commas, and the lines that they had to themselves."""
        kept = [argument for argument in written if argument not in removed]
        edits = [self._without(argument) for argument in removed]
        last = written[-1]
        if kept and last in removed and last.comma is None and "#" not in self.text[kept[-1].end : last.end]:
            return [e for e in edits if e.end <= kept[-1].end] + [Edit(kept[-1].end, last.end, "")]
        return edits

    def _without(self, argument: Argument) -> Edit:
        start, end = argument.start, argument.end if argument.comma is None else argument.comma + 1
        while argument.comma is not None and self.text[end] in " \t":
            end += 1
        line = self.text.rfind("\n", 0, start) + 1
        alone = not self.text[line:start].strip() and self.text.startswith(("\r\n", "\n"), end)
        return Edit(line, self.text.index("\n", end) + 1, "") if alone else Edit(start, end, "")

    def edited(self, edits: Iterable[Edit]) -> bytes:
        """The file's new content.

        Raises:
            DpcheckError: if edits overlap, or the encoding has no such characters.
        """
        pieces: list[str] = []
        at = 0
        for edit in sorted(dict.fromkeys(edits), key=lambda e: (e.start, e.end)):
            if edit.start < at:
                line = self.text.count("\n", 0, edit.start) + 1
                raise DpcheckError("two fixes would change the same text", where=f"{self.path}:{line}")
            pieces += [self.text[at : edit.start], edit.text.replace("\n", self.newline)]
            at = edit.end
        text = "".join([*pieces, self.text[at:]])
        bom = _BOM if self.data.startswith(_BOM) else b""
        return bom + text.encode(self.encoding.removesuffix("-sig"))
