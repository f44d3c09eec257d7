"""What a target's text names: a file, a module, or a model of a library; and a symbol with arguments in it."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpcheck.errors import DpcheckError
from dpcheck.options import COMMANDS

FORMS = "model.py, model.py:SYMBOL, package.module:factory(8, deep=True), hf:DIR?num_hidden_layers=2 or timm:NAME"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Named:
    """A target before it is loaded.

    Attributes:
        kind: of the target.
        place: a file's path, a module's name, a folder with a transformers ``config.json``, or timm's name of a model.
        symbol: the name in the file or module; ``None`` if it is to be found.
        call: whether the symbol was written with parentheses.
        args, kwargs: literals. For hf and timm, ``kwargs`` are what follows the question mark.
    """

    kind: Literal["file", "module", "hf", "timm"]
    place: str
    symbol: str | None = None
    call: bool = False
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def named(text: str) -> Named:
    """Read a target's text.

    Raises:
        DpcheckError: if it is none of :data:`FORMS`, or what it names does not exist.
    """
    scheme, _, rest = text.partition(":")
    if scheme in ("hf", "timm") and not _exists(text):
        place, _, query = rest.partition("?")
        if not place:
            raise DpcheckError(f"{text} names no model", next=f"write {FORMS}")
        return Named("hf" if scheme == "hf" else "timm", place, kwargs=_query(text, query))
    head, expression = _split(text)
    kind: Literal["file", "module"] = "module" if _is_module(head, expression) else "file"
    place = head if kind == "module" else str(existing(head))
    if expression is None:
        return Named(kind, place)
    symbol, call, args, kwargs = called(expression, text)
    return Named(kind, place, symbol, call, args, kwargs)


def existing(text: str) -> Path:
    """The path of a Python file.

    Raises:
        DpcheckError: if it is none.
    """
    path = Path(text)
    if _exists(text) and path.is_dir():
        files = sorted(p.name for p in path.glob("*.py"))[:3]
        hint = f"name one of its files, such as {path / files[0]}" if files else "name a Python file"
        raise DpcheckError(f"{text} is a directory", next=hint)
    if not _exists(text):
        near = difflib.get_close_matches(text, COMMANDS, n=1)
        meant = (
            f"did you mean `dpcheck {near[0]}`? commands are {', '.join(COMMANDS)}; "
            if text.isidentifier() and near
            else ""
        )
        raise DpcheckError(f"no such file: {text}", next=f"{meant}a target is {FORMS}")
    if path.suffix != ".py":
        raise DpcheckError(f"{text} is not a Python file", next=f"a target is {FORMS}")
    return path


def called(expression: str, text: str) -> tuple[str, bool, tuple[Any, ...], dict[str, Any]]:
    """Name, whether it is called, and the arguments of ``factory(8, deep=True)``.

    Raises:
        DpcheckError: if it is no name, or an argument is no literal. Nothing is evaluated.
    """
    try:
        node = ast.parse(expression, mode="eval").body
        call = isinstance(node, ast.Call)
        function = node.func if isinstance(node, ast.Call) else node
        if not isinstance(function, ast.Name):
            raise ValueError("it is no name")
        args = tuple(ast.literal_eval(a) for a in node.args) if isinstance(node, ast.Call) else ()
        pairs = [(k.arg, ast.literal_eval(k.value)) for k in node.keywords] if isinstance(node, ast.Call) else []
        kwargs = {name: value for name, value in pairs if name is not None}
        if len(kwargs) != len(pairs):
            raise ValueError("** cannot be read")
    except (ValueError, SyntaxError, TypeError) as error:
        raise DpcheckError(
            f"{expression!r} is no symbol and no call with literal arguments", text, f"write {FORMS}"
        ) from error
    return function.id, call, args, kwargs


def _split(text: str) -> tuple[str, str | None]:
    """Before and behind the colon; arguments may have colons of their own."""
    if _exists(text):
        return text, None
    head, colon, expression = text.partition(":")
    if not (_MODULE.fullmatch(head) and not head.endswith(".py")) and ".py:" in text:
        head, colon, expression = text.partition(".py:")
        head += ".py"
    return (head, expression) if colon and head else (text, None)


def _exists(text: str) -> bool:
    """Also for what cannot be a path, being too long, say."""
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _is_module(head: str, expression: str | None) -> bool:
    if not _MODULE.fullmatch(head) or head.endswith(".py") or _exists(head):
        return False
    if expression is not None:
        return True
    try:
        return importlib.util.find_spec(head) is not None
    except (ImportError, ValueError):
        return False


def _query(text: str, query: str) -> dict[str, Any]:
    found = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise DpcheckError(f"{part!r} is not KEY=VALUE", text, f"write {FORMS}")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found
