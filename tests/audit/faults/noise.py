"""Noise that is too small, missing, shared, or of another shape."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from dpcheck.engine import noise, streams, trainer, watch
from dpcheck.engine.streams import KeyedStream, KeyedStreams

from faults.base import Change, Fault


def _std(factor: float, power: float = 1.0) -> Change:
    def change(original: Any) -> Any:
        def init(self: Any, multiplier: float, norm: float) -> None:
            original(self, multiplier, norm)
            self.std = factor * multiplier * norm**power

        return init

    return change


def _for_the_mean(original: Any) -> Any:
    def release(self: Any, total: Any, divisor: int, stream: Any) -> Any:
        self.std /= divisor
        return original(self, total, divisor, stream)

    return release


def _only(wanted: Any) -> Change:
    """Noise where ``wanted(name, sum before)`` is true, by element."""

    def change(original: Any) -> Any:
        def release(self: Any, total: Any, divisor: int, stream: Any) -> Any:
            plain = {name: t.clone() for name, t in total.items()}
            noisy = original(self, total, divisor, stream)
            return {n: torch.where(wanted(n, plain[n]), noisy[n], plain[n] / divisor) for n in noisy}

        return release

    return change


def _everywhere(condition: bool, like: torch.Tensor) -> torch.Tensor:
    return torch.full_like(like, condition, dtype=torch.bool)


def _in_each_micro_batch(original: Any) -> Any:
    def contribution(self: Any, clipped: Any) -> Any:
        return {n: g + self.std * torch.randn(g.shape) for n, g in original(self, clipped).items()}

    return contribution


def _shaped(shape: Any) -> Change:
    def change(original: Any) -> Any:
        def fill(self: Any, out: Any) -> None:
            original(self, out)
            out[:] = shape(self, out)

        return fill

    return change


def _uniform(stream: Any, out: Any) -> Any:
    return (stream._bits.random_raw(len(out)) / 2**64 - 0.5) * 12**0.5


def _laplace(stream: Any, out: Any) -> Any:
    u = np.clip(stream._bits.random_raw(len(out)) / 2**64 - 0.5, -0.4999999, 0.4999999)
    return -np.sign(u) * np.log(1 - 2 * np.abs(u)) / 2**0.5


def _one_stream(original: Any) -> Any:
    return lambda self, purpose, step: original(self, purpose, 0)


def _one_key(original: Any) -> Any:
    return classmethod(lambda cls: cls(hashlib.sha256(b"a constant").digest()))


def _weak_key(original: Any) -> Any:
    return classmethod(lambda cls: cls(bytes(31) + bytes([int(torch.initial_seed()) % 2])))


def _equal_parts(original: Any) -> Any:
    return lambda self, index: KeyedStream(self._key)


def _same_for_every_parameter(original: Any) -> Any:
    def release(self: Any, total: Any, divisor: int, stream: Any) -> Any:
        return {n: original(self, {n: t}, divisor, KeyedStream(stream._key))[n] for n, t in total.items()}

    return release


_LAST: dict[str, Any] = {}


def _half_of_the_last(original: Any) -> Any:
    def release(self: Any, total: Any, divisor: int, stream: Any) -> Any:
        zeros = {n: torch.zeros_like(t) for n, t in total.items()}
        fresh = original(self, zeros, divisor, stream)
        found = {}
        for n, t in total.items():
            last = _LAST.get(n)
            last = fresh[n] if last is None or last.shape != t.shape else last
            found[n] = t / divisor + (fresh[n] + last) / 2**0.5
        _LAST.update(fresh)
        return found

    return release


def _empty_steps(noisy: bool) -> Change:
    """Empty draws without noise, or skipped."""

    def change(original: Any) -> Any:
        def step(self: Any, batch: Any) -> Any:
            if len(batch):
                return original(self, batch)
            settings = self.settings
            if not noisy:
                self._pending = None
                self.ledger.append(self.settings.record(self.run, self.max_grad_norm))
                return None
            self.settings = replace(settings, noise_multiplier=0.0, count_noise=None)
            try:
                return original(self, batch)
            finally:
                self.settings = settings

        return step

    return change


def _published(change_one: Any) -> Change:
    def change(original: Any) -> Any:
        def publish(self: Any, gradients: Any) -> None:
            before = {n: p.grad for n, p in self.parameters.items()}
            original(self, gradients)
            for name, p in self.parameters.items():
                change_one(name, p, before[name])

        return publish

    return change


def _not_given(name: str, p: Any, before: Any) -> None:
    if name == "model.hidden.weight":
        p.grad = None


def _every_other_step(original: Any) -> Any:
    """Noise for what two steps sum up, which the optimizer is given after each of them."""

    def release(self: Any, total: Any, divisor: int, stream: Any) -> Any:
        _LAST["steps"] = _LAST.get("steps", 0) + 1
        if _LAST["steps"] % 2:
            self.std = 0.0
        return original(self, total, divisor, stream)

    return release


def _added_to_the_last(name: str, p: Any, before: Any) -> None:
    if before is not None:
        p.grad = p.grad + before


G = noise.Gaussian
FAULTS = [
    Fault("half of the noise", G, "__init__", _std(0.5)),
    Fault("noise 5 % too small", G, "__init__", _std(0.95)),
    Fault("noise not scaled by the clipping norm", G, "__init__", _std(1.0, 0.0)),
    Fault("noise scaled by the square of the clipping norm", G, "__init__", _std(1.0, 2.0)),
    Fault("noise for the mean added to the sum", G, "release", _for_the_mean, "Tramer et al. 2202.12219"),
    Fault("noise in each micro-batch, none for none", G, "contribution", _in_each_micro_batch),
    Fault("no noise on one parameter", G, "release", _only(lambda n, t: _everywhere(n != "model.head.weight", t))),
    Fault("no noise on biases", G, "release", _only(lambda n, t: _everywhere(not n.endswith("bias"), t))),
    Fault("no noise on rows that nobody looked up", G, "release", _only(lambda n, t: t != 0)),
    Fault("one parameter is not given to the optimizer", watch.Watch, "publish", _published(_not_given)),
    Fault("gradients of the step before are kept (zero_grad missing)", watch.Watch, "publish",
          _published(_added_to_the_last), "missing zero_grad"),
    Fault("the same noise in every step", KeyedStreams, "stream", _one_stream),
    Fault("the same noise in every run, and after resuming", KeyedStreams, "private", _one_key),
    Fault("the key is one bit of the seed", KeyedStreams, "private", _weak_key, "one PRNG key for several ranks"),
    Fault("the same noise in every part of a release", KeyedStream, "part", _equal_parts,
          also=((noise, "PIECE", lambda piece: 64),)),
    Fault("the same noise for every parameter", G, "release", _same_for_every_parameter, "one key for all parameters"),
    Fault("half of the noise is that of the step before", G, "release", _half_of_the_last),
    Fault("uniform noise", KeyedStream, "fill", _shaped(_uniform)),
    Fault("Laplace noise", KeyedStream, "fill", _shaped(_laplace)),
    Fault("noise cut at two standard deviations", streams.KeyedStream, "fill",
          _shaped(lambda stream, out: np.clip(out, -2, 2))),
    Fault("noise rounded to sixteenths", streams.KeyedStream, "fill",
          _shaped(lambda stream, out: np.round(out * 16) / 16)),
    Fault("noise in every second step, as if two were accumulated", G, "release", _every_other_step,
          "accumulation left out of the account: epsilon .72 for 5.6"),
    Fault("empty draws have no noise", trainer.PrivacyEngine, "step", _empty_steps(True), "opacus #161"),
    Fault("empty draws take no step", trainer.PrivacyEngine, "step", _empty_steps(False), "opacus #806"),
]  # fmt: skip
