"""Compact models in the style of those that people use; each ``make`` returns ``(model, loss_fn, batch)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES, CLASSES = 4, 3
Case = tuple[nn.Module, Any, Any]


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1).mean(1)


def images(side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, 3, side, side), torch.randint(0, CLASSES, (SAMPLES,))


class Residual(nn.Module):
    """ResNet's block, with stochastic depth."""

    def __init__(self, i: int, o: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, groups=2)
        self.na, self.nb, self.skip = norm(o), norm(o), nn.Conv2d(i, o, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.na(self.a(x)), inplace=True)
        h = self.nb(self.b(h))
        h = h * (torch.rand(len(h), 1, 1, 1) < 0.8) / 0.8
        return F.relu(h + self.skip(x), inplace=True)


def resnet(norm: Callable[[int], nn.Module]) -> Case:
    layers = [nn.Conv2d(3, 8, 3, 1, 1), norm(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    layers += [Residual(8, 12, norm), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, CLASSES)]
    return nn.Sequential(*layers), classify, images(16)


class Standardised(nn.Conv2d):
    """NFNet's convolution: every filter of the weight is normalised, by a batch norm of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        gain = self.bias.new_full(self.bias.shape, 0.7)
        weight = F.batch_norm(self.weight.view(1, len(self.weight), -1), None, None, gain, training=True)
        return F.conv2d(x, weight.view_as(self.weight), self.bias, self.stride, self.padding)


def nfnet() -> nn.Module:
    layers = [Standardised(3, 8, 3, 2), nn.SiLU(), Standardised(8, 4, 3), nn.Flatten(), nn.Linear(100, CLASSES)]
    return nn.Sequential(*layers)


class Windows(nn.Module):
    """Swin's block: attention in shifted windows, with a table of relative positions and a mask."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.1)
        grid = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        apart = (grid[:, :, None] - grid[:, None, :] + window - 1).permute(1, 2, 0)
        self.register_buffer("places", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        regions = (torch.arange(side) >= side - window).long() + (torch.arange(side) >= side - shift).long()
        areas = self.parted((regions[:, None] * 3 + regions[None]).view(1, side, side, 1).float()).squeeze(-1)
        self.register_buffer("mask", (areas.unsqueeze(1) != areas.unsqueeze(2)) * -100.0)

    def parted(self, x: Tensor) -> Tensor:
        b, h, w, d = x.shape
        n = self.window
        return x.view(b, h // n, n, w // n, n, d).transpose(2, 3).reshape(-1, n * n, d)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, d = x.shape
        rows = self.parted(torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)))
        # As in Swin v2: the keys have no bias, which is written over with zeros.
        bias = self.qkv.bias.clone()
        bias[d : 2 * d].zero_()
        projected = F.linear(rows, self.qkv.weight, bias)
        q, k, v = projected.view(len(rows), -1, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places.flatten()].view(*self.places.shape, -1).permute(2, 0, 1)
        scores = q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5 + bias
        if self.shift:
            scores = (scores.view(b, -1, *scores.shape[1:]) + self.mask[None, :, None]).view(scores.shape)
        rows = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows.shape))
        n = self.window
        rows = rows.view(b, h // n, w // n, n, n, d).transpose(2, 3).reshape(b, h, w, d)
        return x + torch.roll(rows, (self.shift, self.shift), (1, 2))


class Swin(nn.Module):
    """Patches, a plain and a shifted block, merged patches, and the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.blocks = nn.Sequential(Windows(8, 2, 8, 4, 0), Windows(8, 2, 8, 4, 2))
        self.merge, self.norm, self.head = nn.Linear(32, 16, bias=False), nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        h = self.merge(torch.cat([h[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1))
        return self.head(self.norm(h).mean((1, 2)))


class Seq2Seq(nn.Module):
    """T5's parts: RMS norm, bucketed position bias shared by the batch, cross attention, tied embeddings."""

    def __init__(self, vocabulary: int = 30, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embedding, self.heads = nn.Embedding(vocabulary, width), heads
        self.bias = nn.Embedding(6, heads)
        self.layers = nn.ModuleDict({k: nn.Linear(width, 4 * width, bias=False) for k in ("encode", "decode", "cross")})
        self.scale, self.dropout = nn.Parameter(torch.ones(width)), nn.Dropout(0.1)

    def norm(self, x: Tensor) -> Tensor:
        return self.scale * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    def attend(self, name: str, x: Tensor, source: Tensor, causal: bool) -> Tensor:
        q, k, v, o = self.layers[name].weight.chunk(4)
        apart = torch.arange(x.shape[1])[:, None] - torch.arange(source.shape[1])[None]
        bias = self.bias(apart.clamp(-2, 3) + 2).permute(2, 0, 1)[None]
        if causal:
            bias = torch.where(apart < 0, torch.finfo(bias.dtype).min, bias)
        pairs = ((x, q), (source, k), (source, v))
        q, k, v = ((t @ w.t()).unflatten(-1, (self.heads, -1)).transpose(1, 2) for t, w in pairs)
        mixed = self.dropout((q @ k.transpose(-1, -2) + bias).softmax(-1)) @ v
        return x + mixed.transpose(1, 2).flatten(2) @ o

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        source, target = (self.embedding(ids) for ids in batch)
        memory = self.attend("encode", self.norm(source), self.norm(source), False)
        h = self.attend("decode", self.norm(target), self.norm(target), True)
        h = self.attend("cross", self.norm(h), memory, False)
        return self.norm(h) @ self.embedding.weight.t()


def translate(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    source, target = batch
    logits = model((source, target[:, :-1]))
    losses = F.cross_entropy(logits.transpose(1, 2), target[:, 1:], reduction="none", ignore_index=0)
    return losses.sum(1) / (target[:, 1:] != 0).sum(1).clamp(min=1)


class Experts(nn.Module):
    """Mixtral's block: every token goes through the two experts that the router prefers, sorted by expert."""

    def __init__(self, width: int = 8, experts: int = 4, shared_load: bool = False) -> None:
        super().__init__()
        self.embedding, self.router = nn.Embedding(30, width), nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, 2 * width) * 0.3)
        self.down = nn.Parameter(torch.randn(experts, 2 * width, width) * 0.3)
        self.head, self.experts, self.shared_load = nn.Linear(width, 30), experts, shared_load

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).flatten(0, 1)
        scores = self.router(x).softmax(-1)
        if self.shared_load:
            scores = scores / scores.mean(0)
        weights, chosen = scores.topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        numbers, order = chosen.flatten().sort()
        ends = torch.histc(numbers.float(), self.experts, 0, self.experts - 1).cumsum(0).int()
        rows = F.grouped_mm(F.silu(F.grouped_mm(x[order // 2], self.up, offs=ends)), self.down, offs=ends)
        rows = rows * weights.flatten()[order].unsqueeze(-1)
        x = x.index_add(0, order // 2, rows)
        return self.head(x).view(*ids.shape, -1)


class Scan(nn.Module):
    """Mamba's block: a causal depthwise convolution, then a state that every step decays and adds to."""

    def __init__(self, width: int = 8, state: int = 4) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(30, width), nn.Conv1d(width, width, 3, groups=width, padding=2)
        self.steps, self.inputs = nn.Linear(width, width), nn.Linear(width, 2 * state)
        self.decay, self.direct = nn.Parameter(torch.randn(width, state)), nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 30)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        step, (b, c) = F.softplus(self.steps(x)), self.inputs(x).chunk(2, -1)
        decay = torch.exp(step.unsqueeze(-1) * -self.decay.exp())
        added = (step * x).unsqueeze(-1) * b.unsqueeze(2)
        state, outputs = x.new_zeros(len(x), *self.decay.shape), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + added[:, t]
            outputs.append((state * c[:, t].unsqueeze(1)).sum(-1))
        return self.head(torch.stack(outputs, 1) + self.direct * x)


class Sliding(nn.Module):
    """Longformer's windows: every step beside the two behind it, by strides over a transposed tensor."""

    def __init__(self, width: int = 8, crossed: bool = False) -> None:
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(30, width), nn.Linear(3 * width, width), nn.Linear(width, 30)
        self.crossed = crossed

    def forward(self, ids: Tensor) -> Tensor:
        x = F.pad(self.embedding(ids), (0, 0, 2, 0))
        b, t, d = x.shape
        channels = x.transpose(1, 2)
        windows = channels.as_strided((b, t - 2, 3, d), (d if self.crossed else t * d, d, d, 1))
        return self.head(F.gelu(self.mix(windows.flatten(2))))


def tokens(length: int = 7) -> Tensor:
    return torch.randint(1, 30, (SAMPLES, length))


CLEAN: dict[str, Callable[[], Case]] = {
    "ResNet, group norm": lambda: resnet(lambda n: nn.GroupNorm(2, n)),
    "NFNet": lambda: (nfnet(), classify, images(16)),
    "Swin": lambda: (Swin(), classify, images(16)),
    "T5": lambda: (Seq2Seq(), translate, (tokens(5), tokens(6))),
    "Mixtral": lambda: (Experts(), next_token, tokens()),
    "Longformer": lambda: (Sliding(), next_token, tokens()),
    "Mamba": lambda: (Scan(), next_token, tokens()),
}
MIXING: dict[str, Callable[[], Case]] = {
    "ResNet, batch norm": lambda: resnet(nn.BatchNorm2d),
    "Longformer, strides across samples": lambda: (Sliding(crossed=True), next_token, tokens()),
    "Mixtral, load shared by the batch": lambda: (Experts(shared_load=True), next_token, tokens()),
}
