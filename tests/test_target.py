"""From a model file to a model, its loss and a batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from dpcheck.errors import DpcheckError
from dpcheck.target import load

Write = Callable[[str], str]

REST = """
def loss_fn(model, batch):
    return model(batch).flatten(1).sum(1)

def sample_batch():
    return torch.ones(4, 3)
"""
IMPORTS = "import torch\nfrom torch import nn\n"


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    path, modules, bytecode = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    yield
    sys.path[:] = path
    sys.dont_write_bytecode = bytecode
    for name in set(sys.modules) - modules:
        if name.startswith(("dpcheck_target_", "sibling")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(body: str, rest: str = REST) -> str:
        path = tmp_path / "model_file.py"
        path.write_text(IMPORTS + body + rest, encoding="utf-8")
        return str(path)

    return file


@pytest.mark.parametrize(
    ("body", "symbol", "width"),
    [
        ("model = nn.Linear(3, 1)\nnet = nn.Linear(3, 2)", "model", 1),
        ("net = nn.Linear(3, 2)\ndef make_model(): return nn.Linear(3, 3)", "make_model", 3),
        ("def build_model(): return nn.Linear(3, 5)\ndef create_model(): return nn.Linear(3, 4)", "create_model", 4),
        ("def make_model(width=6): return nn.Linear(3, width)", "make_model", 6),
        ("other = nn.Linear(3, 7)", "other", 7),
        ("other = again = nn.Linear(3, 7)", "other", 7),
        ("class Block(nn.Module): pass\nonly = nn.Linear(3, 7)", "only", 7),
        ("class Mine(nn.Linear):\n    def __init__(self): super().__init__(3, 8)", "Mine", 8),
        ("from torch.nn import Linear, Conv2d\nonly = Linear(3, 9)", "only", 9),
    ],
)
def test_discovery_follows_the_documented_order(write: Write, body: str, symbol: str, width: int) -> None:
    target = load(write(body))
    assert target.symbol == symbol
    assert target.model(torch.ones(1, 3)).shape == (1, width)


@pytest.mark.parametrize("symbol", ["small", "make_small", "Small"])
def test_a_symbol_names_an_instance_a_function_or_a_class(write: Write, symbol: str) -> None:
    body = (
        "model = nn.Linear(3, 1)\nsmall = nn.Linear(3, 2)\ndef make_small(): return nn.Linear(3, 2)\n"
        "class Small(nn.Linear):\n    def __init__(self): super().__init__(3, 2)\n"
    )
    target = load(f"{write(body)}:{symbol}")
    assert isinstance(target.model, nn.Linear)
    assert (target.symbol, target.model.out_features) == (symbol, 2)


def test_the_batch_may_be_a_value(write: Write) -> None:
    path = write(
        "model = nn.Linear(3, 1)", "\nbatch = torch.ones(5, 3)\ndef loss_fn(model, batch): return model(batch)[:, 0]"
    )
    assert load(path).batch.shape == (5, 3)


def test_functions_may_import_files_beside_the_model(write: Write, tmp_path: Path) -> None:
    (tmp_path / "sibling_late.py").write_text("WIDTH = 4\n")
    body = "def make_model():\n    from sibling_late import WIDTH\n    return nn.Linear(3, WIDTH)"
    model = load(write(body)).model
    assert isinstance(model, nn.Linear)
    assert model.out_features == 4


def test_loading_writes_nothing(write: Write, tmp_path: Path) -> None:
    (tmp_path / "sibling_cache.py").write_text("WIDTH = 4\n")
    path = write("import sibling_cache\nmodel = nn.Linear(3, 4)")
    before = sorted(tmp_path.rglob("*"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    code = "import sys; from dpcheck.target import load; load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, path], env=environment, check=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_failed_is_not_left_half_imported(write: Write) -> None:
    with pytest.raises(DpcheckError):
        load(write("1 / 0"))
    assert "dpcheck_target_model_file" not in sys.modules


@pytest.mark.parametrize(
    ("body", "rest", "what", "hint"),
    [
        ("x = 1", REST, "defines no model", "def make_model():"),
        ("class A(nn.Module): pass\nclass B(nn.Module): pass", REST, "several models: A, B", ":B"),
        ("a = nn.Linear(3, 1)\nb = nn.Linear(3, 1)", REST, "several models: a, b", ":b"),
        (
            "def make_model(width): return nn.Linear(3, width)",
            REST,
            "make_model needs arguments (width)",
            "def make_model",
        ),
        ("def make_model(): return 3", REST, "make_model() returned an int", "return the model"),
        (
            "def make_model(): raise ValueError('no weights')",
            REST,
            "make_model() raised: ValueError: no weights",
            "line",
        ),
        ("model = nn.Linear(3, 1)", "", "no loss_fn(model, batch)", "def loss_fn(model, batch):"),
        ("model = nn.Linear(3, 1)\ndef loss_fn(m, b): pass", "", "no sample_batch()", "def sample_batch():"),
        (
            "model = nn.Linear(3, 1)\ndef loss_fn(m, b): pass\ndef sample_batch(): 1 / 0",
            "",
            "sample_batch() raised",
            "line",
        ),
        ("import sys\nsys.exit('bye')", REST, "raised while it was imported: SystemExit: bye", "line"),
        ("x = {}['weights']", REST, "raised while it was imported: KeyError: 'weights'", "line"),
        ("def f(:", REST, "is not valid Python", "py_compile"),
    ],
)
def test_each_defect_of_a_file_is_named_with_a_next_step(
    write: Write, body: str, rest: str, what: str, hint: str
) -> None:
    path = write(body, rest)
    with pytest.raises(DpcheckError) as caught:
        load(path)
    assert what in caught.value.what
    assert caught.value.next is not None
    assert hint in caught.value.next
    assert caught.value.where is not None
    assert caught.value.where.startswith(path)


@pytest.mark.parametrize(
    ("body", "line"),
    [("x = 1\ny = {}['a']", 4), ("def f(:", 3), ("x = 1\ndef make_model():\n    return nn.Linear(3, 'a')", 5)],
)
def test_errors_name_the_users_own_line(write: Write, body: str, line: int) -> None:
    path = write(body)
    with pytest.raises(DpcheckError) as caught:
        load(path)
    assert caught.value.where == f"{path}:{line}"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("missing.py", "no such file"),
        ("", "is a directory"),
        ("notes.txt", "not a Python file"),
        ("model_file.py:nope", "defines no 'nope'"),
    ],
)
def test_what_is_no_model_file_is_refused(write: Write, tmp_path: Path, name: str, what: str) -> None:
    write("model = nn.Linear(3, 1)")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DpcheckError) as caught:
        load(os.path.join(tmp_path, name))
    assert what in caught.value.what
    assert caught.value.next
