"""For test suites: is this layer's per-sample gradient right, is this model private, is its sensitivity bounded?

``modules()``, ``embeddings()`` and the other strategies make :class:`Case` objects for hypothesis; a failing one
shrinks to a small module, and is printed as code that reproduces it. For a layer of your own::

    @given(batch=batches(like=(torch.randn(4, 8),)))
    def test_my_layer(batch):
        assert_sampler_correct(MyLayer(), batch, method="graph")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.api import check
from dpcheck.capture import LossFn
from dpcheck.cases import Applied, Case, output_losses
from dpcheck.determinism import FixedChance
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.kinds import Clipping
from dpcheck.errors import DpcheckError
from dpcheck.sandbox import sandbox, swapped
from dpcheck.unit import Unit, adapted
from dpcheck.verification import Proof, copies, verify

try:
    from dpcheck.layers import layers, modules
    from dpcheck.sequences import attentions, cells, recurrents
    from dpcheck.strategies import (
        arguments,
        bags,
        batches,
        compositions,
        convolutions,
        embeddings,
        linears,
        norms,
        parametrized,
        transposed_convolutions,
    )
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ModuleNotFoundError(
        "dpcheck.testing needs hypothesis: pip install 'dpcheck[testing]'", name="hypothesis"
    ) from error

# The clipped sum is rounded to the parameters' dtype, so a bound holds up to this.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
FACTOR = 1e4


def assert_sampler_correct(
    module: nn.Module | Callable[..., Any] | Case,
    batch: Any = None,
    *,
    loss_fn: LossFn | None = None,
    parameters: Sequence[Tensor] = (),
    method: str | None = None,
    unit: Unit | None = None,
) -> Proof:
    """The per-sample gradients of ``module`` on ``batch`` are those of each sample alone, or AssertionError.

    Args:
        module: a module; or a function, called with the batch and ``parameters``; or a :class:`Case`, which has its
            own batch.
        batch: a tensor or a tuple of tensors, the arguments of the module, samples on axis 0 (any pytree with a
            ``loss_fn`` of your own).
        loss_fn: ``loss_fn(model, batch) -> losses [B]``; if not given, a function of the module's first output.
        parameters: the trainable tensors of a function.
        method: also require that the engine uses it: ``graph`` for the samplers, ``vmap`` or ``single``.
        unit: what one sample is, if it is not one index of axis 0; see :class:`dpcheck.Unit`.

    Returns:
        The proof, to look at.

    Raises:
        DpcheckError: as :func:`dpcheck.verify`: samples mix, or the module cannot run on this batch.
    """
    source = ""
    if isinstance(module, Case):
        source = f"\nto reproduce:\n{module.script()}"
        module, batch = module.build()
    model = module if isinstance(module, nn.Module) else Applied(module, list(parameters))
    proof = verify(model, loss_fn or output_losses, batch, unit=unit)
    if not proof.ok:
        raise AssertionError(f"per-sample gradients are wrong ({_errors(proof)}){source}")
    if method is not None and proof.method != method:
        raise AssertionError(f"the engine uses {proof.method}, not {method}: {proof.reason}{source}")
    return proof


def _errors(proof: Proof) -> str:
    wrong = [
        f"{p.name}: error {max(p.error_single, p.error_vmap or 0.0, p.error_own_dtype or 0.0):.1e} at {list(p.sites)}"
        for p in proof.parameters
        if not p.ok
    ]
    tolerances = f"norms {proof.error_norms:.1e} and clipped sum {proof.error_clipped:.1e} tolerances off"
    return "; ".join([*wrong, tolerances])


def assert_private(model: nn.Module, loss_fn: LossFn, batch: Any, *, unit: Unit | None = None) -> None:
    """``dpcheck.check`` proves the model without a finding and ``dpcheck.verify`` its gradients, or AssertionError.

    Raises:
        AssertionError: with the findings, or the parameters whose gradients are wrong.
        DpcheckError: as :func:`dpcheck.check`.
    """
    report = check(model, loss_fn, batch, unit=unit)
    if not report.ok:
        lines = [f"{d.location or d.module or d.parameter or ''} {d.code} {d.message}" for d in report.diagnostics]
        raise AssertionError("\n".join([f"the verdict is {report.verdict}", *lines, *report.notes]))
    assert_sampler_correct(model, batch, loss_fn=loss_fn, unit=unit)


def assert_sensitivity_bounded(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    max_grad_norm: float = 1.0,
    *,
    unit: Unit | None = None,
    clipping: Clipping | str = "flat",
) -> None:
    """No record (or ``unit``) moves the noiseless clipped sum by more than ``max_grad_norm`` (L2), or AssertionError.

    Each record is removed, then replaced by every other one, by itself times 1e4 and by zeros, with fixed chance;
    every sum is compared with the one without the record. A record that the engine refuses moves nothing. ``clipping``
    is as in :class:`dpcheck.PrivacyEngine`.

    Raises:
        DpcheckError: as the engine, for the batch as it is.
    """
    loss_fn, batch = adapted(unit, loss_fn, batch)
    size = inputs.batch_size(batch)
    dtypes = {p.real.dtype if p.is_complex() else p.dtype for p in model.parameters()}
    bound = max_grad_norm * (1 + max(_ROUNDING[dtype] for dtype in dtypes if dtype.is_floating_point))
    with sandbox(model), swapped(model, copies(model)), FixedChance():
        clipper = Clipper(model, loss_fn, max_grad_norm=max_grad_norm, clipping=clipping)
        start = {name: b.clone() for name, b in model.named_buffers()}
        _sum(clipper, start, batch)
        for i in range(size):
            base = _sum(clipper, start, inputs.take(batch, [k for k in range(size) if k != i]))
            for what, variant in _variants(batch, i):
                try:
                    moved = _sum(clipper, start, variant)
                except DpcheckError:
                    continue
                distance = sum(float((moved[n] - base[n]).abs().double().square().sum()) for n in base) ** 0.5
                if not distance <= bound:
                    raise AssertionError(
                        f"record {i} {what} moves the clipped sum by {distance:.4g}, more than {max_grad_norm:g}"
                    )


def _variants(batch: Any, i: int) -> list[tuple[str, Any]]:
    """Batches that differ from the rest in one record."""
    size = inputs.batch_size(batch)
    found = [("as it is", batch)]
    for j in range(size):
        if j != i:
            found.append((f"replaced by record {j}", inputs.take(batch, [j if k == i else k for k in range(size)])))
    for name, factor in (("times 1e4", FACTOR), ("times zero", 0.0)):
        found.append((name, _scaled(batch, i, factor)))
    return found


def _scaled(batch: Any, i: int, factor: float) -> Any:
    def one(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        t = t.clone()
        t[i] *= factor
        return t

    return pytree.tree_map_only(Tensor, one, batch)


def _sum(clipper: Clipper, buffers: dict[str, Tensor], batch: Any) -> dict[str, Tensor]:
    """The clipped sum, from the same state every time."""
    for name, b in clipper.model.named_buffers():
        b.copy_(buffers[name])
    with sandbox(clipper.model):
        return clipper(batch).grads


__all__ = [
    "Case",
    "arguments",
    "assert_private",
    "assert_sampler_correct",
    "assert_sensitivity_bounded",
    "attentions",
    "bags",
    "batches",
    "cells",
    "compositions",
    "convolutions",
    "embeddings",
    "layers",
    "linears",
    "modules",
    "norms",
    "output_losses",
    "parametrized",
    "recurrents",
    "transposed_convolutions",
]
