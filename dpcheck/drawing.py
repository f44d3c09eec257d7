"""Python's and NumPy's global random numbers replaced by fixed ones, for as long as a block runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

aten = torch.ops.aten

# What a draw from [0, 1) and a standard normal one give, unless said otherwise.
USUAL, NORMAL = 0.375, 0.6745
# Draws from [0, 1) between which nearly every probability lies that a model compares a draw with.
EXTREMES = (0.001, 0.999)
_SEED = 20201113


@dataclass
class Draws:
    """What was drawn in a block of :func:`fixed_draws`.

    Attributes:
        called: names of the functions that were called, as they are called.
        escaped: a draw was not fixed (``from random import random``); known when the block is left.
    """

    called: list[str] = field(default_factory=list)
    escaped: bool = False


# The blocks that are running: each notes what is drawn, whichever of them fixes it.
_active: list[Draws] = []


@contextmanager
def fixed_draws(u: float | None) -> Iterator[Draws]:
    """Every uniform draw is ``u`` of its range; a choice takes what lies at ``u``, a sample the first, a shuffle turns.

    Only the functions of the modules ``random`` and ``numpy.random``, and ``torch.seed``, which gives a fixed seed; a
    generator that the model keeps is its own.
    With ``None`` nothing is fixed; what a block around this one fixes is noted all the same.
    """
    draws, before = Draws(), _states()
    _active.append(draws)
    try:
        if u is None:
            yield draws
            return
        with (
            mock.patch.dict(vars(random), _noting(_python(u))),
            mock.patch.dict(vars(np.random), _noting(_numpy(u))),
            mock.patch.object(torch, "seed", _seed),
        ):
            yield draws
    finally:
        _active.pop()
        draws.escaped = u is not None and _states() != before


def _seed() -> int:
    torch.manual_seed(_SEED)
    return _SEED


def _states() -> tuple[Any, ...]:
    numpy: Any = np.random.get_state()
    return random.getstate(), numpy[1].tobytes(), *numpy[2:]


def is_drawn_number(func: Any, out: Any) -> bool:
    """Whether the op drew a single number from [0, 1) or from the normal distribution, such as ``torch.rand([])``."""
    return isinstance(out, Tensor) and out.numel() == 1 and func in (aten.rand.default, aten.randn.default)


def constant_draw(func: Any, out: Tensor, u: float) -> Tensor:
    """A constant in the place of such a number, of which Python may ask the value while the model is traced."""
    with _disable_current_modes():
        value = torch.full(out.shape, u if func is aten.rand.default else NORMAL, dtype=out.dtype, device=out.device)
    return aten.lift_fresh_copy.default(value)  # type: ignore[no-any-return]


def _noting(functions: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            for draws in _active:
                draws.called.append(name)
            return function(*args, **kwargs)

        return draw

    return {name: noting(name, function) for name, function in functions.items()}


def _at(u: float, n: int) -> int:
    return min(int(u * n), n - 1)


def _python(u: float) -> dict[str, Callable[..., Any]]:
    def randrange(start: int, stop: int | None = None, step: int = 1) -> int:
        places = range(start) if stop is None else range(start, stop, step)
        return places[_at(u, len(places))]

    def shuffle(items: Any) -> None:
        items[:] = [*items[1:], *items[:1]]

    return {
        "random": lambda: u,
        "uniform": lambda a, b: a + (b - a) * u,
        "randint": lambda a, b: a + _at(u, b - a + 1),
        "randrange": randrange,
        "choice": lambda items: items[_at(u, len(items))],
        "choices": lambda items, *_, k=1, **__: [items[_at(u, len(items))]] * k,
        "sample": lambda items, k, **_: list(items)[:k],
        "shuffle": shuffle,
        "gauss": lambda mu=0.0, sigma=1.0: mu + sigma * NORMAL,
        "normalvariate": lambda mu=0.0, sigma=1.0: mu + sigma * NORMAL,
        "betavariate": lambda a, b: a / (a + b),
        "expovariate": lambda rate=1.0: 1 / rate,
    }


def _numpy(u: float) -> dict[str, Callable[..., Any]]:
    def full(size: Any, value: Any) -> Any:
        return value if size is None and np.ndim(value) == 0 else np.full(size or np.shape(value), value)

    def randint(low: int, high: int | None = None, size: Any = None, dtype: Any = int) -> Any:
        low, high = (0, low) if high is None else (low, high)
        return full(size, np.dtype(dtype).type(low + _at(u, high - low)))

    def choice(a: Any, size: Any = None, replace: bool = True, p: Sequence[float] | None = None) -> Any:
        items = np.arange(a) if np.ndim(a) == 0 else np.asarray(a)
        if size is None:
            return items[_at(u, len(items))]
        return np.resize(items, size) if replace else items[: int(np.prod(size))].reshape(size)

    def permutation(x: Any) -> Any:
        return np.roll(np.arange(x) if np.ndim(x) == 0 else np.asarray(x), 1, axis=0)

    def shuffle(x: Any) -> None:
        x[:] = np.roll(np.asarray(x), 1, axis=0)

    def uniform(low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return full(size, low + (np.asarray(high) - low) * u)

    def normal(loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        return full(size, loc + np.asarray(scale) * NORMAL)

    return {
        "rand": lambda *size: full(size or None, u),
        "random": lambda size=None: full(size, u),
        "random_sample": lambda size=None: full(size, u),
        "uniform": uniform,
        "randn": lambda *size: full(size or None, NORMAL),
        "standard_normal": lambda size=None: full(size, NORMAL),
        "normal": normal,
        "randint": randint,
        "choice": choice,
        "permutation": permutation,
        "shuffle": shuffle,
        "beta": lambda a, b, size=None: full(size, a / (np.asarray(a) + b)),
        "binomial": lambda n, p, size=None: full(size, np.asarray(np.asarray(p) > u, dtype=int) * n),
    }
