"""Does a batch leave something behind? The losses on one batch after another, and after a different other.

The graph is of one call. What a model keeps between calls in Python (an average in a plain attribute, a list of past
activations, a cache), what it writes past autograd (``.data = ``) and what it creates on its first call is seen by
running it: once on a batch A and then on B, once on A' and then on B, from the same state, with fixed chance.
Whatever differs then came from the data of the first batch. A difference is a proof; no difference proves nothing.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.capture import first_line
from dpcheck.drawing import USUAL, fixed_draws
from dpcheck.sandbox import sandbox, swapped

_DEPTH = 4
_ROUNDING = 1e-5
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_REGISTRIES = ("_parameters", "_buffers", "_modules")
# Of hooks: their keys count all hooks that were ever registered, in any model.
_NUMBERED = "_hooks"


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


def history(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batch: Any, losses: Tensor, *, sizes: tuple[int, int]
) -> History:
    """What one call leaves behind for the next. The model is left as it was.

    Args:
        losses: those of ``batch`` when it comes first, [B].
        sizes: of the two batches that are run where a call leaves anything behind.
    """
    try:
        if _leaves_nothing(model, loss_fn, batch, losses):
            return History()
        first, second = (inputs.take(batch, _rows(batch, size)) for size in sizes)
        return _compared(model, loss_fn, first, second)
    except Exception as error:
        return History(failed=f"{type(error).__name__}: {first_line(error)}")


def _rows(batch: Any, size: int) -> list[int]:
    return [i % inputs.batch_size(batch) for i in range(size)]


def _other(batch: Any, size: int) -> Any:
    """A batch with other data: its first sample only, smaller."""
    same = inputs.take(batch, [0] * size)
    return pytree.tree_map_only(Tensor, lambda t: t * 0.7 if t.is_floating_point() else t, same)


def _leaves_nothing(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batch: Any, losses: Tensor) -> bool:
    """Whether a call with other data changes no state, and no losses of the call after it."""
    originals = _registered(model)
    copies = {name: t.clone() for name, t in originals.items()}
    with sandbox(model) as touched, torch.no_grad(), swapped(model, copies):
        with _chance_put_back(model):
            loss_fn(model, _other(batch, 2))
        after = _registered(model)
        if after.keys() != originals.keys() or any(not _equal(after[name], t) for name, t in originals.items()):
            return False
        again = loss_fn(model, batch)
    return not touched.attributes and _close(losses, again)


def _compared(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], first: Any, second: Any) -> History:
    other = _other(first, inputs.batch_size(first))
    a, b = _run(model, loss_fn, first, second), _run(model, loss_fn, other, second)
    carried = _differing(a.second, b.second)
    differ = not _close(a.losses, b.losses)
    drifts = differ and not carried and not _close(a.losses, _run(model, loss_fn, first, second).losses)
    return History(
        written=_differing(a.registered, b.registered),
        changed=tuple(a.registered),
        carried=carried,
        latest=tuple(name for name in _differing(a.first, b.first) if name not in carried),
        losses=differ and not drifts,
        drifts=drifts,
    )


@contextmanager
def _chance_put_back(model: nn.Module) -> Iterator[None]:
    devices = sorted({t.device.index for t in model.parameters() if t.is_cuda})
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _run(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], first: Any, second: Any) -> _Trail:
    originals = _registered(model)
    copies = {name: t.clone() for name, t in originals.items()}
    with sandbox(model), fixed_draws(USUAL), torch.no_grad():
        known = {path: {k: v for k, v in vars(m).items() if isinstance(v, _PLAIN)} for path, m in model.named_modules()}
        with swapped(model, copies):
            loss_fn(model, first)
            after = _registered(model)
            changed = {n: t.clone() for n, t in after.items() if n not in originals or not _equal(t, originals[n])}
            after_first = _state(model, known)
            _put_back(model, originals, changed)
            losses = loss_fn(model, second).clone()
            return _Trail(changed, after_first, _state(model, known), losses)


def _registered(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}


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
                numbered = isinstance(value, dict) and key.endswith(_NUMBERED)
                found[f"{path}.{key}" if path else key] = _copied([*value.values()] if numbered else value, _DEPTH)
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


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of kernels that do not add in the same order each time."""
    return bool(torch.allclose(a, b.to(a), rtol=_ROUNDING, atol=_ROUNDING * float(a.abs().max()), equal_nan=True))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and bool(torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))
