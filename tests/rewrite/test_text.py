"""Edits of calls: whatever the layout, the new call means the same as the old one but for the norm."""

from __future__ import annotations

import ast
import math
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dpcheck.errors import DpcheckError
from dpcheck.rewrite import norms
from dpcheck.rewrite.names import Names
from dpcheck.rewrite.norms import CannotWrite, Size
from dpcheck.rewrite.text import Edit, SourceFile

ORDER = ("num_features", "eps", "momentum", "affine", "track_running_stats")
VALUES = {
    "num_features": ("24", "(24)", "width", "sizes[0]"),
    "eps": ("1e-3", "(0.5)"),
    "momentum": ("None", "f(0.1, (2, 3))", "(0.3)"),
    "affine": ("False", "(True)"),
    "track_running_stats": ("False", "bool((1, 2))"),
}
GAPS = ("", " ", "\n        ", "  # ), a comment (\n    ")


@st.composite
def calls(draw: st.DrawFn) -> str:
    """A constructor call of batch norm in some layout, all arguments by position up to one and by name after it."""
    count = draw(st.integers(0, 5))
    named = ORDER[max(count, 1) :] if count else ORDER
    later = draw(st.permutations([n for n in named if n == "num_features" or draw(st.booleans())]))
    pieces = [draw(st.sampled_from(VALUES[name])) for name in ORDER[:count]]
    pieces += [f"{name}={draw(st.sampled_from(VALUES[name]))}" for name in later]

    def gap() -> str:
        return draw(st.sampled_from(GAPS))

    inside = f"{gap()},{gap()}".join(pieces) + gap() + draw(st.sampled_from(("", ",")))
    return f"nn.BatchNorm2d{draw(st.sampled_from(('', ' ')))}({gap()}{inside}{gap()})"


SPACE = {"nn": nn, "math": math, "width": 24, "sizes": [24], "f": lambda *_: 0.2}


def source_of(text: str, folder: Path, space: Mapping[str, Any] = SPACE) -> tuple[SourceFile, Names]:
    """A file, as if it had been loaded and its names were ``space``."""
    path = (folder / "written.py").resolve()
    path.write_text(text, encoding="utf-8")
    module = types.ModuleType("written")
    module.__file__ = str(path)
    vars(module).update(space)
    sys.modules["written"] = module
    try:
        source = SourceFile(path)
        return source, Names(source)
    finally:
        del sys.modules["written"]


def evaluated(text: str) -> Any:
    space: dict[str, Any] = {"width": 24, "sizes": [24], "f": lambda *_: 0.2}
    exec(text, space)
    return space["norm"]


@given(call=calls(), before=st.sampled_from(("", "é = 'ü'; ", "x = [(1)]; ")))
def test_the_new_call_is_the_group_norm_of_the_same_arguments(
    call: str, before: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = f"import math\nfrom torch import nn\n{before}norm = {call}\n"
    source, names = source_of(text, tmp_path_factory.getbasetemp())
    node = next(n for n in ast.walk(source.tree) if isinstance(n, ast.Call) and "BatchNorm2d" in ast.dump(n.func))
    edits = norms.constructor(source, names, node, nn.BatchNorm2d, [Size(24, 64)], "group")
    old, new = evaluated(text), evaluated(source.edited([*edits, *names.header([])]).decode())
    assert isinstance(new, nn.GroupNorm)
    assert (new.num_groups, new.num_channels, new.eps, new.affine) == (6, 24, old.eps, old.affine)


@given(st.lists(st.builds(Size, st.integers(1, 96), st.sampled_from([1, 4, 49, 1024])), min_size=1, max_size=4))
def test_the_divisor_never_leaves_a_norm_over_too_few_values(sizes: list[Size]) -> None:
    if any(size.channels * size.positions < 3 for size in sizes):
        with pytest.raises(CannotWrite, match="less than three values"):
            norms.divisor(sizes)
        return
    g = norms.divisor(sizes)
    groups = [math.gcd(g, size.channels) for size in sizes]
    values = [size.channels // n * size.positions for n, size in zip(groups, sizes, strict=True)]
    assert all(n == 1 or v >= 16 for n, v in zip(groups, values, strict=True))
    assert norms.divisor(sizes, "layer") == 1


def test_line_ends_encoding_and_byte_order_mark_stay(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    data = "# -*- coding: latin-1 -*-\r\nx = 'ü', f(1)\r\ny = 2".encode("latin-1")
    path.write_bytes(data)
    source = SourceFile(path)
    call = next(n for n in ast.walk(source.tree) if isinstance(n, ast.Call))
    assert source.of(call) == "f(1)"
    new = source.edited([Edit(*source.span(call), "g(\n2)")])
    assert new == data.replace(b"f(1)", b"g(\r\n2)")
    path.write_bytes(b"\xef\xbb\xbfx = 'a'\n")
    assert SourceFile(path).edited([]) == b"\xef\xbb\xbfx = 'a'\n"


def test_edits_that_overlap_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("x = f(1, 2)\n", encoding="utf-8")
    with pytest.raises(DpcheckError, match="two fixes"):
        SourceFile(path).edited([Edit(4, 8, "a"), Edit(6, 9, "b")])
    with pytest.raises(DpcheckError, match="cannot be read"):
        path.write_text("x = (", encoding="utf-8")
        SourceFile(path)


IMPORTS = {
    "": "import math\nfrom torch import nn\n\n\n",
    "# licence\n\n": "# licence\n\nimport math\nfrom torch import nn\n\n\n",
    '"""Doc."""\nimport sys\nimport rich\n': '"""Doc."""\nimport math\nimport sys\nimport rich\nfrom torch import nn\n',
    "from __future__ import annotations\n": "from __future__ import annotations\nimport math\n\nfrom torch import nn\n",
    "import torch\n": "import math\n\nimport torch\n",
    "nn = 1\n": "import math\nimport torch.nn as _torch_nn\n\n\nnn = 1\n",
}


@pytest.mark.parametrize("head", IMPORTS)
def test_imports_are_added_where_they_are_reachable(head: str, tmp_path: Path) -> None:
    known = {"torch": torch, "sys": sys, "nn": 1}
    space = {name: value for name, value in known.items() if f"import {name}" in head or f"{name} =" in head}
    source, names = source_of(f"{head}norm = 1\n", tmp_path, space)
    spelled = names.spell("torch.nn.GroupNorm", source.tree.body[-1])
    assert names.spell("math.gcd", source.tree.body[-1]) == "math.gcd"
    text = source.edited(names.header([])).decode()
    assert text.startswith(IMPORTS[head])
    exec(text, loaded := dict[str, Any]())
    assert eval(spelled, loaded) is nn.GroupNorm
