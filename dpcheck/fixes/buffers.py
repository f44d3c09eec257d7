"""Buffers that a forward writes from data: the writes are dropped."""

from __future__ import annotations

from typing import Any

from torch import nn

from dpcheck.fixes.mixing import mixed


class _KeptBuffers:
    """Mixed into a module: its own forward, on copies of some buffers that are thrown away afterwards."""

    dpcheck_kept: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        held: dict[str, Any] = self._buffers  # type: ignore[attr-defined]
        kept = {name: held[name] for name in self.dpcheck_kept}
        held.update({name: None if value is None else value.clone() for name, value in kept.items()})
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            held.update(kept)


def keep_buffers(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The module itself, whose forward leaves the buffers ``names`` as they are."""
    module.dpcheck_kept = names  # type: ignore[assignment]
    return mixed(module, _KeptBuffers, "Kept")
