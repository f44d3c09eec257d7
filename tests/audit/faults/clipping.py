"""Gradients that are clipped wrongly, or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from dpcheck.engine import clipping, kinds, noise, plan, sampling, summing
from dpcheck.engine.sites import matmul, sums

from faults.base import Change, Fault


def _factors(change_one: Any) -> Change:
    """Another factor for each sample, from norms, bound and weights."""
    return lambda original: lambda norms, bound, weights: change_one(original, norms, bound, weights)


def _doubled(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    return original(norms, bound * 1.02, weights)


def _unclipped(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    return weights.expand_as(norms) * 1.0


def _rolled(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    return original(norms.roll(1, 0), bound, weights)


def _by_the_mean(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    return original(norms.mean(0, keepdim=True).expand_as(norms), bound, weights)


def _in_half(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    return original(norms.half().nan_to_num(posinf=0.0).to(norms.dtype), bound, weights)


def _of_the_mean_loss(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    return original(norms / len(norms), bound, weights)


def _squared(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    return original(norms.square(), bound, weights)


def _padding_counts(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    return original(norms, bound, torch.ones_like(weights))


def _scaled_up(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    return weights * bound / norms.clamp_min(1e-12)


_STALE: dict[Any, Any] = {}


def _stale(original: Any, norms: Any, bound: Any, weights: Any) -> Any:
    last = _STALE.get(norms.shape)
    _STALE[norms.shape] = norms
    return original(norms if last is None else last, bound, weights)


def _aggregate(original: Any) -> Any:
    def call(self: Any, batch: Any, weights: Any = None) -> Any:
        bound, self.max_grad_norm = self.max_grad_norm, 1e9
        try:
            found = original(self, batch, weights)
        finally:
            self.max_grad_norm = bound
        norm = sum(float(g.square().sum()) for g in found.grads.values()) ** 0.5
        factor = min(1.0, bound / max(norm, 1e-30))
        return replace(found, grads={n: g * factor for n, g in found.grads.items()})

    return call


def _all_of_it(original: Any) -> Any:
    return lambda self, norms, bound: norms.new_full((len(self.shares),), bound)


def _times(factor: float) -> Change:
    return lambda original: lambda *args, **kwargs: original(*args, **kwargs) * factor


def _mean_of_micro_batches(original: Any) -> Any:
    def contribution(self: Any, clipped: Any) -> Any:
        return {n: g / 2 for n, g in original(self, clipped).items()}

    return contribution


def _drawn_divisor(original: Any) -> Any:
    def sums_of(self: Any, indices: Any, mechanism: Any, norm: float) -> Any:
        total, seen = original(self, indices, mechanism, norm)
        n = len(self.loader.dataset)
        return {name: t * (n / max(1, len(indices))) for name, t in total.items()}, seen

    return sums_of


def _ordinary_gradient_mixed_in(original: Any) -> Any:
    def call(self: Any, batch: Any, weights: Any = None) -> Any:
        found = original(self, batch, weights)
        bound, self.max_grad_norm = self.max_grad_norm, 1e9
        try:
            plain = original(self, batch, weights)
        finally:
            self.max_grad_norm = bound
        return replace(found, grads={n: g + 1e-3 * plain.grads[n] for n, g in found.grads.items()})

    return call


def _last_record_lost(original: Any) -> Any:
    def sums_of(self: Any, indices: Any, mechanism: Any, norm: float) -> Any:
        return original(self, indices[:-1] if len(indices) > 1 else indices, mechanism, norm)

    return sums_of


def _last_batch_again(original: Any) -> Any:
    def physical(self: Any, indices: Any) -> Any:
        last = None
        for last in original(self, indices):
            yield last
        if last is not None:
            yield last

    return physical


def _past_the_ball(original: Any) -> Any:
    """To the nearest point of the grid, wherever that is."""

    def contribution(self: Any, clipped: Any) -> Any:
        return {n: (g.double() / self.gamma).round().to(torch.int64) for n, g in clipped.items()}

    return contribution


def _read_next(original: Any) -> Any:
    return lambda self, indices: original(self, (indices + 1) % len(self.dataset))


C = clipping.Clipper
FAULTS = [
    Fault("clipping norm 2 % too large", kinds, "clip_factors", _factors(_doubled)),
    Fault("nothing is clipped", kinds, "clip_factors", _factors(_unclipped), "opacus #664"),
    Fault("clipped by the norm of another sample", kinds, "clip_factors", _factors(_rolled)),
    Fault("clipped by the mean of the norms", kinds, "clip_factors", _factors(_by_the_mean)),
    Fault("norms overflow in half precision", kinds, "clip_factors", _factors(_in_half)),
    Fault("norms of the mean loss, gradients of the sum", kinds, "clip_factors", _factors(_of_the_mean_loss),
          "loss_reduction of the wrong kind"),
    Fault("norms are squared", kinds, "clip_factors", _factors(_squared)),
    Fault("padding counts as a record", kinds, "clip_factors", _factors(_padding_counts)),
    Fault("small gradients are scaled up", kinds, "clip_factors", _factors(_scaled_up)),
    Fault("norms of the step before", kinds, "clip_factors", _factors(_stale)),
    Fault("the aggregate is clipped", C, "__call__", _aggregate, "Tramer et al. 2202.12219"),
    Fault("each layer is clipped to C", kinds.Grouping, "bounds", _all_of_it, settings={"clipping": "per-layer"}),
    Fault("bias left out of a norm", sums.SumSite, "per_sample", _times(0.0), "opacus #751"),
    Fault("ghost norm of the mean over time", matmul, "ghost_square_norms", _times(0.25)),
    Fault("the mean over micro-batches", noise.Gaussian, "contribution", _mean_of_micro_batches),
    Fault("division by the drawn batch", summing.Summer, "sum", _drawn_divisor, "opacus #571"),
    Fault("an ordinary gradient is mixed in", C, "__call__", _ordinary_gradient_mixed_in),
    Fault("the last record of a draw is lost", summing.Summer, "sum", _last_record_lost),
    Fault("the last physical batch is summed twice", sampling.Loader, "physical", _last_batch_again,
          "micro-batch sensitivity doubled"),
    Fault("rounding to the grid goes beyond C", noise.GridGaussian, "contribution", _past_the_ball),
    Fault("the records after those drawn are read", sampling.Loader, "chunks", _read_next),
    Fault("norms forget the largest parameter", plan, "_total", _times(0.5)),
]  # fmt: skip
