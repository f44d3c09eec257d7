"""Kinds of clipping. Whatever the kind, the L2 sensitivity of the whole clipped sum is ``max_grad_norm``.

A kind divides the trainable parameters into groups. The gradient of group g is clipped by its own norm to
``C_g = max_grad_norm * share_g``, and the squares of the shares add up to one: ``max_grad_norm = sqrt(sum of C_g^2)``.
So one sample's clipped gradient has L2 norm at most ``max_grad_norm`` over all parameters, one sample more or less
moves the sum by no more than that, and the noise on every coordinate is ``noise_multiplier * max_grad_norm``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpcheck.errors import DpcheckError

_LEAST_NORM = 1e-12


@dataclass(frozen=True)
class Flat:
    """``min(1, C / norm)`` of the gradient over all parameters together (Abadi et al. 2016, algorithm 1)."""


@dataclass(frozen=True)
class PerLayer:
    """Each of k layers on its own, to ``C / sqrt(k)`` (McMahan et al., arXiv 1710.06963).

    A layer is the module that holds the parameters. A tied parameter belongs to the first that holds it.
    """


@dataclass(frozen=True)
class PerGroup:
    """Each group of parameters on its own, to ``C_g = max_grad_norm * groups[g] / sqrt(sum of squares)``.

    With ``max_grad_norm=math.hypot(*groups.values())`` the values of ``groups`` are the norms themselves.

    Attributes:
        groups: proportions of the clipping norms by a prefix of parameter names: that of a module or a parameter;
            ``""`` holds what nothing else names, and of several prefixes the longest counts.

    Raises:
        DpcheckError: if there is no group or a proportion is not positive.
    """

    groups: Mapping[str, float]

    def __post_init__(self) -> None:
        groups: Any = self.groups
        if not isinstance(groups, Mapping) or not groups:
            raise DpcheckError(
                f"groups={groups!r} names no group", where="clipping", next='pass {"encoder": 1.0, "": 1.0}, say'
            )
        for name, share in groups.items():
            _positive(f"groups[{name!r}]", share)
        object.__setattr__(self, "groups", dict(groups))


@dataclass(frozen=True)
class Automatic:
    """``C / (norm + gamma)`` of the gradient over all parameters together: AUTO-S (Bu et al., arXiv 2206.07136).

    Small gradients grow, so a norm that rounding has spoilt would scale a gradient beyond C. Therefore each sample's
    gradient is kept as it is scaled (of a table only the rows that the sample looks up), and no norm comes from Grams:
    that takes the memory of per-sample gradients, but for layers that see one vector a sample.

    Attributes:
        gamma: the stability constant, in the unit of norms. With 0 (AUTO-V, normalised) every gradient gets norm C,
            but for those shorter than 1e-12, where float32 has no digits left: they get ``C * norm / 1e-12``, zero 0.

    Raises:
        DpcheckError: if gamma is negative or not finite.
    """

    gamma: float = 0.01

    def __post_init__(self) -> None:
        gamma: Any = self.gamma
        if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 <= gamma < math.inf:
            raise DpcheckError(f"gamma={gamma!r} is neither zero nor a positive number", where="clipping")


@dataclass(frozen=True)
class AdaptiveQuantile:
    """Flat, to a clipping norm that follows a quantile of the norms (Andrew et al., arXiv 1905.03871).

    ``max_grad_norm`` is the first clipping norm. After a step with norm C and n samples drawn, of which u had a
    gradient no longer than C, ``share = (u - n / 2 + N(0, count_noise^2)) / expected_batch_size + 1 / 2`` is released,
    and the next norm is ``C * exp(-learning_rate * (share - quantile))``, held within a factor of 1e6 of the first.
    The norms are made of released values only, so they may be published. Only the engine adapts: elsewhere this is
    :class:`Flat`.

    Privacy. Divide the sum of gradients by ``z_g C`` and the count by ``count_noise``, the standard deviations of their
    noise. One sample moves the pair by a vector of L2 norm at most ``sqrt(z_g^-2 + (2 count_noise)^-2) = 1 / z``,
    whatever the other samples are: one Gaussian mechanism with noise multiplier z (theorem 1 there). Both parts are of
    the same Poisson sample, so a step is that mechanism subsampled, and as C is made of earlier releases, steps compose
    as usual. ``noise_multiplier``, given or calibrated, is this z; the gradients get the larger z_g. This takes a
    sample's norm to be its own. Rounding may change its last digits with the samples that are computed beside it, and
    a norm that close to C then counts or not by these; with ``secure=True`` each sample is computed by itself.

    Attributes:
        quantile: the share of gradients that are not clipped, in (0, 1).
        learning_rate: of the logarithm of the norm.
        count_noise: standard deviation of the noise on the count, in samples; more than z / 2. If None it is
            expected_batch_size / 20, or 2 z where that is more.

    Raises:
        DpcheckError: naming the value that is out of range.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        _positive("quantile", self.quantile, below=1)
        _positive("learning_rate", self.learning_rate)
        if self.count_noise is not None:
            _positive("count_noise", self.count_noise)


Clipping = Flat | PerLayer | PerGroup | Automatic | AdaptiveQuantile


def kind_of(clipping: Any) -> Clipping:
    """The kind that ``clipping`` is or names.

    Raises:
        DpcheckError: if it is none.
    """
    if isinstance(clipping, Clipping):
        return clipping
    if isinstance(clipping, str) and clipping in _BY_NAME:
        return _BY_NAME[clipping]
    raise DpcheckError(
        f"clipping={clipping!r} is not known",
        where="clipping",
        next=f"pass {', '.join(map(repr, _BY_NAME))}, or dpcheck.engine.PerGroup({{prefix: proportion}})",
    )


@dataclass(frozen=True)
class Grouping:
    """A kind for one model.

    Attributes:
        names: of the G groups.
        of: the position of each trainable parameter's group, by the parameter's name.
        shares: of ``max_grad_norm``, by group; their squares add up to 1 up to rounding.
        gamma: of :class:`Automatic`, else None.
    """

    names: tuple[str, ...]
    of: Mapping[str, int]
    shares: tuple[float, ...]
    gamma: float | None = None

    @property
    def amplifies(self) -> bool:
        """Whether small gradients grow, so that a norm must be as precise as the gradient is small."""
        return self.gamma is not None

    def bounds(self, norms: Tensor, max_grad_norm: float) -> Tensor:
        """``C_g``, [G], in the dtype of ``norms``."""
        return norms.new_tensor(self.shares).mul_(max_grad_norm)

    def factors(self, norms: Tensor, max_grad_norm: float, weights: Tensor) -> Tensor:
        """Of every sample's gradients by group, [B, G], from their norms [B, G] and the samples' weights [B]."""
        bounds, weights = self.bounds(norms, max_grad_norm), weights.unsqueeze(1)
        if self.gamma is None:
            return clip_factors(norms, bounds, weights)
        return automatic_factors(norms, bounds, weights, self.gamma)

    def shortened(self, norms: Tensor, max_grad_norm: float) -> Tensor:
        """Which samples lose length in some group, bool [B], from norms [B, G]."""
        return (norms + (self.gamma or 0.0) > self.bounds(norms, max_grad_norm)).any(1)


def grouping_of(kind: Clipping, parameters: Iterable[str]) -> Grouping:
    """The groups of ``parameters`` (names of the trainable ones).

    Raises:
        DpcheckError: if a parameter belongs to no group, or a group has no parameter.
    """
    parameters = tuple(parameters)
    if isinstance(kind, PerLayer):
        groups = {name: name.rpartition(".")[0] for name in parameters}
        proportions = dict.fromkeys(groups.values(), 1.0)
    elif isinstance(kind, PerGroup):
        groups = {name: _longest(name, kind.groups) for name in parameters}
        proportions = {name: kind.groups[name] for name in dict.fromkeys(groups.values())}
        idle = [name for name in kind.groups if name not in proportions]
        if idle:
            raise DpcheckError(
                f"the group {idle[0]!r} has no trainable parameter", where="clipping", next="name one, or leave it out"
            )
    else:
        gamma = float(kind.gamma) if isinstance(kind, Automatic) else None
        return Grouping(("",), dict.fromkeys(parameters, 0), (1.0,), gamma)
    root = math.hypot(*proportions.values())
    position = {name: g for g, name in enumerate(proportions)}
    shares = tuple(p / root for p in proportions.values())
    return Grouping(tuple(proportions), {name: position[group] for name, group in groups.items()}, shares)


FLAT = Grouping(("",), {}, (1.0,))


def clip_factors(norms: Tensor, max_grad_norm: float | Tensor, weights: Tensor) -> Tensor:
    """``weights * min(1, C / norm)`` (Abadi et al. 2016, Algorithm 1), in the shape of ``norms``."""
    # The guard keeps factor * norm <= C under rounding too.
    return weights * (max_grad_norm / norms.clamp_min(1e-30)).clamp(max=1.0) * (1 - 4 * torch.finfo(norms.dtype).eps)


def automatic_factors(norms: Tensor, max_grad_norm: float | Tensor, weights: Tensor, gamma: float) -> Tensor:
    """``weights * C / (norm + gamma)`` (Bu et al., arXiv 2206.07136), in the shape of ``norms``."""
    # Squares of entries below 1e-23 vanish in float32: what looks like zero may not be scaled up without limit.
    divisor = (norms + gamma).clamp_min(_LEAST_NORM)
    return weights * (max_grad_norm / divisor) * (1 - 4 * torch.finfo(norms.dtype).eps)


def _positive(name: str, value: Any, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
        limit = "" if below == math.inf else f" below {below:g}"
        raise DpcheckError(f"{name}={value!r} is not a positive number{limit}", where="clipping")


def _longest(name: str, groups: Mapping[str, float]) -> str:
    found = [group for group in groups if group in ("", name) or name.startswith(group + ".")]
    if not found:
        raise DpcheckError(
            f"the parameter {name!r} belongs to no group",
            where="clipping",
            next='add a group for it; "" names all that are in no other',
        )
    return max(found, key=len)


_BY_NAME: dict[str, Clipping] = {
    "flat": Flat(),
    "per-layer": PerLayer(),
    "automatic": Automatic(),
    "normalised": Automatic(gamma=0.0),
    "adaptive": AdaptiveQuantile(),
}
