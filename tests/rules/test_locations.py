"""Findings point at the user's line, with the span of the expression; the library's line is a related location."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import Net, X, Y, cross_entropy
from torch import Tensor, nn

import dpcheck
from dpcheck.diagnostic import Diagnostic, Location


def only(report: dpcheck.Report, code: str) -> Diagnostic:
    found = [d for d in report.diagnostics if d.code == code]
    assert len(found) == 1, report.diagnostics
    return found[0]


def text_of(at: Location | None) -> str:
    """The source of a span."""
    assert at is not None and at.column is not None and at.end_line is not None
    lines = [line.encode() for line in Path(at.file).read_text().splitlines()[at.line - 1 : at.end_line]]
    lines[-1] = lines[-1][: at.end_column]
    lines[0] = lines[0][at.column :]
    return b"\n".join(lines).decode()


def over_lines(h: Tensor) -> Tensor:
    return (
        h
        - h.mean(
            dim=0,
            keepdim=True,
        )
    )  # fmt: skip


def nested(h: Tensor) -> Tensor:
    def inner(t: Tensor) -> Tensor:
        return t - t.mean(0)

    return inner(h) + 1


def logged(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Tensor:
        return function(*args) * 1.0

    return wrapper


@logged
def decorated(h: Tensor) -> Tensor:
    return h.softmax(0)


def in_a_comprehension(h: Tensor) -> Tensor:
    return torch.stack([part - part.mean(0) for part in h.split(4, 1)], 1).flatten(1)


shifted = lambda h: h + h.cumsum(0)  # noqa: E731


class Nested(nn.Module):
    def forward(self, ä: Tensor) -> Tensor:
        return ä.softmax(0) if ä.shape[1] > 1 else ä


@pytest.mark.parametrize(
    ("middle", "function", "expression"),
    [
        (over_lines, "over_lines", "h.mean(\n            dim=0,\n            keepdim=True,\n        )"),
        (nested, "inner", "t.mean(0)"),
        (decorated, "decorated", "h.softmax(0)"),
        (in_a_comprehension, "<listcomp>", "part.mean(0)"),
        (shifted, "<lambda>", "h.cumsum(0)"),
        (Nested(), "forward", "ä.softmax(0)"),
    ],
    ids=["lines", "nested", "decorated", "comprehension", "lambda", "not ascii"],
)
def test_the_span_is_that_of_the_expression(middle: Any, function: str, expression: str) -> None:
    report = dpcheck.check(Net(middle), cross_entropy, (X, Y))
    for found in report.diagnostics:
        assert found.location is not None
        assert found.location.file == __file__
        assert found.location.function == function
        assert text_of(found.location) == expression
        assert found.related == ()
    assert len(report.diagnostics) in (1, 2)


def test_a_function_of_torch_is_found_where_it_is_called() -> None:
    report = dpcheck.check(Net(functools.partial(torch.Tensor.softmax, dim=0)), cross_entropy, (X, Y))
    found = only(report, "DP103")
    assert text_of(found.location) == "self.middle(self.a(x))"
    assert found.related == ()


LIBRARY = """
import torch
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("seen", torch.zeros(width))

    def forward(self, x):
        self.seen = self.seen + x.detach().sum(0)  # WRITE
        return self.norm(self.linear(x))  # NORM

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)

class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.past = []

    def forward(self, x):
        self.past.append(x.detach().mean())  # APPEND
        return x + sum(self.past[:-1])

def centre(x):
    return x - x.mean(0)  # CENTRE

def loss(model, batch):
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return losses / losses.sum()  # LOSS

def apply(function, x):
    return function(x)
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package that looks installed."""
    folder = tmp_path / "site-packages"
    (folder / "somelib").mkdir(parents=True)
    (folder / "somelib" / "__init__.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("somelib")
    del sys.modules["somelib"]


def line(module: ModuleType, mark: str) -> int:
    (at,) = [i for i, text in enumerate(inspect.getsource(module).splitlines(), 1) if f"# {mark}" in text]
    return at


def test_a_function_of_a_library_is_found_where_the_user_calls_it(library: ModuleType) -> None:
    found = only(dpcheck.check(Net(lambda h: library.centre(h) + 1), cross_entropy, (X, Y)), "DP103")
    assert text_of(found.location) == "library.centre(h)"
    (related,) = found.related
    assert related.file == library.__file__
    assert related.line == line(library, "CENTRE")
    assert text_of(related) == "x.mean(0)"


def test_a_model_of_a_library_is_found_where_the_user_calls_it(library: ModuleType) -> None:
    report = dpcheck.check(library.Model(), cross_entropy, (X, Y))
    for code, mark, module in (("DP101", "NORM", "blocks.0.norm"), ("DP301", "WRITE", "blocks.0")):
        found = only(report, code)
        assert text_of(found.location) == "model(batch[0])"
        assert found.module == module
        assert [(r.file, r.line) for r in found.related] == [(library.__file__, line(library, mark))]


def test_state_of_a_library_is_found_where_the_user_calls_it(library: ModuleType) -> None:
    found = only(dpcheck.check(Net(library.Remembers()), cross_entropy, (X, Y)), "DP304")
    assert text_of(found.location) == "self.middle(self.a(x))"
    assert found.module == "middle"
    assert [(r.file, r.line) for r in found.related] == [(library.__file__, line(library, "APPEND"))]


def test_the_users_function_called_by_a_library_is_the_users(library: ModuleType) -> None:
    found = only(dpcheck.check(Net(lambda h: library.apply(lambda t: t.softmax(0), h)), cross_entropy, (X, Y)), "DP103")
    assert text_of(found.location) == "t.softmax(0)"
    assert found.related == ()


def test_a_loss_of_a_library_has_no_line_of_the_users(library: ModuleType) -> None:
    found = only(dpcheck.check(nn.Linear(4, 3), library.loss, (X, Y)), "DP401")
    assert found.location is not None
    assert (found.location.file, found.location.line) == (library.__file__, line(library, "LOSS"))


def test_a_loss_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_losses.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("other_losses")
    monkeypatch.delitem(sys.modules, "other_losses")
    found = only(dpcheck.check(nn.Linear(4, 3), module.loss, (X, Y)), "DP401")
    assert text_of(found.location) == "losses.sum()"
    assert found.location is not None and found.location.file == module.__file__


def executed(source: str) -> Callable[[Tensor], Tensor]:
    names: dict[str, Any] = {}
    exec(source, names)
    function: Callable[[Tensor], Tensor] = names["f"]
    return function


def test_code_without_a_file_is_found_where_it_is_called() -> None:
    f = executed("def f(h):\n    return h.softmax(0)\n")
    found = only(dpcheck.check(Net(lambda h: f(h) + 1), cross_entropy, (X, Y)), "DP103")
    assert text_of(found.location) == "f(h)"


def test_a_whole_program_without_files_is_found_by_its_line_numbers() -> None:
    names: dict[str, Any] = {}
    exec("def f(m, b):\n    h = m(b)\n    return (h - h.mean(0)).sum(1)\n", names)
    found = only(dpcheck.check(nn.Linear(4, 3), names["f"], X), "DP401")
    assert found.location is not None
    assert (found.location.file, found.location.line) == ("<string>", 3)


def test_a_branch_on_data_in_a_library(library: ModuleType) -> None:
    def gated(h: Tensor) -> Tensor:
        return h if library.centre(h).sum() > 1e-3 else -h

    report = dpcheck.check(Net(gated), cross_entropy, (X, Y))
    assert {text_of(d.location) for d in report.diagnostics} == {"library.centre(h).sum() > 1e-3"}
