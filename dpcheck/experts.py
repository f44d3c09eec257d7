"""Mixtures of experts that sort tokens by expert: rewritten into the same function without the sort.

``grouped_mm`` multiplies consecutive rows by the matrix of their group. Which row lies where after the sort depends on
all samples, so that neither the sample sets nor the samplers can follow it. :func:`grouped_mm` spells the product out,
:func:`unsorted` then removes the sort where the result does not depend on the order of the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def grouped_mm(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Any:
    """``aten._grouped_mm`` of rows [S, K] by matrices [E, K, N], or of [K, S] by [S, N] into [E, K, N].

    ``offs`` [E] are the ends of the groups among the S rows. Rows behind the last end belong to none and give zeros.
    """
    if offs is None or bias is not None or a.dim() != 2:
        return NotImplemented
    rows = a.shape[0] if b.dim() == 3 else a.shape[1]
    group = torch.searchsorted(offs, torch.arange(rows, dtype=offs.dtype, device=offs.device), right=True)
    mine = group.unsqueeze(0) == torch.arange(offs.shape[0], device=offs.device).unsqueeze(1)
    if b.dim() == 3:
        picked = torch.where(mine.unsqueeze(2), a.unsqueeze(0), 0.0)
        out = torch.bmm(picked, b).sum(0)
    else:
        picked = torch.where(mine.unsqueeze(1), a.unsqueeze(0), 0.0)
        out = torch.bmm(picked, b.unsqueeze(0).expand(offs.shape[0], -1, -1))
    return out if out_dtype is None else out.to(out_dtype)
