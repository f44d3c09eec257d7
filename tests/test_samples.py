"""Inputs that a file does not make itself, and the loss that is then guessed."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dpcheck.cli import main
from dpcheck.diagnostic import Report
from dpcheck.errors import DpcheckError
from dpcheck.report import concise, github, junit, markdown, sarif
from dpcheck.samples import BATCH, GuessedLoss, of_model, of_options
from dpcheck.target import load

MODEL = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self, width=4, mean=False):
        super().__init__()
        self.layer, self.mean = nn.Linear(width, 3), mean
    def forward(self, x):
        h = self.layer(x)
        return h - h.mean(0) if self.mean else h
"""
LOSS = "def loss_fn(model, batch): return model(batch).sum(1)\n"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    path, modules, bytecode = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    yield tmp_path / "m.py"
    sys.path[:], sys.dont_write_bytecode = path, bytecode
    for name in set(sys.modules) - modules:
        if name.startswith(("dpcheck_target_", "netspkg", "timm")):
            del sys.modules[name]


def test_shapes_types_and_limits() -> None:
    sample = of_options(["x:Bx3x8xT", "ids:BxT:int64<5", "flag:B:bool", "c:BxCx2:complex64", "h:Bx2:bfloat16"])
    x, ids, flag, c, h = sample.tensors.values()
    assert x.shape[:3] == (BATCH, 3, 8) and x.dtype == torch.float32 and not sample.guessed
    assert ids.shape == (BATCH, x.shape[3]) and ids.dtype == torch.int64 and 0 <= ids.min() <= ids.max() < 5
    assert flag.dtype == torch.bool and c.is_complex() and h.dtype == torch.bfloat16
    assert c.shape[1] not in (BATCH, x.shape[3])
    assert list(of_options(["Bx3", "4x2"][:1]).tensors) == ["0"]


MALFORMED = (
    "x",
    "x:",
    "x:3xB",
    "x:Bx0",
    "x:B:int65",
    "x:B:float32<4",
    "x:Bx-3",
    "1x:B",
    "x:Bx",
    "x:B x:B",
    "x:B y:4x3",
)


@pytest.mark.parametrize("text", [*MALFORMED, "x:B y:4x3", "x:B:Tensor", "x:B:int64<0"])
def test_malformed_inputs_exit_2(text: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(MODEL)
    assert main(["m.py", *(f"--input={part}" for part in text.split())]) == 2
    err = capsys.readouterr().err
    assert "--input" in err and "next:" in err and "internal" not in err


def test_a_guess_is_called_one_in_every_format(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(MODEL)
    for options in (["-q"], ["--format", "json"]):
        assert main(["m.py", "--input", "Bx4", *options]) == 0
        assert "GUESS: the loss is a guess" in capsys.readouterr().out
    report = Report("independent", (), (), (), "graph", ("a note", "GUESS: the loss is a guess"))
    for form in (concise, github, junit, markdown, sarif):
        assert "GUESS: the loss is a guess" in form.render(report, "m.py")
    assert main(["m.py", "--input", "Bx4", "--train"]) == 2
    assert "nothing is trained on a guessed loss" in capsys.readouterr().err


def test_inputs_and_guesses_of_the_other_commands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(MODEL)
    for command in ("plan", "verify", "explain"):
        assert main([command, "m.py", "--input", "x:Bx4"]) == 0
        assert "note: GUESS: the loss is a guess" in capsys.readouterr().out
        assert main([command, "m.py:Model(4, mean=True)", "--input", "x:Bx4"]) == (command != "explain")
        assert "GUESS" in capsys.readouterr().out
        assert main([command, "m.py", "--input", "x:3xB"]) == 2
        assert "describes no tensor" in capsys.readouterr().err
    for command in ("verify", "explain"):
        assert main([command, "m.py", "--input", "x:Bx4", "--format", "json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["guessed"] and "GUESS" in document["notes"][0]
    for command in ("audit", "train"):
        assert main([command, "m.py", "--input", "x:Bx4"]) == 2
        assert "on a guessed loss" in capsys.readouterr().err
    file.write_text(MODEL + LOSS)
    assert main(["verify", "m.py", "--input", "x:Bx4"]) == 0
    out = capsys.readouterr().out
    assert "the sample batch comes from --input x:Bx4" in out and "GUESS" not in out


def test_arguments_of_a_factory_of_a_package(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "netspkg").mkdir()
    (file.parent / "netspkg" / "__init__.py").write_text("")
    (file.parent / "netspkg" / "nets.py").write_text("from . import __name__ as _\n" + MODEL)
    assert main(["netspkg.nets:Model(5, mean=True)", "--input", "x:Bx5"]) == 1
    out = capsys.readouterr().out
    assert "netspkg/nets.py:Model(5, mean=True): mixing" in out and "DP103" in out and "GUESS" in out
    assert main(["netspkg.nets:Model(5)", "--input", "x:Bx5", "--fix"]) == 2
    assert "model.py:SYMBOL only" in capsys.readouterr().err
    assert main(["netspkg.nets:Model('wide')", "--input", "x:Bx5"]) == 2
    assert "Model() raised: TypeError" in capsys.readouterr().err
    assert main(["netspkg.none:Model"]) == 2 and "no module netspkg.none" in capsys.readouterr().err


def test_inputs_for_a_loss_of_the_files_own(file: Path) -> None:
    file.write_text(MODEL + "model = Model()\n" + LOSS)
    target = load("m.py", ["x:Bx4"])
    assert isinstance(target.batch, Tensor) and target.batch.shape == (BATCH, 4) and not target.guessed
    assert isinstance(load("m.py", ["x:Bx4", "y:B:int64<3"]).batch, tuple)


def test_what_the_model_says_of_its_inputs() -> None:
    class Lightning(nn.Module):
        example_input_array = (torch.ones(3, 4), torch.zeros(3))

    class Float:
        def __init__(self, dim_str: str, dtypes: list[str]) -> None:
            self.dim_str, self.dtypes = dim_str, dtypes

    class Annotated(nn.Module):
        def forward(self, x: image, ids: words, *, scale: float = 1.0) -> None: ...  # noqa: F821

    space = Annotated.forward.__globals__
    space |= {"image": Float("batch 3 h w=8", ["float32"]), "words": Float("batch h", ["int64", "int32"])}
    assert of_model(nn.Linear(2, 2)) is None
    example = of_model(Lightning())
    assert example is not None and list(example.tensors) == ["0", "1"] and not example.guessed
    annotated = of_model(Annotated())
    assert annotated is not None and annotated.guessed
    x, ids = annotated.tensors["x"], annotated.tensors["ids"]
    assert x.shape == (BATCH, 3, ids.shape[1], 8) and ids.dtype == torch.int64


def test_the_guessed_loss_takes_every_output_with_samples() -> None:
    class Many(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"a": 2 * a, "count": torch.tensor(7.0), "ids": a.long(), "b": b}

    a, b = torch.ones(4, 3), torch.full((4, 2, 2), 3.0)
    assert torch.equal(GuessedLoss()(Many(), {"0": a, "b": b}), torch.full((4,), 4.0 + 9.0))
    with pytest.raises(DpcheckError, match="no loss can be guessed"):
        GuessedLoss()(nn.Flatten(0), {"0": a})


def test_a_library_that_is_missing_or_does_not_import(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    (file.parent / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(DpcheckError, match=r"timm cannot be imported: RuntimeError.*torchvision::nms") as caught:
        load("timm:resnet18")
    assert "python -c 'import timm'" in str(caught.value)
    (file.parent / "timm.py").unlink()
    monkeypatch.setattr(sys, "path", [str(file.parent)])
    with pytest.raises(DpcheckError, match=r"timm is not installed\n  next: pip install timm"):
        load("timm:resnet18")


def test_a_guessed_input_that_does_not_fit_says_how_to_give_another(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(MODEL)
    assert main(["m.py"]) == 2
    assert "called a guess: --input x:Bx3x32x32" in capsys.readouterr().err
    assert main(["m.py", "--input", "x:Bx5"]) == 2
    assert "--input NAME:SHAPE once for each" in capsys.readouterr().err


def test_a_model_of_timm_is_built_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wiring only, with a stand-in for the library."""
    timm = types.ModuleType("timm")

    def create_model(name: str, pretrained: bool, width: int = 2) -> nn.Module:
        assert not pretrained
        model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)).eval()
        model.default_cfg = {"input_size": (3, 9, 9)}  # type: ignore[assignment]
        return model

    timm.list_models = lambda: ["resnet18", "vit"]  # type: ignore[attr-defined]
    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    target = load("timm:resnet18?width=5")
    assert target.model.training and target.guessed and target.batch["0"].shape == (BATCH, 3, 9, 9)
    assert target.model[1].num_features == 5 and target.name == "timm:resnet18"
    for text, says in (("timm:resnet81", "did you mean resnet18"), ("timm:vit?depth=1", "timm could not build it")):
        with pytest.raises(DpcheckError) as caught:
            load(text)
        assert says in str(caught.value)
    with pytest.raises(DpcheckError, match=r"has no config\.json"):
        load("hf:nowhere")
