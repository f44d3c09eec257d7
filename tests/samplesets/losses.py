"""Losses [B] of random programs, from an output [B, T, D] and labels [B]."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# No length equals a batch size that the checks use (1, 2, 4, 5, 7): a program may not branch on shapes by accident.
T, D, CLASSES = 3, 6, 6


def _pooled(h: Tensor) -> Tensor:
    return h.mean(1)


def _hot(h: Tensor, y: Tensor) -> Tensor:
    return F.one_hot(y, CLASSES).to(h.dtype)


def _tokens(y: Tensor) -> Tensor:
    return y[:, None].expand(-1, T)


def _counted(h: Tensor, y: Tensor) -> Tensor:
    weights = 1 / (1 + F.one_hot(y, CLASSES).sum(0).to(h.dtype))
    return F.cross_entropy(_pooled(h), y, weights, reduction="none")


Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda h, y: F.cross_entropy(_pooled(h), y, reduction="none"),
    "token_cross_entropy": lambda h, y: F.cross_entropy(h.mT, _tokens(y), reduction="none").sum(1),
    "ignore_index": lambda h, y: F.cross_entropy(h.mT, _tokens(y), reduction="none", ignore_index=1).mean(1),
    "smoothed": lambda h, y: F.cross_entropy(_pooled(h), y, reduction="none", label_smoothing=0.1),
    "class_weights": lambda h, y: F.cross_entropy(_pooled(h), y, torch.arange(1.0, 7, dtype=h.dtype), reduction="none"),
    "soft_targets": lambda h, y: F.cross_entropy(_pooled(h), _hot(h, y), reduction="none"),
    "mse": lambda h, y: F.mse_loss(_pooled(h), _hot(h, y), reduction="none").mean(1),
    "bce": lambda h, y: F.binary_cross_entropy_with_logits(
        h.flatten(1), (h.detach() > 0).to(h.dtype).flatten(1), reduction="none"
    ).sum(1),
    "smooth_l1": lambda h, y: F.smooth_l1_loss(h.sum((1, 2)), y.to(h.dtype), reduction="none"),
    "huber": lambda h, y: F.huber_loss(h.sum((1, 2)), y.to(h.dtype), reduction="none"),
    "soft_margin": lambda h, y: F.soft_margin_loss(_pooled(h), 2 * _hot(h, y) - 1, reduction="none").sum(1),
    "bce_of_chances": lambda h, y: F.binary_cross_entropy(_pooled(h).sigmoid(), _hot(h, y), reduction="none").mean(1),
    "kl": lambda h, y: F.kl_div(_pooled(h).log_softmax(-1), _hot(h, y), reduction="none").sum(1),
    "poisson": lambda h, y: F.poisson_nll_loss(h.mean((1, 2)).tanh(), y.to(h.dtype), reduction="none"),
    # A margin of its own, so that equal values are not at the kink, where rounding decides.
    "margin": lambda h, y: F.margin_ranking_loss(
        h[:, 0, 0], h[:, 1, 0], y.sign().to(h.dtype), margin=0.3, reduction="none"),
    "triplet": lambda h, y: F.triplet_margin_loss(h[:, 0], h[:, 1], h[:, 2], reduction="none"),
    "cosine": lambda h, y: 1 - F.cosine_similarity(h[:, 0], h[:, -1] + 1, dim=-1),
    "gathered": lambda h, y: -h[torch.arange(h.shape[0]), 1].log_softmax(-1).gather(1, y[:, None])[:, 0],
    "square": lambda h, y: h.square().flatten(1).sum(1),
    "images": lambda h, y: F.nll_loss(h.transpose(1, 2)[..., None].log_softmax(1), _tokens(y)[..., None],
                                      reduction="none").sum((1, 2)),
    "batch_normalised": lambda h, y: F.cross_entropy(_pooled(h), y, reduction="none") / h.shape[0],
    "contrastive": lambda h, y: F.cross_entropy(_pooled(h) @ _pooled(h).t(), torch.arange(len(y)), reduction="none"),
    "masked_mean": lambda h, y: (h.square().mean((1, 2)) * (y > 0)) / (y > 0).sum().clamp(min=1),
    "balanced": _counted,
    "shifted_labels": lambda h, y: F.cross_entropy(_pooled(h), y.roll(1), reduction="none"),
    "copied_mean": lambda h, y: F.cross_entropy(_pooled(h), y).expand(len(y)),
    "all_pairs": lambda h, y: (torch.cdist(_pooled(h), _pooled(h)) * (y[:, None] != y)).sum(1) / 9,
}  # fmt: skip
MIXING = frozenset(
    {"batch_normalised", "contrastive", "masked_mean", "balanced", "shifted_labels", "copied_mean", "all_pairs"}
)
# Losses that no transfer rule follows.
UNPROVEN: dict[str, Loss] = {
    "multi_margin": lambda h, y: F.multi_margin_loss(_pooled(h), y, reduction="none"),
    "multilabel_margin": lambda h, y: F.multilabel_margin_loss(
        _pooled(h), F.pad(y[:, None], (0, CLASSES - 1), value=-1), reduction="none"),
}  # fmt: skip
