"""Clipped sums of per-sample gradients: the graph's plan, or a fallback, chosen by what is proven."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from dpcheck.engine import fallback
from dpcheck.engine.buffers import store
from dpcheck.engine.contributions import NotCovered
from dpcheck.engine.fingerprint import fingerprint
from dpcheck.engine.gradients import complete, norms_of
from dpcheck.engine.plan import Plan, clip_factors, make_plan
from dpcheck.engine.precision import casting, without_autocast, without_cache
from dpcheck.engine.refusals import check_finite, lacks_memory, mixing, no_memory
from dpcheck.engine.sites.base import weighted_of, wide
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.capture import CaptureFailure, LossFn, capture
from dpcheck.errors import DpcheckError
from dpcheck.samplesets import analyse
from dpcheck.unit import Unit, adapted

log = logging.getLogger("dpcheck")

Method = Literal["auto", "graph", "vmap", "single"]
PlanResult = tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]
_CACHE = 16


@dataclass(frozen=True)
class Clipped:
    """The result of one call.

    Attributes:
        grads: by parameter name, ``sum_i weights[i] * min(1, C / norm_i) * g_i``, in the parameter's shape and dtype.
        norms: L2 norm of every sample's whole gradient before clipping, [B], float32 or wider. Not private.
        losses: [B]. Not private.
    """

    grads: dict[str, Tensor]
    norms: Tensor
    losses: Tensor


class Clipper:
    """``clipper(batch, weights) -> Clipped`` for one model and loss.

    Args:
        model: left as it is, but for buffers that the forward derives from weights or constants.
        loss_fn: ``loss_fn(model, batch) -> losses [B]``.
        max_grad_norm: the clipping norm C, positive.
        method: ``auto`` takes the graph where samples are proven independent and every gradient has a sampler, else
            ``vmap(grad)`` of the model, else one sample at a time. The fallbacks evaluate every sample alone.

    Raises:
        DpcheckError: for a model whose samples mix, bad losses, gradients that are not finite.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, *, max_grad_norm: float, method: Method = "auto") -> None:
        if not (isinstance(max_grad_norm, int | float) and 0 < max_grad_norm < float("inf")):
            raise DpcheckError(f"max_grad_norm must be a positive number, not {max_grad_norm!r}")
        if method not in ("auto", "graph", "vmap", "single"):
            raise DpcheckError(f"method must be auto, graph, vmap or single, not {method!r}")
        self.model, self.loss_fn, self.max_grad_norm = model, loss_fn, float(max_grad_norm)
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
            return Clipped(both.grads, both.norms[:1], both.losses[:1])
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

    def _nothing(self, device: torch.device) -> Clipped:
        zeros = {n: torch.zeros_like(p) for n, p in self.model.named_parameters() if p.requires_grad}
        return Clipped(zeros, torch.zeros(0, device=device), torch.zeros(0, device=device))

    # -- the graph

    def plan(self, batch: Any) -> Plan | None:
        """The plan for batches like this one, of at least two samples; ``None`` for a fallback (see ``reason``)."""
        return self._plan(batch) if self.method in ("undecided", "graph") else None

    def _plan(self, batch: Any) -> Plan | None:
        key = self._key(batch)
        if key not in self._plans:
            plan = self._make(batch)
            if plan is None:
                return None
            self._plans[key] = plan
            if len(self._plans) > _CACHE:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _key(self, batch: Any) -> Any:
        leaves, spec = pytree.tree_flatten(batch)
        shapes = tuple((tuple(x.shape), x.dtype, str(x.device)) if isinstance(x, Tensor) else repr(x) for x in leaves)
        state = tuple(fingerprint(self.model).items())
        tensors = tuple((id(p), p.shape, p.dtype, p.device, p.requires_grad) for p in self.model.parameters())
        return shapes, str(spec), state, tensors, casting()

    def _make(self, batch: Any) -> Plan | None:
        result = capture(self.model, self.loss_fn, batch)
        if isinstance(result, CaptureFailure):
            where = f" at {result.location}" if result.location else ""
            return self._fall_back(f"the graph could not be captured: {result.reason}{where}")
        if result.touched.python_random:
            return self._fall_back("the forward draws Python or NumPy random numbers, which a graph would freeze")
        if result.touched.attributes:
            return self._fall_back(f"the forward changes Python state ({', '.join(result.touched.attributes[:3])})")
        if any(after is not result.parameters[n] for n, after in result.parameters_after.items()):
            raise DpcheckError("the forward overwrites a parameter, without noise", next="run dpcheck.check")
        analysis = analyse(result)
        refuted = [event for event in analysis.events if event.kind in ("forward", "backward")]
        if refuted:
            raise mixing(refuted[0])
        leaks = [b for b in analysis.buffers if b.kind == "data"]
        if leaks:
            raise DpcheckError(
                f"the buffer {leaks[0].name} is written from data and would be saved without noise",
                where=str(leaks[0].location) if leaks[0].location else leaks[0].name,
                next="run dpcheck.check(model, loss_fn, batch) for the findings, or dpcheck.fix",
            )
        if analysis.events:
            event = analysis.events[0]
            return self._fall_back(f"independence is unproven: {event.op} {event.reason}")
        try:
            plan = make_plan(analysis)
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
        check_finite(losses, norms, weights)
        store(self.model, after)
        return Clipped(complete(dict(self.model.named_parameters()), grads), norms, losses)

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
        return Clipped(total, torch.cat([p.norms for p in parts]), torch.cat([p.losses for p in parts]))

    # -- the fallbacks

    def _by_fallback(self, batch: Any, weights: Tensor) -> Clipped:
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
                return self._one_by_one(batch, weights)
            norms = norms_of(each)
            check_finite(losses, norms, weights)
            factors = clip_factors(norms, self.max_grad_norm, weights.to(norms.dtype))
            with without_autocast():
                grads = {n: weighted_of(factors, wide(g)) for n, g in each.items()}
            return Clipped(complete(dict(self.model.named_parameters()), grads), norms, losses)
        return self._one_by_one(batch, weights)

    def _one_by_one(self, batch: Any, weights: Tensor) -> Clipped:
        parameters = dict(self.model.named_parameters())
        total = {n: torch.zeros_like(p) for n, p in parameters.items() if p.requires_grad}
        losses, norms = [], []
        for i in range(len(weights)):
            with without_cache():
                loss, grads = fallback.single_gradient(self.model, self.loss_fn, batch, i)
            norm = norms_of({n: g.unsqueeze(0) for n, g in grads.items()})
            check_finite(loss.view(1), norm, weights[i : i + 1], first=i)
            factor = clip_factors(norm, self.max_grad_norm, weights[i : i + 1].to(norm.dtype))
            for name, grad in grads.items():
                total[name] += factor.to(grad.dtype) * grad
            losses.append(loss)
            norms.append(norm)
        return Clipped(total, torch.cat(norms), torch.stack(losses))


def clipped_grads(
    model: nn.Module, loss_fn: LossFn, batch: Any, max_grad_norm: float = 1.0, *, unit: Unit | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum over the batch of clipped per-sample gradients, by parameter name, and the norms [B] before clipping.

    There is no noise in it: this is not private, and is meant for tests and for engines of your own. A sample is one
    index of axis 0 of every tensor, or what ``unit`` says (:class:`dpcheck.Unit`).

    Raises:
        DpcheckError: as :class:`Clipper`.
    """
    loss_fn, batch = adapted(unit, loss_fn, batch)
    result = Clipper(model, loss_fn, max_grad_norm=max_grad_norm)(batch)
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


def run_plan(plan: Plan, model: nn.Module, batch: Any, weights: Tensor, max_grad_norm: float) -> PlanResult:
    """Losses [B], norms [B], gradients and the buffers' new values by name; nothing of the model is written."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    leaves = [x for x in pytree.tree_leaves(batch) if isinstance(x, Tensor)]
    double = any(p.dtype in (torch.float64, torch.complex128) for p in parameters.values())
    dtype = torch.float64 if double else torch.float32
    with torch.no_grad(), without_autocast():
        losses, norms, grads, after = plan.module(
            *parameters.values(), *buffers.values(), *leaves, torch.ones_like(weights), weights.to(dtype), max_grad_norm
        )
    return losses, norms, dict(zip(plan.gradients, grads, strict=True)), dict(zip(plan.buffers, after, strict=True))
