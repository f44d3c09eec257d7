"""Does a batch leave something behind? The losses on one batch after another, and after a different other.

The graph is of one call. What a model keeps between calls in Python (an average in a plain attribute, a list of past
activations, a cache), what it writes past autograd (``.data = ``) and what it creates on its first call is seen by
running it: once on a batch A and then on B, once on A' and then on B, from the same state, with fixed chance.
Whatever differs then came from the data of the first batch. A difference is a proof; no difference proves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.capture import first_line
from dpcheck.determinism import FixedChance
from dpcheck.sandbox import sandbox, swapped, tensors_of

_DEPTH = 4
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_REGISTRIES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class History:
    """What one call left behind for the next.

    Attributes:
        written: registered tensors (and those registered by the call) whose value after it depends on its batch.
        changed: registered tensors whose value after it is another one.
        carried: ``module path.attribute`` of Python state that, one call later, still depends on the batch before it.
        latest: the same for state that depends on the latest batch only: nothing is carried further.
        losses: whether the losses of a batch depend on the batch before, through other than registered tensors.
        drifts: whether they differ from call to call for another reason, such as a count kept outside the model.
        failed: why the batches could not be run, if so.
    """

    written: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    latest: tuple[str, ...] = ()
    losses: bool = False
    drifts: bool = False
    failed: str | None = None


@dataclass(frozen=True)
class _Trail:
    """Two calls in a row: what the first did to registered tensors, Python state after each, losses of the second."""

    registered: dict[str, Tensor]
    first: dict[str, Any]
    second: dict[str, Any]
    losses: Tensor


def history(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batch: Any, sizes: tuple[int, int]) -> History:
    """Compare two runs that differ in the first of two batches. The model is left as it was.

    Args:
        sizes: of the first and the second batch.
    """
    count = inputs.batch_size(batch)
    first, second = (inputs.take(batch, [i % count for i in range(size)]) for size in sizes)
    other = pytree.tree_map_only(
        Tensor, lambda t: t * 0.7 if t.is_floating_point() else t, inputs.take(batch, [0] * sizes[0])
    )
    try:
        a, b = _run(model, loss_fn, first, second), _run(model, loss_fn, other, second)
    except Exception as error:
        return History(failed=f"{type(error).__name__}: {first_line(error)}")
    carried = _differing(a.second, b.second)
    differ = not _equal(a.losses, b.losses)
    drifts = differ and not carried and not _equal(a.losses, _run(model, loss_fn, first, second).losses)
    return History(
        written=_differing(a.registered, b.registered),
        changed=tuple(a.registered),
        carried=carried,
        latest=tuple(name for name in _differing(a.first, b.first) if name not in carried),
        losses=differ and not drifts,
        drifts=drifts,
    )


def _run(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], first: Any, second: Any) -> _Trail:
    parameters, buffers = tensors_of(model)
    originals = {name: t.detach() for name, t in {**parameters, **buffers}.items()}
    copies = {name: t.clone() for name, t in originals.items()}
    with sandbox(model), torch.no_grad(), FixedChance():
        known = {path: {k: v for k, v in vars(module).items() if isinstance(v, _PLAIN)}
                 for path, module in model.named_modules()}  # fmt: skip
        with swapped(model, copies):
            loss_fn(model, first)
            after = dict(_registered(model))
            changed = {n: t.clone() for n, t in after.items() if n not in originals or not _equal(t, originals[n])}
            after_first = _state(model, known)
            _put_back(model, originals, changed)
            losses = loss_fn(model, second).clone()
            return _Trail(changed, after_first, _state(model, known), losses)


def _registered(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, tensor.detach()


def _put_back(model: nn.Module, originals: dict[str, Tensor], changed: dict[str, Tensor]) -> None:
    """Registered tensors as before the first call; those that it created stay, as they would."""
    for name in changed:
        if name in originals:
            path, _, attribute = name.rpartition(".")
            owner = model.get_submodule(path)
            registry = owner._buffers if attribute in owner._buffers else owner._parameters
            registry[attribute] = originals[name].clone()  # type: ignore[assignment]


def _state(model: nn.Module, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Python state of every module that may have changed, copied, by ``path.attribute``."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        before = known.get(path, {})
        for key, value in vars(module).items():
            same = key in before and before[key] is value
            if key not in _REGISTRIES and not key.startswith("__") and not same:
                found[f"{path}.{key}" if path else key] = _copied(value, _DEPTH)
    return found


def _copied(value: Any, depth: int) -> Any:
    """Tensors and plain values inside ``value``, in containers and in objects that hold attributes."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, _PLAIN):
        return value
    if depth == 0 or isinstance(value, nn.Module | type) or callable(value):
        return None
    if isinstance(value, dict):
        return {k: _copied(v, depth - 1) for k, v in value.items() if isinstance(k, (*_PLAIN, tuple))}
    if isinstance(value, list | tuple | deque):
        return [_copied(v, depth - 1) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return {k: _copied(v, depth - 1) for k, v in getattr(value, "__dict__", {}).items()}


def _differing(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in {**a, **b} if not _equal(a.get(name), b.get(name)))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and bool(torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))
