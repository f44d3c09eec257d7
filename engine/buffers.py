"""Buffers that the forward derives from weights and constants, as the plan leaves them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def store(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write ``values`` into the buffers of these names; one that the forward made anew in another size is replaced."""
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        held = owner.get_buffer(leaf)
        if (held.shape, held.dtype) == (value.shape, value.dtype):
            held.copy_(value)
        else:
            setattr(owner, leaf, value.detach().clone())
