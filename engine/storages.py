"""Stand-ins for the values of nodes that run a second time: they lie in memory of their own, views with their bases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree


class Second:
    """Gives the values of the nodes ``again`` a second storage each, unless another node made the first."""

    def __init__(self, again: Iterable[fx.Node]) -> None:
        nodes = dict.fromkeys(again)
        every = next(iter(nodes)).graph.nodes if nodes else ()
        self._others = {_key(t) for node in every if node not in nodes for t in _tensors(node.meta.get("val"))}
        self._made: dict[int, torch.UntypedStorage] = {}

    def of(self, val: Any) -> Any:
        return pytree.tree_map_only(Tensor, self._one, val)

    def _one(self, t: Tensor) -> Tensor:
        key = _key(t)
        if key in self._others:
            return t
        if key not in self._made:
            room = torch.empty(t.untyped_storage().nbytes(), dtype=torch.uint8, device="meta")
            self._made[key] = room.untyped_storage()
        empty = torch.empty(0, dtype=t.dtype, device="meta")
        return empty.set_(self._made[key], t.storage_offset(), t.size(), t.stride())


def _tensors(val: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(val) if isinstance(t, Tensor)]


def _key(t: Tensor) -> int:
    key: int = t.untyped_storage()._cdata
    return key
