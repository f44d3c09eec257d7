"""What a check costs: seconds and peak memory on full-size models, how both grow with depth, and the command's start.

    python benchmarks/check.py [--only PATTERN] [--json PATH] [--threads N]

Every model is checked in a process of its own. torchvision and transformers are needed for the models of full size; a
model whose library is missing is left out, with a note. Weights are random.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from zoo_models.operators import declare

DEPTHS = (4, 8, 16, 32)
LIMIT_S = 600
SAMPLES = 2


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def token_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross entropy of every token, averaged over each sample's tokens."""
    ids, labels = batch
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)


def resnet50() -> tuple[nn.Module, Any, Any]:
    declare()
    from torchvision.models import resnet50 as make  # type: ignore[import-not-found, unused-ignore]

    return make(), cross_entropy, (torch.randn(SAMPLES, 3, 224, 224), torch.tensor([1, 2]))


def resnet50_group_norm() -> tuple[nn.Module, Any, Any]:
    declare()
    from torchvision.models import resnet50 as make

    model = make(norm_layer=lambda width: nn.GroupNorm(32, width))
    return model, cross_entropy, (torch.randn(SAMPLES, 3, 224, 224), torch.tensor([1, 2]))


def bert_base() -> tuple[nn.Module, Any, Any]:
    declare()
    from transformers import BertConfig, BertForMaskedLM  # type: ignore[import-not-found, unused-ignore]

    ids = torch.randint(5, 30522, (SAMPLES, 128))
    return BertForMaskedLM(BertConfig()).train(), token_loss, (ids, ids)


def gpt2_small() -> tuple[nn.Module, Any, Any]:
    declare()
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = torch.randint(0, 50257, (SAMPLES, 128))
    return GPT2LMHeadModel(GPT2Config()).train(), token_loss, (ids, ids)


def deep_mlp(depth: int) -> tuple[nn.Module, Any, Any]:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU())]
    return nn.Sequential(*layers), cross_entropy, (torch.randn(SAMPLES, 64), torch.tensor([1, 2]))


class Encoder(nn.Module):
    """A transformer encoder of torch's own layers, with a classifier on the mean token."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(64, 4, 128, batch_first=True) for _ in range(depth)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))  # type: ignore[no-any-return]


def deep_transformer(depth: int) -> tuple[nn.Module, Any, Any]:
    return Encoder(depth), cross_entropy, (torch.randn(SAMPLES, 16, 64), torch.tensor([1, 2]))


def at_depth(make: Callable[[int], Any], depth: int) -> Callable[[], Any]:
    return lambda: make(depth)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "resnet50, 224": resnet50,
    "resnet50 with group norm, 224": resnet50_group_norm,
    "bert-base, 128 tokens": bert_base,
    "gpt2-small, 128 tokens": gpt2_small,
    **{f"mlp, depth {depth}": at_depth(deep_mlp, depth) for depth in DEPTHS},
    **{f"transformer, depth {depth}": at_depth(deep_transformer, depth) for depth in DEPTHS},
}


def measure(name: str, threads: int) -> dict[str, Any]:
    """Check one model in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        model, loss_fn, batch = MODELS[name]()
    except ImportError as error:
        return {"name": name, "missing": str(error)}
    import dpcheck

    before = _peak_mib()
    start, cpu = time.perf_counter(), time.process_time()
    report = dpcheck.check(model, loss_fn, batch)
    return {
        "name": name,
        "verdict": report.verdict,
        "findings": len(report.diagnostics),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "before_mib": before,
        "peak_mib": _peak_mib(),
    }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measured_apart(name: str, threads: int) -> dict[str, Any]:
    """Check one model in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--one", name, "--threads", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"name": name, "missing": f"more than {LIMIT_S} s"}
    if done.returncode != 0:
        return {"name": name, "missing": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def command_seconds(*arguments: str) -> float:
    """The best of five runs of the command."""
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dpcheck", *arguments], capture_output=True, check=True)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="*", metavar="PATTERN", help="such as 'bert*'")
    p.add_argument("--threads", type=int, default=2, metavar="N", help="torch's threads (2)")
    p.add_argument("--json", type=Path, metavar="PATH", help="also write the rows")
    p.add_argument("--one", help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.threads)))
        return
    rows = [measured_apart(name, options.threads) for name in MODELS if fnmatch.fnmatch(name, options.only)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    console = Console(width=120)
    console.print(_table(rows))
    for arguments in (["--help"], ["--version"], ["rule", "DP101"]):
        console.print(f"dpcheck {' '.join(arguments)}: {command_seconds(*arguments):.2f} s")


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "model", "parameters", "verdict", "findings", "seconds", "CPU seconds", "peak MiB", "before", title="check"
    )
    for row in rows:
        if "missing" in row:
            table.add_row(row["name"], "", f"not measured: {row['missing']}")
            continue
        numbers = (
            row["findings"],
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            row["peak_mib"],
            row["before_mib"],
        )
        table.add_row(row["name"], f"{row['parameters']:,}", row["verdict"], *map(str, numbers))
    return table


if __name__ == "__main__":
    main()
