"""Clipped sums of per-sample gradients: the graph's plan, or a fallback, chosen by what is proven."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from dpcheck.engine import fallback
from dpcheck.engine.buffers import store
from dpcheck.engine.contributions import NotCovered
from dpcheck.engine.gradients import complete, norms_of, whole
from dpcheck.engine.kinds import Clipping, Grouping, grouping_of, kind_of
from dpcheck.engine.plan import Plan, PlanResult, make_plan, run_plan
from dpcheck.engine.precision import without_autocast, without_cache
from dpcheck.engine.provable import key_of, provable
from dpcheck.engine.refusals import check_finite, lacks_memory, no_memory
from dpcheck.engine.sites.base import weighted_of, wide
from torch import Tensor, nn

from dpcheck import inputs
from dpcheck.capture import CaptureFailure, LossFn, capture
from dpcheck.errors import DpcheckError
from dpcheck.samplesets import analyse
from dpcheck.unit import Unit, adapted

log = logging.getLogger("dpcheck")

Method = Literal["auto", "graph", "vmap", "single"]
_CACHE = 16


@dataclass(frozen=True)
class Clipped:
    """The result of one call.

    Attributes:
        grads: by parameter name, ``sum_i weights[i] * factor_i * g_i``, in the parameter's shape and dtype; the
            factor is ``min(1, C / norm_i)`` of the parameter's group (one group if flat), or that of another kind.
        norms: L2 norm of every sample's whole gradient before clipping, [B], float32 or wider. Not private.
        losses: [B]. Not private.
        group_norms: the same of each group of parameters, by its name, where groups are clipped apart. Not private.
    """

    grads: dict[str, Tensor]
    norms: Tensor
    losses: Tensor
    group_norms: dict[str, Tensor] = field(default_factory=dict)

    def samples(self, count: int) -> Clipped:
        """Norms and losses of the first ``count`` samples, without the sum."""
        groups = {name: norms[:count] for name, norms in self.group_norms.items()}
        return Clipped({}, self.norms[:count], self.losses[:count], groups)


class Clipper:
    """``clipper(batch, weights) -> Clipped`` for one model and loss.

    Args:
        model: left as it is, but for buffers that the forward derives from weights or constants.
        loss_fn: ``loss_fn(model, batch) -> losses [B]``.
        max_grad_norm: C, positive, the L2 sensitivity of the whole sum. It may be set between calls.
        clipping: the kind, or its name; see :mod:`dpcheck.engine.kinds`.
        method: ``auto`` takes the graph where samples are proven independent and every gradient has a sampler, else
            ``vmap(grad)`` of the model, else one sample at a time. The fallbacks evaluate every sample alone.

    Raises:
        DpcheckError: for a model whose samples mix, bad losses, gradients that are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        *,
        max_grad_norm: float,
        method: Method = "auto",
        clipping: Clipping | str = "flat",
    ) -> None:
        if not (isinstance(max_grad_norm, int | float) and 0 < max_grad_norm < float("inf")):
            raise DpcheckError(f"max_grad_norm must be a positive number, not {max_grad_norm!r}")
        if method not in ("auto", "graph", "vmap", "single"):
            raise DpcheckError(f"method must be auto, graph, vmap or single, not {method!r}")
        self.model, self.loss_fn, self.max_grad_norm = model, loss_fn, float(max_grad_norm)
        self.clipping = kind_of(clipping)
        self._wanted: Method = method
        self.method: str = "undecided" if method == "auto" else method
        self.reason = ""
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        # Samples at once; halved when memory runs out.
        self._at_most: float = math.inf

    def __call__(self, batch: Any, weights: Tensor | None = None) -> Clipped:
        """Clip and sum. ``weights`` [B] is 1 for a sample and 0 for padding."""
        size = inputs.batch_size(batch)
        if not any(p.requires_grad for p in self.model.parameters()):
            raise DpcheckError("the model has no trainable parameter", next="set requires_grad=True on those to train")
        device = next(self.model.parameters()).device
        if weights is None:
            weights = torch.ones(size, device=device)
        if weights.shape != (size,):
            raise DpcheckError(f"weights have shape {list(weights.shape)}, not [{size}]")
        if size == 0:
            return self._nothing(device)
        if size == 1:
            # The plan needs two samples to tell them apart; the second weighs nothing.
            both = self(inputs.take(batch, [0, 0]), torch.cat([weights, weights.new_zeros(1)]))
            return replace(both.samples(1), grads=both.grads)
        if size > self._at_most:
            return self._in_parts(batch, weights)
        plan = self.plan(batch)
        return self._by_plan(plan, batch, weights) if plan is not None else self._by_fallback(batch, weights)

    def sites(self) -> dict[str, tuple[str, ...]]:
        """The kinds of site that make each parameter's gradient, by the latest plan; empty for a fallback."""
        if self.method != "graph" or not self._plans:
            return {}
        plan = next(reversed(self._plans.values()))
        return {c.name: tuple(plan.sites[i].kind for i in c.sites) for c in plan.contributions}

    def grouping(self) -> Grouping:
        """The groups of the parameters that are trainable now."""
        return grouping_of(self.clipping, [n for n, p in self.model.named_parameters() if p.requires_grad])

    def _nothing(self, device: torch.device) -> Clipped:
        grouping, none = self.grouping(), torch.zeros(0, device=device)
        return self._result(grouping, none, none.new_zeros(0, len(grouping.names)), {})

    def _result(self, grouping: Grouping, losses: Tensor, norms: Tensor, grads: dict[str, Tensor]) -> Clipped:
        """From norms by group, [B, G]."""
        groups = dict(zip(grouping.names, norms.unbind(1), strict=True)) if len(grouping.names) > 1 else {}
        return Clipped(complete(dict(self.model.named_parameters()), grads), whole(norms), losses, groups)

    # -- the graph

    def plan(self, batch: Any) -> Plan | None:
        """The plan for batches like this one, of at least two samples; ``None`` for a fallback (see ``reason``)."""
        return self._plan(batch) if self.method in ("undecided", "graph") else None

    def _plan(self, batch: Any) -> Plan | None:
        key = key_of(self.model, batch)
        if key not in self._plans:
            plan = self._make(batch)
            if plan is None:
                return None
            self._plans[key] = plan
            if len(self._plans) > _CACHE:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _make(self, batch: Any) -> Plan | None:
        analysis = provable(self.model, self.loss_fn, batch)
        if isinstance(analysis, str):
            return self._fall_back(analysis)
        try:
            plan = make_plan(analysis, grouping=self.grouping())
        except NotCovered as missing:
            return self._fall_back(str(missing))
        self.method = "graph"
        return plan

    def _fall_back(self, reason: str) -> Plan | None:
        if self._wanted == "graph":
            raise DpcheckError(f"method='graph' cannot be used: {reason}", next="use method='auto'")
        self.method, self.reason = "vmap", reason
        return None

    def _by_plan(self, plan: Plan, batch: Any, weights: Tensor) -> Clipped:
        found = self._run(plan, batch, weights)
        if found is None:
            return self._in_parts(batch, weights)
        losses, norms, grads, after = found
        check_finite(losses, whole(norms), weights)
        store(self.model, after)
        return self._result(plan.grouping, losses, norms, grads)

    def _run(self, plan: Plan, batch: Any, weights: Tensor) -> PlanResult | None:
        """What the plan computes; ``None``, and fewer samples at once from now on, where memory does not suffice."""
        size = len(weights)
        try:
            return run_plan(plan, self.model, batch, weights, self.max_grad_norm)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            if size <= 2:
                raise no_memory(size) from error
        # Out of the handler: the error holds what the plan had computed so far.
        self._at_most = (size + 1) // 2
        log.warning("out of memory with %d samples at once: continued with %d at once", size, self._at_most)
        return None

    def _in_parts(self, batch: Any, weights: Tensor) -> Clipped:
        """The same sums, of a few samples at a time. Nothing is written before a part is computed."""
        size, step = len(weights), int(self._at_most)
        ranges = [list(range(first, min(first + step, size))) for first in range(0, size, step)]
        parts = [self(inputs.take(batch, own), weights[own]) for own in ranges]
        total = parts[0].grads
        for part in parts[1:]:
            for name, grad in part.grads.items():
                total[name].add_(grad)
        groups = {name: torch.cat([p.group_norms[name] for p in parts]) for name in parts[0].group_norms}
        return Clipped(total, torch.cat([p.norms for p in parts]), torch.cat([p.losses for p in parts]), groups)

    # -- the fallbacks

    def _by_fallback(self, batch: Any, weights: Tensor) -> Clipped:
        grouping = self.grouping()
        if self.method == "vmap":
            try:
                with without_cache():
                    losses, each = fallback.vmap_gradients(self.model, self.loss_fn, batch)
            except DpcheckError:
                raise
            except Exception as error:
                if self._wanted == "vmap":
                    raise DpcheckError(f"method='vmap' cannot be used: {error}", next="use method='auto'") from error
                self.method = "single"
                self.reason += f"; vmap: {type(error).__name__}"
                return self._one_by_one(batch, weights, grouping)
            norms = norms_of(each, grouping)
            check_finite(losses, whole(norms), weights)
            factors = self._factors(grouping, norms, weights)
            with without_autocast():
                grads = {n: weighted_of(factors[n], wide(g)) for n, g in each.items()}
            return self._result(grouping, losses, norms, grads)
        return self._one_by_one(batch, weights, grouping)

    def _one_by_one(self, batch: Any, weights: Tensor, grouping: Grouping) -> Clipped:
        total = {n: torch.zeros_like(p) for n, p in self.model.named_parameters() if p.requires_grad}
        losses, norms = [], []
        for i in range(len(weights)):
            with without_cache():
                loss, grads = fallback.single_gradient(self.model, self.loss_fn, batch, i)
            norm = norms_of({n: g.unsqueeze(0) for n, g in grads.items()}, grouping)
            check_finite(loss.view(1), whole(norm), weights[i : i + 1], first=i)
            factors = self._factors(grouping, norm, weights[i : i + 1])
            for name, grad in grads.items():
                total[name] += factors[name].to(grad.dtype) * grad
            losses.append(loss)
            norms.append(norm)
        return self._result(grouping, torch.stack(losses), torch.cat(norms), total)

    def _factors(self, grouping: Grouping, norms: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """By parameter name, [B]."""
        factors = grouping.factors(norms, self.max_grad_norm, weights.to(norms.dtype)).unbind(1)
        return {name: factors[group] for name, group in grouping.of.items()}


def clipped_grads(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    max_grad_norm: float = 1.0,
    *,
    unit: Unit | None = None,
    clipping: Clipping | str = "flat",
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum over the batch of clipped per-sample gradients, by parameter name, and the norms [B] before clipping.

    There is no noise in it: this is not private, and is meant for tests and for engines of your own. A sample is one
    index of axis 0 of every tensor, or what ``unit`` says (:class:`dpcheck.Unit`); ``clipping`` is as in
    :class:`Clipper`.

    Raises:
        DpcheckError: as :class:`Clipper`.
    """
    loss_fn, batch = adapted(unit, loss_fn, batch)
    result = Clipper(model, loss_fn, max_grad_norm=max_grad_norm, clipping=clipping)(batch)
    return result.grads, result.norms


def per_sample_grads(model: nn.Module, loss_fn: LossFn, batch: Any) -> tuple[dict[str, Tensor], str]:
    """Every sample's gradients [B, *shape] from the graph's samplers, and the reason if there are none (then empty)."""
    size = inputs.batch_size(batch)
    if size == 1:
        grads, reason = per_sample_grads(model, loss_fn, inputs.take(batch, [0, 0]))
        return {name: g[:1] for name, g in grads.items()}, reason
    result = capture(model, loss_fn, batch)
    if isinstance(result, CaptureFailure):
        return {}, result.reason
    analysis = analyse(result)
    if not analysis.proven:
        return {}, f"{analysis.events[0].op} {analysis.events[0].reason}"
    try:
        plan = make_plan(analysis, per_sample=True)
    except NotCovered as missing:
        return {}, str(missing)
    ones = torch.ones(size, device=next(model.parameters()).device)
    grads = run_plan(plan, model, batch, ones, 1.0)[2]
    for name, p in model.named_parameters():
        if p.requires_grad and name not in grads:
            grads[name] = p.new_zeros(size, *p.shape)
    return grads, ""
