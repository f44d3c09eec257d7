"""A text classifier with ``nn.Embedding``: is a line of this project's sources prose (docstrings) or code?

dpcheck examples/text_embedding.py            # no findings, exit 0
dpcheck examples/text_embedding.py --train    # verify, train privately
"""

import ast
import re
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

VOCABULARY, LENGTH = 2048, 24
training = {"epsilon": 8.0, "delta": 1e-5, "epochs": 12, "batch_size": 512, "max_grad_norm": 1.0}


class TextClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 32, padding_idx=0)
        self.positions = nn.Embedding(LENGTH, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        # [1, T] position ids, shared by all samples.
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden = self.tokens(ids) + self.positions(places)
        real = (ids != 0).unsqueeze(-1)
        return self.head(self.norm((hidden * real).sum(1) / real.sum(1).clamp_min(1)))


def make_model() -> nn.Module:
    return TextClassifier()


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, labels = batch
    return F.cross_entropy(model(ids), labels, reduction="none")


def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def encode(line: str) -> list[int]:
    """Token ids by hashing, so that the vocabulary is public; 0 is padding."""
    words = re.findall(r"\w+|[^\w\s]", line)[:LENGTH]
    ids = [1 + zlib.crc32(word.lower().encode()) % (VOCABULARY - 1) for word in words]
    return ids + [0] * (LENGTH - len(ids))


def labelled_lines(source: str) -> list[tuple[str, int]]:
    """Each line that has letters, with 1 for lines inside docstrings and 0 for code."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            docstring = node.body[0]
            prose |= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    lines = source.splitlines()
    return [(line, int(i in prose)) for i, line in enumerate(lines, 1) if re.search("[a-z]", line)]


def split() -> tuple[TensorDataset, TensorDataset]:
    root = Path(__file__).resolve().parents[1]
    files = sorted(path for folder in ("dpcheck", "engine", "rules") for path in (root / folder).rglob("*.py"))
    lines = [pair for path in files for pair in labelled_lines(path.read_text(encoding="utf-8"))]
    ids = torch.tensor([encode(line) for line, _ in lines])
    labels = torch.tensor([label for _, label in lines])
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))
    cut = len(lines) // 5
    test, train = order[:cut], order[cut:]
    return TensorDataset(ids[train], labels[train]), TensorDataset(ids[test], labels[test])


def sample_batch() -> tuple[Tensor, Tensor]:
    ids, labels = split()[0][:8]
    return ids, labels


def train_dataset() -> TensorDataset:
    return split()[0]


def evaluate(model: nn.Module) -> dict[str, float]:
    ids, labels = split()[1].tensors
    accuracy = (model(ids).argmax(1) == labels).float().mean().item()
    prose = labels.float().mean().item()
    return {"test accuracy": accuracy, "share of the larger class": max(prose, 1 - prose)}
