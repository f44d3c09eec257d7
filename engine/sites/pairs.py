"""Norms of sums of outer products, [B, *, m, L] times [B, *, L, n]: ghost norm or the products themselves.

Under book-keeping the products replace the last contraction, so ghost Grams are extra work: the cheaper of both is
chosen by floating-point operations and bytes, not by the rule ``2 L^2 <= m n``, which is about space.
"""

from __future__ import annotations

import torch
from dpcheck.engine.sites.base import FLOPS_PER_BYTE, chosen, wide
from torch import Tensor

# Products of more bytes than this are not kept between the norm and the sum.
KEEP_BYTES = 256 << 20
# Positions in a block of a Gram.
_BLOCK = 32


def products_are_cheaper(batch: int, lead: int, m: int, n: int, length: int) -> bool:
    """Whether to keep ``lead * m * n`` products a sample rather than to compare Grams of ``length`` positions."""
    ghost = gram_flops(2.0 * lead * length, length, m + n)
    kept = 4.0 * lead * m * n * FLOPS_PER_BYTE
    return chosen(length > 1 and kept < ghost and 4 * batch * lead * m * n <= KEEP_BYTES)


def gram_flops(pairs: float, length: int, width: int) -> float:
    """Of Grams with ``length`` positions and vectors of ``width`` entries, for 2 * samples * length = ``pairs``."""
    return pairs * width * (length + min(length, _BLOCK)) / 2


def ghost_square_norms(left: Tensor, right: Tensor) -> Tensor:
    """``|left @ right|^2`` of every sample, [B], without the product (Goodfellow 2015; Li et al. 2022, eq. 4)."""
    left, right = wide(left), wide(right)
    batch, length = left.shape[0], left.shape[-1]
    if length == 1:
        norms: Tensor = (_squares(left, -2) * _squares(right, -1)).reshape(batch, -1).sum(1)
        return norms
    # Grams are symmetric: of each pair of different blocks of positions only one is computed, and counts twice.
    total = left.new_zeros(batch)
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        grams = torch.matmul(left[..., start:end].transpose(-1, -2), left[..., start:])
        grams *= torch.matmul(right[..., start:end, :], right[..., start:, :].transpose(-1, -2))
        total += grams[..., : end - start].flatten(1).sum(1)
        if end < length:
            total += grams[..., end - start :].flatten(1).sum(1).mul_(2)
    # The norm of a sum is not negative but for rounding.
    return total.clamp_min(0)


def _squares(t: Tensor, axis: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(t, dim=axis)
    return norms.square()
