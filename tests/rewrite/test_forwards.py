"""Forwards that compute over the batch: the written expression, and that it is the one that was tried in memory."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dpcheck
from dpcheck.rewrite.afresh import Fresh, load_afresh
from dpcheck.rewrite.plan import SourceFix, plan
from dpcheck.target import load

ROWS, SEQUENCES, IMAGES = "6, 4", "6, 5, 4", "6, 4, 3, 3"
FILE = """\
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.LazyLinear(3)

    def forward(self, x):
        h = self.drop(x)
        {body}
        return self.head(h.flatten(1))  # the logits


def make_model():
    torch.manual_seed(0)
    model = Net()
    model(torch.zeros({shape}))
    return model


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def sample_batch():
    torch.manual_seed(1)
    return torch.randn({shape}), torch.tensor([0, 1, 2, 0, 1, 2])
"""
# The body, what must be written in its place, and the shape of the batch.
WRITTEN = {
    "rows": (
        "h = (h - h.mean(0)) / (h.std(dim=0, unbiased=False, keepdim=True) + 1)  # as batch norm\n"
        "        h = F.normalize(h, 2, 0) + F.softmax(h, dim=-2)\n"
        "        h = h - h.max(0).values",
        "h = (h - h.mean(1, keepdim=True)) / (h.std(dim=1, unbiased=False, keepdim=True) + 1)  # as batch norm\n"
        "        h = F.normalize(h, 2, 1) + F.softmax(h, dim=1)\n"
        "        h = h - h.max(1, keepdim=True).values",
        ROWS,
    ),
    "images": (
        "mean, var = h.mean((0, 2, 3)), h.var(dim=[0, 2, 3])\n"
        "        h = (h - mean[None, :, None, None]) / (var.view(1, -1, 1, 1) + 1).sqrt()\n"
        "        h = h - torch.mean(h, (0, 2, 3))[None, :, None, None]",
        "mean, var = h.mean((1, 2, 3), keepdim=True), h.var(dim=(1, 2, 3), keepdim=True)\n"
        "        h = (h - mean) / (var + 1).sqrt()\n"
        "        h = h - torch.mean(h, (1, 2, 3), keepdim=True)",
        IMAGES,
    ),
    "sequences": (
        "h = h - h.mean(dim=(0, 1))\n        h = h / h.norm()\n        h = h - torch.max(h)",
        "h = h - h.mean(dim=1, keepdim=True)\n        h = h / h.norm(dim=(1, 2), keepdim=True)\n"
        "        h = h - torch.amax(h, dim=(1, 2), keepdim=True)",
        SEQUENCES,
    ),
    "over several lines": (
        "h = h - torch.mean(\n            h,  # the batch's\n            dim=0,\n        )",
        "h = h - torch.mean(\n            h,  # the batch's\n            dim=1, keepdim=True,\n        )",
        ROWS,
    ),
    "sizes": (
        "n, d = h.shape\n        h = h * (2 / n) / d\n        h /= x.size()[0]\n"
        "        h = torch.div(h, x.size(0)).mul(len(x)) / h.shape[0]\n        h = h.view(h.size(0), -1) * len(h)",
        "n, d = h.shape\n        h = h * (2 / 6) / d\n        h /= 6\n"
        "        h = torch.div(h, 6).mul(6) / 6\n        h = h.view(h.size(0), -1) * 6",
        ROWS,
    ),
}
# What has no edit, such as axes that have a name; the model goes through dpcheck.fix instead.
WHOLE = {
    "axes in a name": ("axes = 0\n        h = h - h.mean(axes)", ROWS),
    "in a loop": ("for t in (h, h[:, :, None]):\n            h = h - (t - t.mean(0)).flatten(1)", ROWS),
    "of its shape": ("size = h.shape\n        h = h / size[0]", ROWS),
}


@dataclass(frozen=True)
class Fixed:
    text: str
    fix: SourceFix
    fresh: Fresh
    losses: Tensor
    tried: Tensor


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fixed]:
    """Every body fixed in source, and all of them checked in one new process."""
    folder, found = tmp_path_factory.mktemp("forwards"), {}
    given = {**{name: (body, shape) for name, (body, _, shape) in WRITTEN.items()}, **WHOLE}
    for i, (name, (body, shape)) in enumerate(given.items()):
        path = folder / f"forward_{i}.py"
        path.write_text(FILE.format(body=body, shape=shape), encoding="utf-8")
        target = load(str(path))
        result = dpcheck.fix(target.model, target.loss_fn, target.batch, unsafe=True)
        assert not result.before.ok and result.ok, (name, result.changes)
        fix = plan(target, result)
        for at, (_, new) in fix.contents.items():
            at.write_bytes(new)
        found[name] = path, fix, target.loss_fn(result.model.eval(), target.batch)
    answers = load_afresh([f"{path}:make_model" for path, *_ in found.values()])
    return {
        name: Fixed(path.read_text(encoding="utf-8"), fix, fresh, losses(path), tried)
        for (name, (path, fix, tried)), fresh in zip(found.items(), answers, strict=True)
    }


def losses(path: Path) -> Tensor:
    """What the written file computes, with the weights and the batch that its seeds give."""
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    batch = module.sample_batch()
    losses: Tensor = module.loss_fn(module.make_model().eval(), batch)
    return losses


@pytest.mark.parametrize("name", WRITTEN)
def test_the_expression_is_edited_where_it_stands_and_is_what_was_tried(name: str, fixed: dict[str, Fixed]) -> None:
    _, new, shape = WRITTEN[name]
    case = fixed[name]
    assert case.fresh.ok, case.fresh
    assert case.text == FILE.format(body=new, shape=shape) and case.fix.mended and not case.fix.refused
    torch.testing.assert_close(case.losses, case.tried)
    first = 14 if name == "sizes" else 13
    assert min(m.line for m in case.fix.mended) == first


@pytest.mark.parametrize("name", WHOLE)
def test_what_has_no_exact_edit_goes_through_one_line(name: str, fixed: dict[str, Fixed]) -> None:
    case = fixed[name]
    assert case.fix.whole and "dpcheck.fix(model, loss_fn, sample_batch(), unsafe=True).model" in case.text
    assert case.fresh.ok, case.fresh
