"""The Gaussian mechanism on a sum of clipped gradients: once for each logical step, on every parameter.

Both mechanisms take what each call of the clipper returns (:meth:`Mechanism.contribution`), and the sum of those
(:meth:`Mechanism.release`). Reference: Abadi et al. 2016, algorithm 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from dpcheck.engine.openmp import rest
from dpcheck.engine.sites.base import as_real
from dpcheck.engine.streams import Stream
from dpcheck.engine.ziggurat import PIECE, Floats, buffer
from torch import Tensor

Gradients = dict[str, Tensor]

# C / GRID is the spacing of the secure mechanism's grid: a sum of 2**38 records still fits in int64.
GRID = 2**24
# More would wait for Python's lock; fewer pieces are done before threads have started.
_THREADS = 4
_WORTH_THREADS = 4


class Mechanism(Protocol):
    """How clipped gradients are added up and released; complex ones as pairs of real numbers, [*, 2]."""

    def contribution(self, clipped: Mapping[str, Tensor]) -> Gradients:
        """A clipped gradient, or a sum of them, in the form in which it is added up."""

    def release(self, total: Mapping[str, Tensor], divisor: int, stream: Stream) -> Gradients:
        """``(total + noise) / divisor`` by parameter name, computed in float64 (or integers) and then rounded once.

        It may be written over ``total``, whose tensors must not share memory.
        """


class Gaussian:
    """Adds N(0, (noise_multiplier * max_grad_norm)^2) in float64 to every coordinate.

    float32 noise is not enough: torch's never exceeds 5.77 standard deviations on the CPU, a floor under delta.
    It does not protect against reading the low bits of the released floats (Mironov 2012); :class:`GridGaussian` does.

    Args:
        noise_multiplier: sigma, noise divided by sensitivity.
        max_grad_norm: C, the L2 bound of one record's gradient over all parameters together.
    """

    def __init__(self, noise_multiplier: float, max_grad_norm: float) -> None:
        self.std = noise_multiplier * max_grad_norm

    def contribution(self, clipped: Mapping[str, Tensor]) -> Gradients:
        # Sums of half-precision gradients would round away what the noise hides.
        real = {name: as_real(g) for name, g in clipped.items()}
        return {name: g if g.dtype == torch.float64 else g.float() for name, g in real.items()}

    def release(self, total: Mapping[str, Tensor], divisor: int, stream: Stream) -> Gradients:
        released = {name: t.contiguous() for name, t in total.items()}
        flat = [t.view(-1) for t in released.values()]
        pieces = [piece for t in flat for piece in torch.split(t, PIECE) if len(piece)]
        # Each with a stream of its own, by whichever thread is free: the values do not depend on who computes them.
        todo = deque(enumerate(_runs(pieces)))

        def work() -> None:
            while True:
                try:
                    i, run = todo.popleft()
                except IndexError:
                    return
                self._add_noise(run, stream.part(i), divisor)

        helpers = min(_THREADS, torch.get_num_threads()) - 1 if len(todo) >= _WORTH_THREADS else 0
        if helpers:
            rest()
            with ThreadPoolExecutor(helpers) as pool:
                others = [pool.submit(work) for _ in range(helpers)]
                work()
                for other in others:
                    other.result()
        else:
            work()
        return released

    def _add_noise(self, run: list[Tensor], stream: Stream, divisor: int) -> None:
        sizes = [len(piece) for piece in run]
        with buffer(sum(sizes)) as noise:
            stream.fill(noise)
            noise *= self.std
            for piece, own in zip(run, np.split(noise, np.cumsum(sizes)[:-1]), strict=True):
                _release_into(piece, own, divisor)


def _release_into(piece: Tensor, noise: Floats, divisor: int) -> None:
    """``piece = (piece + noise) / divisor``, rounded once; ``noise`` is written over."""
    if piece.device.type == "cpu":
        # torch would use threads of its own, which get in the way of ours.
        values = piece.numpy()
        np.divide(np.add(noise, values, out=noise), divisor, out=values, casting="same_kind")
    else:
        piece.copy_(torch.from_numpy(noise).to(piece.device).add_(piece).div_(divisor))


def _runs(pieces: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of at most ``PIECE`` values together: many small parameters share one draw."""
    run: list[Tensor] = []
    total = 0
    for piece in pieces:
        if total + len(piece) > PIECE:
            yield run
            run, total = [], 0
        run.append(piece)
        total += len(piece)
    if run:
        yield run


class GridGaussian:
    """The Gaussian mechanism on integers, so that no floating-point rounding depends on the data.

    Each record's clipped gradient is moved towards zero to a grid of spacing gamma = C / 2**24, and its integer norm is
    held to 2**24 exactly; integers are added without error. With S the integer sum, S + round(N) = round(S + N) for any
    continuous N, so releasing it is post-processing of the continuous Gaussian mechanism and its accounting holds
    (the idea of Haney et al., arXiv 2207.13793; the attack: Mironov 2012; Jin et al., arXiv 2112.05307). N comes from
    64 or 128 random bits by inversion in float64, so its distribution is that of a rounded Gaussian up to relative
    errors of about 2**-28 in the middle and in the tail.

    It does not protect against timing, against who can read the process's memory, or against errors of the clipper that
    make one record's gradient depend on another record.

    Args:
        noise_multiplier: sigma.
        max_grad_norm: C.
    """

    def __init__(self, noise_multiplier: float, max_grad_norm: float) -> None:
        self.gamma = max_grad_norm / GRID
        self.std = noise_multiplier * GRID

    def contribution(self, clipped: Mapping[str, Tensor]) -> Gradients:
        """One record's gradient in units of gamma, int64; the sum of the squares is at most 2**48."""
        scaled = {name: as_real(g).double() / self.gamma for name, g in clipped.items()}
        norm = sum(float(g.square().sum()) for g in scaled.values()) ** 0.5
        # 1e-9 is far above the rounding error of the norm: truncation, which only shrinks, ends inside the ball.
        limit = GRID * (1 - 1e-9)
        factor = 1.0 if norm <= limit else limit / norm
        return {name: (g * factor).trunc().to(torch.int64) for name, g in scaled.items()}

    def release(self, total: Mapping[str, Tensor], divisor: int, stream: Stream) -> Gradients:
        released = {}
        for name, t in total.items():
            noise = _normal_like(t, stream).mul_(self.std).round_().to(torch.int64)
            released[name] = (t + noise).double() * (self.gamma / divisor)
        return released


def _normal_like(tensor: Tensor, stream: Stream) -> Tensor:
    values = torch.from_numpy(stream.normals(tensor.numel()))
    return values.reshape(tensor.shape).to(tensor.device)
