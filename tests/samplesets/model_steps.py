"""Steps as models of the zoos write them: attention with masks, recurrences, routing, rotary angles, bags of words."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from steps import Weights, line, planar, step
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@step
def masked_attention(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A mask taken from the data, as padding masks are."""
    q = z.transpose(a, -2)
    mask = (q.detach().sum(-1) > -1).unsqueeze(-2).expand(*q.shape[:-1], q.shape[-2])
    mask = mask | torch.eye(q.shape[-2], dtype=torch.bool)
    return F.scaled_dot_product_attention(q, q, q, attn_mask=mask).transpose(a, -2)


@step
def additive_mask(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)
    n = q.shape[-2]
    bias = torch.full((n, n), float("-inf"), dtype=z.dtype).triu(1) + w.square[:n, :n]
    return F.scaled_dot_product_attention(q, q, q.tanh(), attn_mask=bias, scale=0.5).transpose(a, -2)


@step
def many_heads(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """[N, H, T, D/H], the fused kernel's four axes."""
    q = z.transpose(a, -1)
    q = q if q.dim() == 3 else q[None]
    n = q.shape[-1] - q.shape[-1] % 2
    heads = q[..., :n].unflatten(-1, (2, -1)).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(heads, heads.flip(-1), heads, is_causal=True).transpose(1, 2).flatten(-2)
    out = torch.cat([mixed, q[..., n:]], -1)
    return (out if z.dim() == 3 else out[0]).transpose(a, -1)


@step
def grouped_heads(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Two query heads share a key head."""
    q = z.transpose(a, -1)
    q = q if q.dim() == 3 else q[None]
    queries, keys = torch.stack([q, q.tanh()], 1), q.unsqueeze(1)
    out = F.scaled_dot_product_attention(queries, keys, keys, enable_gqa=True).mean(1)
    return (out if z.dim() == 3 else out[0]).transpose(a, -1)


@step
def multihead(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """The functional behind ``nn.MultiheadAttention``: axis ``a`` is the features."""
    q = z.movedim(a, -1)
    e = q.shape[-1]
    big = torch.cat([w.square[:e, :e]] * 3)
    heads = 3 if e % 3 == 0 else 1
    out, _ = F.multi_head_attention_forward(
        q, q, q, e, heads, big, w.vector[:e].repeat(3), None, None, False, 0.0, w.square[:e, :e], w.vector[:e]
    )
    return out.movedim(-1, a)


@step
def rotary(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Pairs of features turned by an angle that grows along the axis."""
    n = z.shape[a]
    angle = line(torch.arange(n), n, a, z.dim()) * 0.3
    first, second = torch.cat([z, z], -1).chunk(2, -1)
    return first * angle.cos() + torch.cat([-second[..., 1:], second[..., :1]], -1) * angle.sin()


@step
def recurrent(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A GRU cell along the axis."""
    q = z.movedim(a, 0)
    d = q.shape[-1]
    state = torch.zeros_like(q[0])
    outs = []
    for x in q.unbind(0):
        gate = torch.sigmoid(F.linear(x, w.square[:d, :d]) + F.linear(state, w.square[:d, -d:]))
        state = (1 - gate) * state + gate * torch.tanh(x + state)
        outs.append(state)
    return torch.stack(outs).movedim(0, a)


def _layer(run: Any, gates: int, z: Tensor, a: int, w: Weights) -> Tensor:
    """A recurrent layer of torch, time-first or batch-first by the axis."""
    q = z.movedim(a, -1)
    q = q if q.dim() == 3 else q[None]
    d = q.shape[-1]
    weights = [torch.cat([w.square[:d, :d]] * gates), torch.cat([w.square[:d, -d:]] * gates)]
    start, zero = q[:1].tanh(), q.new_zeros(1, q.shape[1], d)
    out: Any = run(q, (start, zero) if run is torch.lstm else start, weights, False, 1, 0.0, False, False, False)[0]
    return (out if z.dim() == 3 else out[0]).movedim(-1, a)


@step
def lstm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """``torch.lstm``."""
    return _layer(torch.lstm, 4, z, a, w)


@step
def gru(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """``torch.gru``."""
    return _layer(torch.gru, 3, z, a, w)


@step
def rnn(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """``torch.rnn_tanh``."""
    return _layer(torch.rnn_tanh, 1, z, a, w)


@step
def routed(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Every token weighs the outputs of its two best experts."""
    q = z.movedim(a, -1)
    d = q.shape[-1]
    score, chosen = F.linear(q, w.square[:4, :d]).softmax(-1).topk(2, -1)
    hot = F.one_hot(chosen, 4).to(z.dtype)
    weight = (hot * score.unsqueeze(-1)).sum(-2)
    experts = torch.stack([q * (k + 1) for k in range(4)], -2).tanh()
    return (weight.unsqueeze(-1) * experts).sum(-2).movedim(-1, a)


@step
def capacity(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A token's place in the queue of its expert; what comes late is dropped."""
    q = z.movedim(a, -1)
    hot = F.one_hot((q.detach()[..., 0] > 0).long(), 2)
    place = (hot.flatten(0, -2).cumsum(0).reshape(hot.shape) * hot).sum(-1, keepdim=True)
    return (q * (place <= 3)).movedim(-1, a)


@step
def excited(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Squeeze and excite: the mean over the axis gates every place."""
    pooled = z.mean(a, keepdim=True)
    d = z.shape[-1]
    gate = F.linear(pooled, w.square[:d, :d]) if a != z.dim() - 1 else pooled
    return z * gate.sigmoid()


@step
def weighted(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Masked mean pooling."""
    mask = (z.detach() > 0).to(z.dtype)
    return z + (z * mask).sum(a, keepdim=True) / mask.sum(a, keepdim=True).clamp(min=1)


@step
def contracted(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.movedim(a, -1)
    d = q.shape[-1]
    left = torch.einsum("...i,ij->...j", q, w.square[:d, :d])
    return (torch.einsum("...i,...j,ij->...i", left, q, w.square[:d, :d].tanh()) / d).movedim(-1, a)


@step
def bilinear(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.movedim(a, -1).contiguous()
    d = q.shape[-1]
    return F.bilinear(q, q, w.kernel[:d, :d, :1].expand(d, d, d)).movedim(-1, a) / d


@step
def bag_of_words(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """``F.embedding_bag`` over the lines along the axis."""
    q = z.movedim(a, -1)
    words = (q.detach() * 2).long().clamp(0, 7).flatten(0, -2)
    bags = F.embedding_bag(words, w.table.weight, mode="mean")[:, :1]
    return z + bags.reshape(*q.shape[:-1], 1).movedim(-1, a)


@step
def weighted_bags(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Summed with weights that have a gradient; padding counts for nothing."""
    q = z.movedim(a, -1)
    words = (q.detach() * 2).long().clamp(0, 7).flatten(0, -2)
    weights = q.flatten(0, -2).tanh()
    bags = F.embedding_bag(words, w.table.weight, mode="sum", per_sample_weights=weights, padding_idx=1)[:, :1]
    return z + bags.reshape(*q.shape[:-1], 1).movedim(-1, a)


@step
def largest_in_bags(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """The largest word of flat bags that are cut in the middle of lines, by a table that may be frozen."""
    q = z.movedim(a, -1)
    words = (q.detach() * 2).long().clamp(0, 7).flatten()
    cuts = torch.arange(q.numel() // q.shape[-1]) * q.shape[-1]
    bags = F.embedding_bag(words, w.table.weight, cuts, mode="max")[:, :1]
    frozen = F.embedding_bag(words, w.table.weight.detach(), (cuts - 1).clamp(min=0), mode="mean")[:, 1:2]
    return z + (bags + frozen).reshape(*q.shape[:-1], 1).movedim(-1, a)


@step
def padded_lookup(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z + F.embedding((z.detach() * 2).long().clamp(0, 7), w.table.weight, padding_idx=0)[..., 0]


@step
def tied(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A table looked up, and used again as the head."""
    q = z.movedim(a, -1)
    rows = w.table.weight[:, : q.shape[-1]]
    return (F.linear(q, rows).softmax(-1) @ rows).movedim(-1, a)


@step
def quantised(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """The nearest code, with the gradient passed straight through."""
    q = z.movedim(a, -1)
    codes = w.table.weight[:, : q.shape[-1]]
    nearest = torch.cdist(q.reshape(-1, q.shape[-1]), codes).argmin(-1)
    code = F.embedding(nearest, codes).reshape(q.shape)
    return (q + (code - q).detach() + 0.1 * code).movedim(-1, a)


@step
def scan(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A state-space recurrence in its cumulative form."""
    decay = F.softplus(z).cumsum(a)
    return (z * (decay - decay.detach().amax(a, keepdim=True)).exp()).cumsum(a) / 2


@step
def relative(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A bias looked up by the distance of two places."""
    q = z.transpose(a, -2)
    n = q.shape[-2]
    distance = (torch.arange(n)[:, None] - torch.arange(n)[None]).clamp(-3, 3) + 3
    scores = q @ q.transpose(-1, -2) / 3 + w.table(distance)[..., 0]
    return (scores.softmax(-1) @ q).transpose(a, -2)


@step
def shifted_window(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Rolled, attended within halves, rolled back."""
    q = z.roll(-1, a).transpose(a, -2)
    half = q.shape[-2] // 2
    parts = [p.softmax(-2) * p for p in (q[..., :half, :], q[..., half:, :])]
    return torch.cat(parts, -2).transpose(a, -2).roll(1, a)


@step
def spectral(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A Fourier mixer: complex weights between two transforms."""
    n = z.shape[a]
    freq = torch.fft.rfft(z, dim=a, norm="ortho")
    weight = torch.view_as_complex(torch.stack([w.vector[:n], w.mean[:n]], -1)[: freq.shape[a]].contiguous())
    return torch.fft.irfft(freq * line(weight, freq.shape[a], a, z.dim()), n=n, dim=a, norm="ortho")


@step
def recomputed(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A checkpointed block."""
    n = z.shape[a]

    def block(q: Tensor) -> Tensor:
        return F.layer_norm(q * line(w.vector, n, a, q.dim()), q.shape[-1:]).tanh()

    return checkpoint(block, z, use_reentrant=False)  # type: ignore[no-any-return]


@step
def stochastic_depth(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A whole sample's branch is kept or dropped."""
    keep = z.new_empty([n if k == 0 else 1 for k, n in enumerate(z.shape)]).bernoulli_(0.8)
    return z + z.tanh() * keep.div_(0.8)


@planar
def pairs(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Distances between all rows of the matrix, or its columns."""
    q = z if a else z.t()
    out = torch.cdist(q, q.detach()).exp().neg() @ q
    return out if a else out.t()
