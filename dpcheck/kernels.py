"""Matrix products of float32 on the CPU by the faster of two libraries.

torch multiplies matrices with MKL, which is half as fast as oneDNN on processors that are not Intel's. Both round as
float32 does, in another order of summation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

# Multiplications below which the longer call costs more than it saves.
_WORTH_IT = 1 << 16
# By how much oneDNN must be faster to be taken.
_MARGIN = 1.2


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of [M, K] and [K, N], outside autograd; other shapes as ``torch.matmul`` takes them."""
    if fits(a, b) and onednn_is_faster():
        (m, k), n = a.shape, b.shape[1]
        # oneDNN copies a left factor that is transposed. That of the transposed product may be the smaller copy.
        if a.stride(0) == 1 and n * (k + m) < m * k:
            return linear(b.t(), a).t().contiguous()
        return linear(a, b.t())
    return torch.matmul(a, b)


def addmm(added: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``added + a @ b``; ``added`` is [N] or [M, N]."""
    if fits(a, b) and added.dtype is torch.float32 and onednn_is_faster():
        if added.dim() == 1 and added.shape[0] == b.shape[1]:
            return linear(a, b.t(), added)
        return linear(a, b.t()).add_(added)
    return torch.addmm(added, a, b)


def fits(a: Tensor, b: Tensor) -> bool:
    """Whether the product is one of float32 matrices on the CPU, and large."""
    if not (a.dim() == b.dim() == 2 and a.dtype is b.dtype is torch.float32 and a.device.type == "cpu"):
        return False
    return type(a) in _PLAIN and type(b) in _PLAIN and a.shape[0] * a.shape[1] * b.shape[1] >= _WORTH_IT


_PLAIN = (Tensor, torch.nn.Parameter)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.t() + bias`` by oneDNN."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def onednn_is_faster() -> bool:
    """Whether oneDNN is there, allowed, and faster on this processor. Compiled code chooses its kernels itself."""
    return not torch.compiler.is_compiling() and bool(torch._C._get_mkldnn_enabled()) and _faster()


@lru_cache(maxsize=1)
def _faster() -> bool:
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    a = torch.ones(128, 512)
    with torch.no_grad():
        return _MARGIN * _best(lambda: linear(a, a)) < _best(lambda: torch.mm(a, a.t()))


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
