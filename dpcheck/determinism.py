"""Random ops replaced by fixed values, so that runs on different batch sizes can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_UNIFORM = frozenset({"rand", "rand_like", "uniform", "uniform_"})
_NORMAL = frozenset({"randn", "randn_like", "normal", "normal_", "log_normal_", "exponential_", "cauchy_"})
_KEEP = frozenset({"bernoulli", "bernoulli_"})


class FixedChance(TorchDispatchMode):
    """Every element of a random tensor gets the same value; nothing is dropped; a permutation is a rotation.

    A function of chance is then still the same function of its samples, and whether samples mix does not change.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func.overloadpacket).rpartition(".")[2]
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name.startswith("_scaled_dot_product") and "backward" not in name:
            args, kwargs = _without_dropout(func, args, kwargs)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded not in func.tags or not isinstance(out, Tensor):
            return out
        if name in _KEEP:
            return _fill(args[0] if name.endswith("_") else out, 1)
        if name == "randperm":
            return torch.arange(out.numel(), dtype=out.dtype, device=out.device).roll(1)
        if name.startswith(("randint", "random")) or name == "multinomial":
            return _fill(out, int(args[0]) if name == "randint.low" else 0)
        if name in _UNIFORM:
            return _fill(args[0] if name.endswith("_") else out, 0.375)
        if name in _NORMAL:
            return _fill(args[0] if name.endswith("_") else out, 0.6745)
        return out


def _fill(out: Tensor, value: float) -> Tensor:
    return out.fill_(value)


def _without_dropout(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    names = [a.name for a in func._schema.arguments]
    if "dropout_p" not in names:
        return args, kwargs
    at = names.index("dropout_p")
    if at < len(args):
        return (*args[:at], 0.0, *args[at + 1 :]), kwargs
    return args, {**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs
