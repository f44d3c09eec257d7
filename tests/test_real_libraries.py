"""``timm:NAME`` and ``hf:DIR`` with the real libraries: built without weights, judged as the isolation oracle judges.

    python -m pytest -m long tests/test_real_libraries.py

needs timm and transformers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from dpcheck.api import check
from dpcheck.cli import main
from dpcheck.oracle import isolate
from dpcheck.target import load

pytestmark = pytest.mark.long
SMALL = "num_hidden_layers=2&hidden_size=32&num_attention_heads=2&intermediate_size=64"
TIMM = {
    "timm:resnet18": "mixing",
    "timm:vit_tiny_patch16_224?img_size=32&depth=2": "independent",
    "timm:convnext_atto?depths=(1,1,1,1)": "independent",
}
# The library's class of configuration and of model, and what makes it small.
HF = {
    "Bert ForSequenceClassification": (SMALL, "independent"),
    "GPT2 LMHeadModel": ("n_layer=2&n_embd=32&n_head=2&vocab_size=99", "independent"),
    "ViT ForImageClassification": (f"{SMALL}&image_size=32", "independent"),
    "Llama ForCausalLM": (f"{SMALL}&num_key_value_heads=2&vocab_size=99", "independent"),
    "T5 ForConditionalGeneration": ("num_layers=2&d_model=32&num_heads=2&d_ff=64&d_kv=16&vocab_size=99", "independent"),
    "MobileNetV2 ForImageClassification": ("image_size=32&depth_multiplier=0.25", "mixing"),
}


@pytest.fixture(autouse=True, scope="module")
def operators() -> None:
    """Both libraries import torchvision, which must import beside a torch that it was not built for, too."""
    path = Path(__file__).parents[1] / "benchmarks" / "zoo_models" / "operators.py"
    spec = importlib.util.spec_from_file_location("dpcheck_tests_operators", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.declare()


def agree(text: str, verdict: str, *inputs: str) -> None:
    torch.manual_seed(0)
    target = load(text, inputs)
    assert target.guessed and target.notes[0].startswith("GUESS")
    assert check(target.model, target.loss_fn, target.batch).verdict == verdict
    found = isolate(target.model, target.loss_fn, target.batch)
    assert not found.failed and found.mixing == (verdict == "mixing")


def _own_size(text: str) -> tuple[int, int]:
    timm: Any = pytest.importorskip("timm")
    size: tuple[int, int] = timm.get_pretrained_cfg(text.removeprefix("timm:").partition("?")[0]).input_size[1:]
    return size


@pytest.mark.parametrize("text", TIMM)
def test_timm(text: str) -> None:
    pytest.importorskip("timm")
    agree(text, TIMM[text], *([] if "img_size" in text else ["Bx3x32x32"]))
    # Without --input the size is timm's own.
    assert list(load(text).batch["0"].shape[1:]) == ([3, 32, 32] if "img_size" in text else [3, *_own_size(text)])


@pytest.mark.parametrize("name", HF)
def test_transformers(name: str, tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    family, kind = name.split()
    getattr(transformers, f"{family}Config")(architectures=[family + kind]).save_pretrained(tmp_path)
    query, verdict = HF[name]
    agree(f"hf:{tmp_path}?{query}", verdict)


def test_what_these_libraries_do_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers: Any = pytest.importorskip("transformers")
    transformers.ResNetConfig(architectures=["ResNetForImageClassification"]).save_pretrained(tmp_path)
    for arguments, says in (
        ([f"hf:{tmp_path}"], "--input pixel_values:Bx3x64x64, say"),
        ([f"hf:{tmp_path}?embeding_size=8"], "did you mean embedding_size?"),
        (["timm:resnet81"], "did you mean resnet"),
        (["timm:convnext_atto?img_size=64"], "for inputs of another size: --input Bx3x64x64"),
    ):
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
    shrunk = f"hf:{tmp_path}?depths=[1,1,1,1]&hidden_sizes=[8,8,8,8]&embedding_size=8"
    assert main([shrunk, "--input", "pixel_values:Bx3x32x32"]) == 1
    assert "DP101" in capsys.readouterr().out
