"""What dpcheck, the isolation oracle and Opacus say about one model of a zoo."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from zoo_models.entry import Case, Entry

import dpcheck
from dpcheck.api import report_of
from dpcheck.capture import run_losses
from dpcheck.oracle import isolate
from dpcheck.passes import find_facts

# What `fix(unsafe=True)` mends by taking another layer.
BATCH_NORM = frozenset({"DP101", "DP102"})


def judge(entry: Entry, seeds: int, twins: bool, exact: bool) -> dict[str, Any]:
    """Every answer about one model, as plain data.

    Args:
        seeds: how many times weights and batch are drawn for the oracle.
        twins: whether a model with batch norm is also judged with its batch norms replaced.
        exact: whether clipped sums and norms of what is proven are compared with those of single samples.

    Keys: ``verdict``, ``codes``, ``events`` (kind, op, reason, place, what it reaches), ``method``, ``notes``,
    ``seconds`` of the check, ``oracle`` (mixing, worst, comparisons, failures, over all seeds), ``opacus`` (what it
    ``says``, with its errors); ``crash`` instead, when dpcheck raised; ``broken``, when the model itself cannot be
    built or run. ``exact`` has ``ok``, ``method``, largest relative errors ``float64`` and ``own`` (of the gradients),
    ``norms`` and ``clipped`` (in tolerances, see :class:`dpcheck.Proof`), or ``crash``. ``twin`` holds the same for the
    model with its batch norms replaced by ``dpcheck.fix(unsafe=True)``.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        model, loss_fn, batch = entry.make()
        run_losses(model, loss_fn, batch)
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error}"[:400], "where": traceback.format_exc(limit=-3)}
    result = _judged((model, loss_fn, batch), lambda: _others(entry, seeds), exact)
    if twins and result.get("verdict") == "mixing" and BATCH_NORM & set(result["codes"]):
        result["twin"] = _twin(model, loss_fn, batch, exact)
    return result


def _judged(case: Case, others: Callable[[], list[Case]], exact: bool) -> dict[str, Any]:
    """One model. The ``others`` are further draws of it for the oracle."""
    result = _answers(*case)
    if "crash" not in result:
        result["oracle"] = _oracle([case, *others()])
    if exact and result.get("verdict") == "independent":
        result["exact"] = _exact(*case)
    return result


def _crash(error: Exception, what: str = "") -> dict[str, Any]:
    return {"crash": f"{what}{type(error).__name__}: {error}"[:400], "where": traceback.format_exc(limit=-6)}


def _exact(model: nn.Module, loss_fn: Any, batch: Any) -> dict[str, Any]:
    try:
        proof = dpcheck.verify(model, loss_fn, batch)
    except Exception as error:
        return _crash(error, "verify: ")
    wrong = [p.name for p in proof.parameters if not p.ok]
    return {
        "ok": proof.ok,
        "method": proof.method,
        "reason": proof.reason,
        "dtype": str(proof.dtype),
        "float64": max((p.error_single for p in proof.parameters), default=0.0),
        "own": max((p.error_own_dtype or 0.0 for p in proof.parameters), default=0.0),
        "norms": proof.error_norms,
        "clipped": proof.error_clipped,
        "wrong": wrong[:5],
        "notes": list(proof.notes),
        "seconds": proof.seconds,
    }


def _others(entry: Entry, seeds: int) -> list[Case]:
    cases = []
    for seed in range(1, seeds):
        torch.manual_seed(seed)
        cases.append(entry.make())
    return cases


def _answers(model: nn.Module, loss_fn: Any, batch: Any) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        facts = find_facts(model, loss_fn, batch)
        report = report_of(facts)
    except Exception as error:
        return _crash(error)
    seconds = time.perf_counter() - start
    return {
        "verdict": report.verdict,
        "codes": sorted({d.code for d in report.diagnostics}),
        "events": [
            {
                "kind": e.kind, "op": e.op, "reason": e.reason, "reaches": list(e.reaches)[:4],
                "at": str(e.origin.location) if e.origin else None, "refuted": e.refuted,
            }
            for e in facts.events
        ],
        "method": report.method,
        "notes": list(report.notes),
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "nodes": len(facts.capture.graph.graph.nodes) if facts.capture else None,
        "opacus": opacus(model),
    }  # fmt: skip


def _oracle(cases: list[Case]) -> dict[str, Any]:
    start = time.perf_counter()
    results = [isolate(*case) for case in cases]
    return {
        "mixing": any(r.mixing for r in results),
        "worst": max(r.worst for r in results),
        "compared": max(results, key=lambda r: r.worst).compared,
        "comparisons": sum(r.comparisons for r in results),
        "failed": [r.failed for r in results if r.failed],
        "seconds": time.perf_counter() - start,
    }


def _twin(model: nn.Module, loss_fn: Any, batch: Any, exact: bool) -> dict[str, Any]:
    try:
        fixed = dpcheck.fix(model, loss_fn, batch, unsafe=True).model
    except Exception as error:
        return _crash(error, "fix: ")
    return _judged((fixed, loss_fn, batch), list, exact)


def opacus(model: nn.Module) -> dict[str, Any]:
    """The answer of Opacus's validator, which looks at the types of the modules."""
    try:
        from opacus.validators import ModuleValidator
    except ImportError:
        return {"says": "not installed", "errors": []}
    try:
        errors = ModuleValidator.validate(model, strict=False)
    except Exception as error:
        return {"says": "raised", "errors": [f"{type(error).__name__}: {error}"[:200]]}
    return {"says": "refuses" if errors else "accepts", "errors": [str(e)[:200] for e in errors[:5]]}
