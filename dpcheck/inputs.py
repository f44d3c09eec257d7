"""Batches: any pytree whose tensors have samples on axis 0."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dpcheck.errors import DpcheckError, a_type


@dataclass(frozen=True, eq=False, repr=False)
class Public:
    """A tensor of a batch that has no sample axis and is the same for everybody: no pass takes it for data."""

    value: Tensor

    def __repr__(self) -> str:
        """Tells values apart, for caches and to compare batches."""
        plain = self.value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = hashlib.sha256(plain.tobytes()).hexdigest()
        return f"Public({list(self.value.shape)}, {self.value.dtype}, {digest})"

    def fresh(self, device: torch.device | None) -> Tensor:
        """A copy, also where a graph is captured and only tensors that belong to it may be used."""
        copy: Tensor = torch.ops.aten.lift_fresh_copy.default(self.value)
        return copy if device is None else copy.to(device)


def tensors(batch: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a batch with their paths in it, such as ``[0]`` or ``['ids']``.

    Raises:
        DpcheckError: if there is no tensor, or one has no axis 0.
    """
    leaves, _ = pytree.tree_flatten_with_path(batch)
    found = [(pytree.keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]
    if not found:
        raise DpcheckError(
            f"the batch holds no tensor (it is {a_type(batch)})",
            next="pass a tensor, or a tuple, list or dict of tensors with samples on axis 0",
        )
    for path, leaf in found:
        if leaf.dim() == 0:
            raise DpcheckError(
                "a tensor of the batch has no sample axis (its shape is [])",
                where=f"batch{path}",
                next="give every tensor of the batch samples on axis 0; keep constants in the model or in loss_fn, or "
                "declare them as public: None in dpcheck.Unit(axes=...)",
            )
    return found


def batch_size(batch: Any) -> int:
    """The number of samples: the common length of axis 0 of every tensor in ``batch``.

    Raises:
        DpcheckError: if there is no tensor, or the lengths differ.
    """
    found = tensors(batch)
    sizes = {path: leaf.shape[0] for path, leaf in found}
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"batch{path}: {tuple(leaf.shape)}" for path, leaf in found)
        mend = "give every tensor of the batch samples on axis 0, or declare the axes: unit=dpcheck.Unit(axes=...)"
        if any(_offsets(leaf) for _, leaf in found):
            mend = "flat indices with offsets have no sample axis: give an EmbeddingBag indices [B, L] with padding_idx"
        raise DpcheckError(
            f"the tensors of the batch disagree about the number of samples on axis 0: {listing}", next=mend
        )
    return found[0][1].shape[0]


def _offsets(t: Tensor) -> bool:
    """Whether ``t`` looks like the offsets of an embedding bag: it starts at 0 and never decreases."""
    whole = t.dim() == 1 and t.dtype in (torch.int32, torch.int64) and len(t) > 1
    return whole and int(t[0]) == 0 and bool((t.diff() >= 0).all()) and int(t[-1]) > 0


def take(batch: Any, indices: Sequence[int] | Tensor) -> Any:
    """The samples ``indices`` of ``batch``, in this order; an index may repeat. Tensors are copied."""
    index = torch.as_tensor(indices, dtype=torch.long)
    return pytree.tree_map_only(Tensor, lambda t: t.index_select(0, index.to(t.device)), batch)


def as_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` in ``dtype``, or in the complex dtype of that precision; as it is, when it holds no such numbers."""
    if t.is_complex():
        return t.to(dtype.to_complex())
    return t.to(dtype) if t.is_floating_point() else t


def to_dtype(batch: Any, dtype: torch.dtype) -> Any:
    """``batch`` with its floating-point tensors in ``dtype``; the others as they are."""

    def converted(leaf: Any) -> Any:
        if isinstance(leaf, Public):
            return Public(converted(leaf.value))
        return as_dtype(leaf, dtype) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(converted, batch)
