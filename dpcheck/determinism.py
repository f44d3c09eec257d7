"""Random ops replaced by fixed values, so that runs on different batch sizes can be compared."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dpcheck.drawing import NORMAL, USUAL, Draws, fixed_draws

_UNIFORM = frozenset({"rand", "rand_like", "uniform"})
_NORMAL = frozenset({"randn", "randn_like", "normal", "normal_functional", "log_normal", "exponential", "cauchy"})
_ONE = frozenset({"bernoulli", "geometric"})


def _rrelu(x: Tensor, noise: Tensor, lower: float, upper: float, training: bool = False, *_: Any) -> Tensor:
    slope = (lower + upper) / 2
    if training:
        noise.copy_(torch.where(x > 0, 1.0, slope))
    return torch.where(x > 0, x, x * slope)


def _rrelu_functional(x: Tensor, noise: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    noise = noise.clone()
    return _rrelu(x, noise, *rest), noise


# How many numbers these draw depends on the data, so that a sample shifts those of the next: they give their means.
MEANS: dict[str, Callable[..., Any]] = {
    "rrelu_with_noise": _rrelu,
    "rrelu_with_noise_functional": _rrelu_functional,
    "poisson": lambda rate, *_: rate.clone(),
    "binomial": lambda count, prob, *_: count * prob,
    "_standard_gamma": lambda alpha, *_: alpha.clone(),
    "_sample_dirichlet": lambda alpha, *_: alpha / alpha.sum(-1, keepdim=True),
}


class FixedChance(TorchDispatchMode):
    """Every element of a random tensor gets the same value; nothing is dropped; a permutation is a rotation.

    A function of chance is then still the same function of its samples, and whether samples mix does not change.
    Python's and NumPy's draws are fixed as well.

    Args:
        uniform: what a draw from [0, 1) gives.
    """

    def __init__(self, uniform: float = USUAL) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uniform, self.filled = uniform, False
        self.draws, self.stack = Draws(), ExitStack()

    @property
    def drew(self) -> bool:
        """Whether anything was drawn from [0, 1) or by Python or NumPy."""
        return self.filled or bool(self.draws.called)

    def __enter__(self) -> Self:
        self.draws = self.stack.enter_context(fixed_draws(self.uniform))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        self.stack.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func.overloadpacket).rpartition(".")[2]
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name.startswith("_scaled_dot_product") and "backward" not in name:
            args, kwargs = _without_dropout(func, args, kwargs)
            return func(*args, **kwargs)
        if name in MEANS:
            return MEANS[name](*args)
        out = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded not in func.tags or not isinstance(out, Tensor):
            return out
        in_place, name = name.endswith("_"), name.removesuffix("_")
        target = args[0] if in_place else out
        if name in _ONE:
            return _fill(target, 1)
        if name == "randperm":
            return torch.arange(out.numel(), dtype=out.dtype, device=out.device).roll(1)
        if name.startswith(("randint", "random")) or name == "multinomial":
            return _fill(target, int(args[0]) if func is torch.ops.aten.randint.low else 0)
        if name in _UNIFORM:
            self.filled = True
            return _fill(target, self.uniform)
        if name in _NORMAL:
            return _fill(target, NORMAL)
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
