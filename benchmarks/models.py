"""The models of the step benchmark: small, real, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One row of the table: ``make() -> (model, loss_fn, batch)``."""

    name: str
    make: Callable[[], tuple[nn.Module, Any, Any]]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def mlp() -> tuple[nn.Module, Any, Any]:
    model = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    return model, cross_entropy, (torch.randn(256, 784), torch.randint(0, 10, (256,)))


def cnn() -> tuple[nn.Module, Any, Any]:
    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(8, o), nn.ReLU()]

    layers = [*block(3, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64), *block(64, 64), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, *block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return model, cross_entropy, (torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,)))


class Residual(nn.Module):
    """ResNet's basic block with group norm."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.na, self.nb = nn.GroupNorm(32, o), nn.GroupNorm(32, o)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or i != o:
            self.skip = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.GroupNorm(32, o))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.na(self.a(x)))
        return F.relu(self.nb(self.b(h)) + self.skip(x))


def resnet18() -> tuple[nn.Module, Any, Any]:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.GroupNorm(32, 64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    width = 64
    for stage, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Residual(width, stage, stride), Residual(stage, stage, 1)]
        width = stage
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return model, cross_entropy, (torch.randn(32, 3, 64, 64), torch.randint(0, 10, (32,)))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.heads, self.causal = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            heads,
            causal,
        )

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(h.transpose(1, 2).reshape(b, t, d))


class Transformer(nn.Module):
    """Pre-norm transformer; ``classes`` for a classifier on the first token, else a tied language-model head."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, length: int, classes: int | None) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            attention = Attention(width, heads, classes is None)
            self.layers.append(nn.ModuleList([nn.LayerNorm(width), attention, nn.LayerNorm(width), feed]))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes) if classes else None

    def forward(self, ids: Tensor) -> Tensor:
        h = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
        for norm_a, attention, norm_b, feed in self.layers:  # type: ignore[misc]
            h = h + attention(norm_a(h))
            h = h + feed(norm_b(h))
        h = self.norm(h)
        return self.head(h[:, 0]) if self.head is not None else h @ self.token.weight.t()


def language_loss(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none").view(len(batch), -1).mean(1)


def gpt() -> tuple[nn.Module, Any, Any]:
    return Transformer(8000, 256, 4, 4, 64, None), language_loss, torch.randint(0, 8000, (32, 65))


def bert() -> tuple[nn.Module, Any, Any]:
    model = Transformer(30522, 512, 4, 8, 128, 2)
    return model, cross_entropy, (torch.randint(0, 30522, (16, 128)), torch.randint(0, 2, (16,)))


class Recurrent(nn.Module):
    """Embedding, LSTM, linear on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(5000, 64), nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(ids))[0][:, -1])


def lstm() -> tuple[nn.Module, Any, Any]:
    return Recurrent(), cross_entropy, (torch.randint(0, 5000, (64, 32)), torch.randint(0, 2, (64,)))


class Bag(nn.Module):
    """The mean of 20 embeddings out of 200,000, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(200_000, 64), nn.Linear(64, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).mean(1))


def bag() -> tuple[nn.Module, Any, Any]:
    return Bag(), cross_entropy, (torch.randint(0, 200_000, (256, 20)), torch.randint(0, 2, (256,)))


ROWS = (
    Row("MLP 784-1024-1024-10, B 256", mlp),
    Row("CNN 32x32, B 128", cnn),
    Row("ResNet-18 (GroupNorm) 64x64, B 32", resnet18),
    Row("GPT d 256, 4 layers, T 64, V 8000 tied, B 32", gpt),
    Row("BERT-small T 128, B 16", bert),
    Row("LSTM classifier T 32, B 64", lstm),
    Row("wide embedding V 200,000 d 64, bags of 20, B 256", bag),
)
