"""Per-sample gradients without the graph: ``vmap(grad)`` of the whole model, or one sample at a time.

Both evaluate the loss of a sample on that sample alone, so a gradient depends on one sample by construction.
Buffers are read, never written, and what the forward leaves on the modules' Python attributes is taken away again:
neither may carry anything from one sample or step to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from dpcheck.engine.gradients import norms_of
from dpcheck.engine.kinds import Grouping
from dpcheck.engine.precision import without_autocast, without_cache
from dpcheck.engine.sites.base import weighted_of, wide
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.capture import LossFn, check_losses
from dpcheck.sandbox import kept_attributes, swapped, tensors_of

Gradients = tuple[Tensor, dict[str, Tensor]]
# Losses [B], norms by group [B, G], weighted sums of gradients by name.
Sums = tuple[Tensor, Tensor, dict[str, Tensor]]
# From norms [b, G] and weights [b], what each gradient is multiplied with, [b] by name.
Factors = Callable[[Tensor, Tensor], dict[str, Tensor]]


def _copies(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    parameters, buffers = tensors_of(model)
    trainable = {n: p.detach() for n, p in parameters.items() if p.requires_grad}
    frozen = {n: p.detach() for n, p in parameters.items() if not p.requires_grad}
    return trainable, frozen, {n: b.detach().clone() for n, b in buffers.items()}


def vmap_gradients(model: nn.Module, loss_fn: LossFn, batch: Any) -> Gradients:
    """Losses [B] and gradients [B, *shape] by ``vmap(grad)``.

    Raises:
        Exception: whatever vmap cannot do with this model (in-place writes to buffers, ``.item()``, ...).
    """
    trainable, frozen, buffers = _copies(model)
    leaves, spec = pytree.tree_flatten(batch)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def loss_of(parameters: dict[str, Tensor], *rows: Tensor) -> tuple[Tensor, Tensor]:
        filled = list(leaves)
        for i, row in zip(where, rows, strict=True):
            filled[i] = row.unsqueeze(0)
        with kept_attributes(model), swapped(model, {**parameters, **frozen, **buffers}):
            losses = loss_fn(model, pytree.tree_unflatten(filled, spec))
        check_losses(losses, 1)
        return losses[0], losses[0].detach()

    each = torch.func.grad(loss_of, has_aux=True)
    run = torch.vmap(each, in_dims=(None, *[0] * len(where)), randomness="different")
    with _without_hints():
        grads, losses = run(trainable, *[leaves[i] for i in where])
    return losses, dict(grads)


@contextmanager
def _without_hints() -> Iterator[None]:
    """That an op has no batching rule of its own costs time and nothing else.

    Python's filter does not see what is said in a thread of the backward.
    """
    said: Callable[[bool], None] = vars(torch._C._functorch)["_set_vmap_fallback_warning_enabled"]
    said(False)
    try:
        yield
    finally:
        said(True)


def single_gradient(model: nn.Module, loss_fn: LossFn, batch: Any, index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss [] and gradients of sample ``index``, computed on that sample alone."""
    losses, (grads,) = _gradients(model, loss_fn, inputs.take(batch, [index]))
    return losses[0], grads


def gradients_in_batch(model: nn.Module, loss_fn: LossFn, batch: Any) -> Gradients:
    """Losses [B] and gradients [B, *shape] of each loss in the batch: those of a sample only if none mix."""
    losses, each = _gradients(model, loss_fn, batch)
    return losses, {name: torch.stack([grads[name] for grads in each]) for name in each[0]}


def _gradients(model: nn.Module, loss_fn: LossFn, batch: Any) -> tuple[Tensor, list[dict[str, Tensor]]]:
    trainable, frozen, buffers = _copies(model)
    leaves = {name: p.clone().requires_grad_() for name, p in trainable.items()}
    size, each = inputs.batch_size(batch), []
    with torch.enable_grad(), kept_attributes(model), swapped(model, {**leaves, **frozen, **buffers}):
        losses = loss_fn(model, batch)
        check_losses(losses, size)
        for i in range(size):
            found: Any = [None] * len(leaves)
            if losses.requires_grad:
                more = i + 1 < size
                found = torch.autograd.grad(losses[i], list(leaves.values()), allow_unused=True, retain_graph=more)
            pairs = zip(trainable.items(), found, strict=True)
            each.append({name: _dense(p, g) for (name, p), g in pairs})
    return losses.detach(), each


def _dense(p: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        return torch.zeros_like(p)
    return gradient.to_dense() if gradient.is_sparse else gradient


def single_gradients(model: nn.Module, loss_fn: LossFn, batch: Any) -> Gradients:
    """Losses [B] and gradients [B, *shape], one sample at a time."""
    results = [single_gradient(model, loss_fn, batch, i) for i in range(inputs.batch_size(batch))]
    losses = torch.stack([loss for loss, _ in results])
    return losses, {name: torch.stack([grads[name] for _, grads in results]) for name in results[0][1]}


def vmap_sums(
    model: nn.Module, loss_fn: LossFn, batch: Any, weights: Tensor, grouping: Grouping, factors: Factors
) -> Sums:
    """The weighted sum of what :func:`vmap_gradients` gives."""
    with without_cache():
        losses, each = vmap_gradients(model, loss_fn, batch)
    norms = norms_of(each, grouping)
    by_name = factors(norms, weights)
    with without_autocast():
        return losses, norms, {n: weighted_of(by_name[n], wide(g)) for n, g in each.items()}


def single_sums(
    model: nn.Module, loss_fn: LossFn, batch: Any, weights: Tensor, grouping: Grouping, factors: Factors
) -> Sums:
    """The same, with the gradient of one sample at a time."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    losses, norms = [], []
    for i in range(len(weights)):
        with without_cache():
            loss, grads = single_gradient(model, loss_fn, batch, i)
        norm = norms_of({n: g.unsqueeze(0) for n, g in grads.items()}, grouping)
        by_name = factors(norm, weights[i : i + 1])
        for name, grad in grads.items():
            total[name] += by_name[name].to(grad.dtype) * grad
        losses.append(loss)
        norms.append(norm)
    return torch.stack(losses), torch.cat(norms), total
