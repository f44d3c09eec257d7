"""``dpcheck.verify``: per-sample gradients from the samplers against references that share no code with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpcheck import inputs
from dpcheck.capture import LossFn, first_line, run_losses
from dpcheck.determinism import FixedChance
from dpcheck.engine import fallback
from dpcheck.engine.clipping import Clipper, per_sample_grads
from dpcheck.errors import DpcheckError
from dpcheck.sandbox import sandbox, swapped, tensors_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
SAMPLES = 6


@dataclass(frozen=True)
class ParameterProof:
    """One trainable parameter.

    Attributes:
        name: in ``model.named_parameters()``.
        sites: the ATen ops that sum its gradient over samples.
        error_vmap: largest relative error of its per-sample gradients against ``vmap(grad)``; ``None`` where vmap
            cannot run the model.
        error_single: the same against each sample alone.
        ok: whether both are below the tolerance.
    """

    name: str
    sites: tuple[str, ...]
    error_vmap: float | None
    error_single: float
    ok: bool


@dataclass(frozen=True)
class Proof:
    """The result of :func:`verify`.

    Attributes:
        ok: every parameter's gradients, the norms and the clipped sum agree with the references.
        parameters: one proof each.
        method: what was verified: ``graph`` (the samplers), ``vmap`` or ``single``.
        error_norms, error_clipped: largest relative errors of the norms and of the clipped sum.
        dtype: in which all was computed.
        cases: how many samples were compared.
        notes: what a reader must know.
        seconds: wall time.
    """

    ok: bool
    parameters: tuple[ParameterProof, ...]
    method: str
    error_norms: float
    error_clipped: float
    dtype: torch.dtype
    cases: int
    notes: tuple[str, ...]
    seconds: float


def verify(model: nn.Module, loss_fn: LossFn, batch: Any) -> Proof:
    """Compare the engine's gradients with ``vmap(grad)`` of the whole model and with each sample alone.

    In float64 on copies of the state, with fixed chance so that dropout agrees; in the model's own dtype where it
    cannot run in float64. The model is left as it was.

    Raises:
        DpcheckError: as :func:`dpcheck.check`.
    """
    run_losses(model, loss_fn, batch)
    size = min(SAMPLES, inputs.batch_size(batch))
    few = inputs.take(batch, range(size))
    try:
        return _verify(model, loss_fn, few, torch.float64)
    except DpcheckError:
        raise
    except Exception as error:
        note = f"compared in the model's own dtype: float64 fails with {type(error).__name__}: {first_line(error)}"
        return _verify(model, loss_fn, few, torch.float32, (note,))


def _verify(model: nn.Module, loss_fn: LossFn, batch: Any, dtype: torch.dtype, notes: tuple[str, ...] = ()) -> Proof:
    start = time.perf_counter()
    batch = inputs.to_dtype(batch, dtype)
    with sandbox(model), swapped(model, _state(model, dtype)), FixedChance():
        losses, alone = fallback.single_gradients(model, loss_fn, batch)
        together, why = _vmap(model, loss_fn, batch)
        samplers, missing = per_sample_grads(model, loss_fn, batch)
        norms = torch.stack([g.flatten(1).square().sum(1) for g in alone.values()]).sum(0).sqrt()
        # Half of the samples are clipped.
        bound = max(float(norms.median()), 1e-12)
        clipper = Clipper(model, loss_fn, max_grad_norm=bound)
        clipped = clipper(batch)
    if why:
        notes = (*notes, f"vmap(grad) cannot run this model ({why}): the single-sample reference stands alone")
    if missing:
        notes = (*notes, f"no samplers ({missing}): the engine computes gradients by {clipper.method}")
        samplers = together if clipper.method == "vmap" and together else alone
    sites = _sites(model, loss_fn, batch) if not missing else {}
    scale = max((float(g.abs().max()) for g in alone.values()), default=0.0)
    tolerance = TOLERANCE[dtype]
    proofs = []
    for name, reference in alone.items():
        single = _error(samplers[name], reference, scale)
        vmapped = _error(samplers[name], together[name], scale) if together else None
        ok = single <= tolerance and (vmapped is None or vmapped <= tolerance)
        proofs.append(ParameterProof(name, sites.get(name, ()), vmapped, single, ok))
    factors = (bound / norms.clamp_min(1e-300)).clamp(max=1.0)
    expected = {name: torch.einsum("b,b...->...", factors, g) for name, g in alone.items()}
    off_sum = max((_error(clipped.grads[n], g, scale) for n, g in expected.items()), default=0.0)
    off_norms = _error(clipped.norms, norms, float(norms.max()))
    ok = all(p.ok for p in proofs) and off_sum <= tolerance and off_norms <= tolerance
    seconds = time.perf_counter() - start
    return Proof(ok, tuple(proofs), clipper.method, off_norms, off_sum, dtype, len(losses), notes, seconds)


def _state(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of parameters and buffers in ``dtype``; trainable ones stay parameters."""
    parameters, buffers = tensors_of(model)
    state: dict[str, Tensor] = {}
    for name, t in {**parameters, **buffers}.items():
        copy = t.detach().clone()
        copy = copy.to(dtype) if copy.is_floating_point() else copy
        state[name] = nn.Parameter(copy, requires_grad=t.requires_grad) if name in parameters else copy
    return state


def _vmap(model: nn.Module, loss_fn: LossFn, batch: Any) -> tuple[dict[str, Tensor], str]:
    # A slow batching rule is no news to the user.
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
    try:
        return fallback.vmap_gradients(model, loss_fn, batch)[1], ""
    except Exception as error:  # whatever vmap cannot do
        return {}, f"{type(error).__name__}: {first_line(error)}"


def _sites(model: nn.Module, loss_fn: LossFn, batch: Any) -> dict[str, tuple[str, ...]]:
    from dpcheck.capture import Capture, capture
    from dpcheck.samplesets import analyse, parameter_facts

    result = capture(model, loss_fn, batch if inputs.batch_size(batch) > 1 else inputs.take(batch, [0, 0]))
    if not isinstance(result, Capture):
        return {}
    return {fact.name: fact.sites for fact in parameter_facts(model, analyse(result))}


def _error(value: Tensor, reference: Tensor, scale: float) -> float:
    """Largest difference, relative to the tensor's own size or to a millionth of the largest gradient.

    Infinite when one of them is not finite where the other is.
    """
    if reference.numel() == 0:
        return 0.0
    size = max(float(reference.abs().max()), 1e-6 * scale, 1e-300)
    difference = float((value.double() - reference.double()).abs().max())
    return difference / size if difference == difference else float("inf")
