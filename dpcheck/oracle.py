"""The isolation oracle: each sample alone, and among other companions, against the sample in the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.capture import LossFn, first_line
from dpcheck.determinism import FixedChance
from dpcheck.drawing import EXTREMES, USUAL
from dpcheck.facts import OracleResult
from dpcheck.sandbox import sandbox, swapped, tensors_of

SAMPLES = 4
SCALES = (1.0, 8.0, 0.05)
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}


def isolate(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    *,
    dtype: torch.dtype = torch.float64,
    quick: bool = False,
    few: bool = False,
) -> OracleResult:
    """Compare the loss and the gradient of every sample in a batch with those of the sample alone.

    In float64, at several scales of the floating-point inputs, with fixed chance: what is drawn from [0, 1) is of usual
    size, and in further runs, if the model draws, small and large. Where the model cannot run one
    sample (a layer that needs two), the sample is put among other companions instead. The gradient of the sum of the
    losses is compared with the sum of the gradients, too. A difference is a proof that samples mix, or that a sample's
    loss depends on its place in the batch or on how many there are; no difference proves nothing.

    Args:
        dtype: float64, or float32 for a model that casts for itself (tried when float64 fails).
        quick: the batch against the batch turned round and the batch in two parts, at one scale: enough to see that
            place or number count, which the sample sets do not know.
        few: for large models: two samples, at one scale, in float32.
    """
    size = inputs.batch_size(batch)
    dtype = torch.float32 if few else dtype
    rows = [i % max(size, 2) for i in range(2 if few else SAMPLES)]
    worst, where, count = 0.0, "losses", 0
    conditions = [(scale, USUAL) for scale in SCALES[: 1 if quick or few else None]]
    for scale, uniform in conditions:
        scaled = _two_at_least(_scaled(inputs.to_dtype(batch, dtype), scale))
        compare = _turned_and_parted if quick else _alone
        try:
            with FixedChance(uniform) as chance:
                found = compare(model, loss_fn, scaled, rows, dtype)
        except Exception as error:
            if dtype is torch.float64:
                return isolate(model, loss_fn, batch, dtype=torch.float32, quick=quick)
            if count:
                continue
            return OracleResult(False, 0.0, "nothing", 0, f"{type(error).__name__}: {first_line(error)}")
        if chance.drew and not quick and len(conditions) == len(SCALES):
            # A branch may depend on what was drawn.
            conditions += [(SCALES[0], extreme) for extreme in EXTREMES]
        count += len(found)
        for what, difference in found:
            if difference > worst:
                worst, where = difference, what
    failed = None if count > (0 if few else 2) else "the model does not run on other batches than this one"
    return OracleResult(worst > TOLERANCE[dtype], worst, where, count, failed)


def _alone(
    model: nn.Module, loss_fn: LossFn, batch: Any, rows: list[int], dtype: torch.dtype
) -> list[tuple[str, float]]:
    """Every sample in the batch against the sample in other company."""
    together, total = _each(model, loss_fn, inputs.take(batch, rows), range(len(rows)), dtype)
    found = _differences((together[0][0], total), (together[0][0], _sum([grads for _, grads in together])))
    for position in range(len(rows)):
        for companions in _companies(rows, position, inputs.batch_size(batch)):
            try:
                alone = _each(model, loss_fn, inputs.take(batch, companions), [0], dtype)[0][0]
            except Exception:  # the layer's trouble with one sample, not the oracle's: other companions follow
                continue
            found += _differences(together[position], alone)
    return found


def _turned_and_parted(
    model: nn.Module, loss_fn: LossFn, batch: Any, rows: list[int], dtype: torch.dtype
) -> list[tuple[str, float]]:
    """The losses and one weighted sum of the gradients, of the batch, of the batch turned round, and of two parts."""
    weights = torch.linspace(0.5, 1.5, len(rows), dtype=dtype)

    def run(*places: int) -> tuple[Tensor, list[Tensor | None]]:
        taken = inputs.take(batch, [rows[p] for p in places])
        return _weighted(model, loss_fn, taken, weights[list(places)], dtype)

    places = range(len(rows))
    whole = run(*places)
    found = []
    if len(rows) > 2:
        turned = run(*reversed(places))
        found += _differences(whole, (turned[0].flip(0), turned[1]))
    for cut in (1, len(rows) // 2):
        try:
            first, second = run(*places[:cut]), run(*places[cut:])
        except Exception:  # the layer's trouble with one sample
            continue
        found += _differences(whole, (torch.cat([first[0], second[0]]), _joined(first[1], second[1])))
        break
    return found


def _two_at_least(batch: Any) -> Any:
    """A batch of one sample gets a second, other one: equal companions hide a mean over the batch."""
    if inputs.batch_size(batch) > 1:
        return batch
    return pytree.tree_map_only(Tensor, lambda t: torch.cat([t, t * 0.7 if t.is_floating_point() else t]), batch)


def _sum(gradients: list[list[Tensor | None]]) -> list[Tensor | None]:
    """The sum over samples of each parameter's gradient."""
    sums: list[Tensor | None] = []
    for parts in zip(*gradients, strict=True):
        present = [p.to_dense() if p.is_sparse else p for p in parts if p is not None]
        sums.append(sum(present[1:], present[0]) if present else None)
    return sums


def _joined(a: list[Tensor | None], b: list[Tensor | None]) -> list[Tensor | None]:
    """The sum of two lists of gradients, which are used up: large models leave no room for a third."""
    for i in range(len(a)):
        a[i], b[i] = _sum([[a[i]], [b[i]]])[0], None
    return a


def _companies(rows: list[int], position: int, size: int) -> list[list[int]]:
    """The sample alone; with itself; and with other companions in another number."""
    me = rows[position]
    others = [i for i in range(size) if i != me][::-1][: SAMPLES - 1]
    return [[me], [me, me], [me, *others, me]]


def _scaled(batch: Any, scale: float) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t * scale if t.is_floating_point() else t, batch)


def _state(model: nn.Module, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Copies of parameters and buffers, and those of them to differentiate by."""
    parameters, buffers = tensors_of(model)
    state: dict[str, Tensor] = {}
    for name, t in {**parameters, **buffers}.items():
        copy = t.detach().to(dtype) if t.is_floating_point() else t.detach()
        copy = copy.clone() if copy.data_ptr() == t.data_ptr() else copy
        state[name] = copy.requires_grad_(name in parameters and t.requires_grad)
    return state, [state[n] for n in parameters if state[n].requires_grad]


def _weighted(
    model: nn.Module, loss_fn: LossFn, batch: Any, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor | None]]:
    """The losses, and the gradient of their weighted sum."""
    state, wanted = _state(model, dtype)
    with sandbox(model), swapped(model, state):
        losses = loss_fn(model, batch)
        grads: Any = [None] * len(wanted)
        if losses.requires_grad:
            grads = torch.autograd.grad(losses, wanted, weights.to(losses), allow_unused=True)
        return losses.detach(), list(grads)


def _each(
    model: nn.Module, loss_fn: LossFn, batch: Any, positions: Any, dtype: torch.dtype
) -> tuple[list[tuple[Tensor, list[Tensor | None]]], list[Tensor | None]]:
    """Loss and gradient of the samples at ``positions``, each by its own backward from one forward.

    With more than one position the gradient of the sum of all losses follows.
    """
    state, wanted = _state(model, dtype)
    with sandbox(model), swapped(model, state):
        losses = loss_fn(model, batch)
        results = []
        for i in positions:
            grads: Any = [None] * len(wanted)
            if losses.requires_grad:
                grads = torch.autograd.grad(losses[i], wanted, retain_graph=True, allow_unused=True)
            results.append((losses[i].detach(), list(grads)))
        total: Any = [None] * len(wanted)
        if losses.requires_grad and len(results) > 1:
            total = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
    return results, list(total)


def _differences(
    a: tuple[Tensor, list[Tensor | None]], b: tuple[Tensor, list[Tensor | None]]
) -> list[tuple[str, float]]:
    loss = float(((a[0] - b[0]).abs() / (b[0].abs() + 1e-3)).nan_to_num(0.0).max())
    both = [(x, y) for x, y in zip(a[1], b[1], strict=True) if x is not None or y is not None]
    pairs = [(_or_zero(x, y), _or_zero(y, x)) for x, y in both]
    size = sum(_norm(y) ** 2 for _, y in pairs) ** 0.5
    apart = sum(_norm(x - y) ** 2 for x, y in pairs) ** 0.5
    gradient = apart / (size + 1e-6) if pairs else 0.0
    return [(k, v if v == v else 0.0) for k, v in (("losses", loss), ("gradients", gradient))]


def _norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t.abs() if t.is_complex() else t, dtype=torch.float64))


def _or_zero(t: Tensor | None, other: Tensor | None) -> Tensor:
    if t is not None:
        return t.to_dense() if t.is_sparse else t
    assert other is not None
    return torch.zeros_like(other.to_dense() if other.is_sparse else other)
