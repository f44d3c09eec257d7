"""Memory of the clipped sum of a large table: hardly more than the dense gradient that has to be there in the end."""

from pathlib import Path

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from torch import nn

STATUS, WIDTH = Path("/proc/self/status"), 64


def peak_of(run):
    """Bytes that ``run`` takes at most beyond what the process holds before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _bytes("VmRSS")
    kept = run()
    assert kept is not None
    return _bytes("VmHWM") - before


def _bytes(name):
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def mean_of_words(model, batch):
    h = model["table"](batch)
    return model["head"](h.mean(1) if h.dim() == 3 else h).square().sum(1)


@pytest.mark.parametrize("rows", [200_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["embedding", "sum", "mean", "max"])
def test_a_clipped_sum_takes_a_fifth_more_than_a_dense_gradient(kind, rows):
    table = nn.Embedding(rows, WIDTH) if kind == "embedding" else nn.EmbeddingBag(rows, WIDTH, mode=kind)
    model = nn.ModuleDict({"table": table, "head": nn.Linear(WIDTH, 2)})
    clipper = Clipper(model, mean_of_words, max_grad_norm=0.1)
    words = torch.randint(0, rows, (64, 32))
    clipper(words[:2])
    assert peak_of(lambda: clipper(words)) <= 1.2 * rows * WIDTH * 4
    assert clipper.method == "graph"
