"""Clipped sums of per-sample gradients: the graph's plan, or a fallback, chosen by what is proven."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import replace
from typing import Any, Literal

import torch
from dpcheck.engine import fallback
from dpcheck.engine.buffers import store
from dpcheck.engine.clipped import Clipped, joined
from dpcheck.engine.contributions import NotCovered
from dpcheck.engine.gradients import complete, whole
from dpcheck.engine.kinds import Clipping, Grouping, grouping_of, kind_of
from dpcheck.engine.plan import Plan, PlanResult, compiled, run_plan
from dpcheck.engine.plans import Planned, Plans, Room
from dpcheck.engine.provable import key_of, provable
from dpcheck.engine.refusals import NotFinite, check_finite, lacks_memory, no_memory, not_compiled
from dpcheck.engine.second import best_plan
from torch import Tensor, nn

from dpcheck import inputs
from dpcheck.capture import LossFn
from dpcheck.errors import DpcheckError
from dpcheck.unit import Unit, adapted

log = logging.getLogger("dpcheck")

Method = Literal["auto", "graph", "vmap", "single"]


class Clipper:
    """``clipper(batch, weights) -> Clipped`` for one model and loss.

    Args:
        model: left as it is, but for buffers that the forward derives from weights or constants.
        loss_fn: ``loss_fn(model, batch) -> losses [B]``.
        max_grad_norm: C, positive, the L2 sensitivity of the whole sum. It may be set between calls.
        clipping: the kind, or its name; see :mod:`dpcheck.engine.kinds`.
        method: ``auto`` takes the graph where samples are proven independent and every gradient has a sampler, else
            ``vmap(grad)`` of the model, else one sample at a time. The fallbacks evaluate every sample alone.
        memory_budget: bytes that one forward and backward may take, by an estimate: what would take more is computed
            in parts. Of ``vmap`` only the gradients are estimated.
        compile: plans are compiled (``torch.compile``), at some seconds to minutes for each shape of batch.

    Raises:
        DpcheckError: for a model whose samples mix, bad losses; :class:`NotFinite` for gradients that are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        *,
        max_grad_norm: float,
        method: Method = "auto",
        clipping: Clipping | str = "flat",
        memory_budget: int | None = None,
        compile: bool = False,
    ) -> None:
        if not (isinstance(max_grad_norm, int | float) and 0 < max_grad_norm < float("inf")):
            raise DpcheckError(f"max_grad_norm must be a positive number, not {max_grad_norm!r}")
        if method not in ("auto", "graph", "vmap", "single"):
            raise DpcheckError(f"method must be auto, graph, vmap or single, not {method!r}")
        self.model, self.loss_fn, self.max_grad_norm = model, loss_fn, float(max_grad_norm)
        self.clipping, self.memory_budget, self.compile = kind_of(clipping), memory_budget, compile
        self._wanted: Method = method
        self.method: str = "undecided" if method == "auto" else method
        self.reason = ""
        self._plans = Plans()
        self._room = Room()
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
        if size == 1 and self._by_graph:
            # The plan needs two samples to tell them apart; the second weighs nothing.
            both = self(inputs.take(batch, [0, 0]), torch.cat([weights, weights.new_zeros(1)]))
            return replace(both.samples(1), grads=both.grads)
        limit = self._limit(batch, size)
        if size > limit:
            return self._in_parts(batch, weights, limit)
        try:
            planned, short = self._planned(batch), False
        except Exception as error:
            planned, short = None, lacks_memory(error) and size > 2
            if not short:
                raise
        if short:
            return self._in_parts(batch, weights, self._halve(size))
        if planned is None:
            return self._by_fallback(batch, weights)
        if size > planned.at_once:
            return self._in_parts(batch, weights, planned.at_once)
        return self._by_plan(planned.plan, batch, weights)

    def sites(self) -> dict[str, tuple[str, ...]]:
        """The kinds of site that make each parameter's gradient, by the latest plan; empty for a fallback."""
        plan = self._plans.latest()
        if self.method != "graph" or plan is None:
            return {}
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

    @property
    def _by_graph(self) -> bool:
        return self.method in ("undecided", "graph")

    def plan(self, batch: Any) -> Plan | None:
        """The plan for batches like this one, of at least two samples; ``None`` for a fallback (see ``reason``)."""
        planned = self._planned(batch)
        return None if planned is None else planned.plan

    def _planned(self, batch: Any) -> Planned | None:
        if not self._by_graph:
            return None
        key = key_of(self.model, batch)
        planned = self._plans.get(key)
        if planned is None:
            plan, size = self._make(batch), inputs.batch_size(batch)
            if plan is None:
                return None
            plan = compiled(plan) if self.compile else plan
            planned = Planned.of(plan, size, self.memory_budget)
            if planned.at_once < size:
                log.info("%d of %d samples at once, to keep within the memory budget", planned.at_once, size)
            self._plans.put(key, planned)
        return planned

    def _limit(self, batch: Any, size: int) -> int:
        limit = int(min(self._at_most, size))
        return self._room.limit(batch, limit, self.memory_budget, self._make) if self._by_graph else limit

    def _make(self, batch: Any) -> Plan | None:
        analysis = provable(self.model, self.loss_fn, batch)
        if isinstance(analysis, str):
            return self._fall_back(analysis)
        try:
            plan = best_plan(analysis, grouping=self.grouping())
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
            return self._in_parts(batch, weights, self._halve(len(weights)))
        losses, norms, grads, after = found
        clipped = self._checked(plan.grouping, weights, (losses, norms, grads))
        store(self.model, after)
        return clipped

    def _run(self, plan: Plan, batch: Any, weights: Tensor) -> PlanResult | None:
        """What the plan computes; ``None``, and fewer samples at once from now on, where memory does not suffice."""
        size = len(weights)
        try:
            return run_plan(plan, self.model, batch, weights, self.max_grad_norm)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise (not_compiled(error) or error) from error
            if size <= 2:
                raise no_memory(size) from error
        # Out of the handler: the error holds what the plan had computed so far.
        return None

    def _halve(self, size: int) -> int:
        self._at_most = (size + 1) // 2
        log.warning("out of memory with %d samples at once: continued with %d at once", size, self._at_most)
        return self._at_most

    def _in_parts(self, batch: Any, weights: Tensor, step: int) -> Clipped:
        """The same sums, of at most ``step`` samples at a time. Nothing is written before a part is computed."""
        size, parts = len(weights), list[Clipped]()
        step = math.ceil(size / math.ceil(size / step))
        for first in range(0, size, step):
            own = list(range(first, min(first + step, size)))
            # The last part is filled up: another size would be another plan.
            taken, count = [*own, *[first] * (step - len(own))], len(own)
            given = torch.cat([weights[own], weights.new_zeros(step - count)])
            try:
                part = self(inputs.take(batch, taken), given)
            except NotFinite as error:
                raise NotFinite(sorted({taken[i] for i in error.samples})) from None
            parts.append(replace(part.samples(count), grads=part.grads))
        return joined(parts)

    # -- the fallbacks

    def _by_fallback(self, batch: Any, weights: Tensor) -> Clipped:
        size, grouping = len(weights), self.grouping()

        def factors(norms: Tensor, own: Tensor) -> dict[str, Tensor]:
            columns = grouping.factors(norms, self.max_grad_norm, own.to(norms.dtype)).unbind(1)
            return {name: columns[group] for name, group in grouping.of.items()}

        given = self.model, self.loss_fn, batch, weights, grouping, factors
        if self.method == "vmap":
            if size > self._vmap_at_once():
                return self._in_parts(batch, weights, self._vmap_at_once())
            short = False
            try:
                return self._checked(grouping, weights, fallback.vmap_sums(*given))
            except DpcheckError:
                raise
            except Exception as error:
                short = lacks_memory(error) and size > 1
                if not short and self._wanted == "vmap":
                    raise DpcheckError(f"method='vmap' cannot be used: {error}", next="use method='auto'") from error
                kind = type(error).__name__
            if short:
                return self._in_parts(batch, weights, self._halve(size))
            self.method = "single"
            self.reason += f"; vmap: {kind}"
        try:
            found = fallback.single_sums(*given)
        except Exception as error:
            if lacks_memory(error):
                raise no_memory(1) from error
            raise
        return self._checked(grouping, weights, found)

    def _checked(self, grouping: Grouping, weights: Tensor, found: fallback.Sums) -> Clipped:
        losses, norms, grads = found
        check_finite(losses, whole(norms), weights)
        return self._result(grouping, losses, norms, grads)

    def _vmap_at_once(self) -> int:
        # The gradients of all samples, and what they are made of.
        each = 2 * sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        return sys.maxsize if self.memory_budget is None else max(1, self.memory_budget // each)


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
