"""What dpcheck's fixer and Opacus's make of one model of a zoo."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from zoo_models.entry import Case, Entry

import dpcheck
from dpcheck.capture import run_losses
from dpcheck.oracle import isolate

# Float32 sums of per-sample gradients against the gradient of the sum: a wrong sampler is off by 0.1 or more.
AGREE = 1e-2


def judge(entry: Entry) -> dict[str, Any]:
    """Both answers about one model, as plain data.

    Keys: ``mixes`` (whether dpcheck's check says so), ``fixed`` (``dpcheck.fix(unsafe=True)`` left a model that the
    check proves, without findings), ``stepped`` (the private steps, empty batch and checkpoint of the fix's rehearsal
    ran), ``verified`` (by :func:`dpcheck.verify`, with its largest
    errors ``float64`` and ``own``), ``why`` not, ``loss_change``, ``opacus`` (see :func:`opacus`);
    ``crash``, when something raised.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        model, loss_fn, batch = entry.make()
        run_losses(model, loss_fn, batch)
    except Exception as error:
        return {"mixes": False, "broken": f"{type(error).__name__}: {error}"[:400]}
    start = time.process_time()
    answer: dict[str, Any] = {}
    try:
        answer = ours(model, loss_fn, batch)
    except Exception as error:
        answer = {"crash": f"{type(error).__name__}: {error}"[:400]}
    answer["cpu_seconds"] = time.process_time() - start
    if answer.get("mixes", True):
        answer["opacus"] = opacus((model, loss_fn, batch))
    return answer


def ours(model: nn.Module, loss_fn: Any, batch: Any) -> dict[str, Any]:
    result = dpcheck.fix(model, loss_fn, batch, unsafe=True)
    answer: dict[str, Any] = {"mixes": result.before.verdict == "mixing", "why": ""}
    if not answer["mixes"]:
        return answer
    answer |= {
        "fixed": result.report.ok,
        "stepped": result.report.ok and result.problem is None,
        "applied": sum(c.applied for c in result.changes),
        "loss_change": result.loss_change,
        "why": result.problem or "; ".join(f"{d.code} {d.message}" for d in result.report.diagnostics)[:400],
    }
    if result.report.ok:
        proof = dpcheck.verify(result.model, loss_fn, batch)
        exact = max(p.error_single for p in proof.parameters)
        own = max((p.error_own_dtype or 0.0 for p in proof.parameters), default=0.0)
        answer |= {"verified": proof.ok, "float64": exact, "own": own}
        if not proof.ok:
            answer["why"] = f"verify: gradients off by {exact:.0e} in float64, {own:.0e} in the model's own dtype"
    return answer


def opacus(case: Case) -> dict[str, Any]:
    """Opacus's fix of the same model.

    Keys: ``raised`` (its fix did), ``mixes`` (its result, by dpcheck's oracle), ``accepts`` (its own validator),
    ``stepped`` (its GradSampleModule ran, every trainable parameter has a gradient for each sample, and these add up
    to the gradient of the summed losses), ``why`` not.
    """
    from opacus.validators import ModuleValidator

    model, loss_fn, batch = case
    try:
        fixed = ModuleValidator.fix(copy.deepcopy(model))
    except Exception as error:
        return {"raised": True, "why": f"fix raised {type(error).__name__}: {error}"[:300]}
    answer: dict[str, Any] = {"accepts": not ModuleValidator.validate(fixed, strict=False)}
    found = isolate(fixed, loss_fn, batch, quick=True)
    answer["mixes"] = found.mixing
    why = _step(fixed, loss_fn, batch)
    answer["stepped"] = why is None
    mixes = f"its samples mix ({found.worst:.0e})" if found.mixing else found.failed
    return answer | {"why": "; ".join(filter(None, (mixes, why)))}


def _step(model: nn.Module, loss_fn: Any, batch: Any) -> str | None:
    from opacus import GradSampleModule

    try:
        wrapped = GradSampleModule(model, loss_reduction="sum")
        losses: Tensor = loss_fn(wrapped, batch)
        losses.sum().backward()
        trained = [(name, p) for name, p in wrapped.named_parameters() if p.requires_grad]
        missing = [name for name, p in trained if getattr(p, "grad_sample", None) is None and p.grad is not None]
        if missing:
            return f"{len(missing)} parameters have no per-sample gradient, such as {missing[0]}"
        for name, p in trained:
            if p.grad is not None and not _adds_up(p.grad_sample, p.grad, len(losses)):  # type: ignore[attr-defined]
                return f"the per-sample gradients of {name} do not add up to its gradient"
    except Exception as error:
        return f"a step raised {type(error).__name__}: {error}"[:300]
    return None


def _adds_up(samples: Any, total: Tensor, size: int) -> bool:
    if not isinstance(samples, Tensor) or samples.shape != (size, *total.shape):
        return False
    return bool((samples.sum(0) - total).norm() <= AGREE * total.norm().clamp_min(1e-6))
