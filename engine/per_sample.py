"""Every sample's gradients from the samplers of the graph."""

from __future__ import annotations

from typing import Any

import torch
from dpcheck.engine.contributions import NotCovered
from dpcheck.engine.plan import make_plan, run_plan
from torch import Tensor, nn

from dpcheck import inputs
from dpcheck.capture import CaptureFailure, LossFn, capture
from dpcheck.samplesets import analyse


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
