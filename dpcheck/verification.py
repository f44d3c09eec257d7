"""``dpcheck.verify``: the engine's per-sample gradients against references that share no code with its samplers."""

from __future__ import annotations

import random
import textwrap
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dpcheck import inputs
from dpcheck.capture import Capture, LossFn, capture, first_line, run_losses
from dpcheck.determinism import FixedChance
from dpcheck.engine import fallback
from dpcheck.engine.clipped import Clipped
from dpcheck.engine.clipping import Clipper, Method
from dpcheck.engine.plan import make_plan, run_plan
from dpcheck.engine.refusals import lacks_memory, no_memory
from dpcheck.engine.second import second_plan
from dpcheck.engine.sites.base import every_site
from dpcheck.errors import DpcheckError
from dpcheck.proof import ParameterProof, Proof
from dpcheck.rounding import largest_jump, plain, relative_error
from dpcheck.samplesets import analyse
from dpcheck.sandbox import sandbox, swapped, tensors_of
from dpcheck.source import location_of
from dpcheck.unit import Unit, adapted

# By the least precise dtype that the run computes in: the error allowed, and the part of the largest gradient of all
# parameters below which a parameter's gradient is rounding (a key's bias in attention has none).
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_FLOOR = {torch.float64: 1e-3, torch.float32: 1e-2, torch.float16: 1.0, torch.bfloat16: 1.0}
SAMPLES = 6
# Gradients of every sample, three times over, in float64.
_BUDGET_BYTES = 2 << 30


@dataclass(frozen=True)
class _Comparison:
    """One run in one dtype; ``tolerance`` is that of ``narrowest``, the least precise dtype in it."""

    clipper: Clipper
    single: dict[str, float]
    vmap: dict[str, float] | None
    norms: float
    clipped: float
    narrowest: torch.dtype
    tolerance: float
    notes: tuple[str, ...]

    def worst(self) -> float:
        """The largest error of all, in tolerances."""
        return max([*self.single.values(), *(self.vmap or {}).values(), self.norms, self.clipped]) / self.tolerance


def verify(model: nn.Module, loss_fn: LossFn, batch: Any, *, unit: Unit | None = None) -> Proof:
    """Compare the engine's gradients, norms and clipped sum with ``vmap(grad)`` and with each sample alone.

    In float64, then in the model's own dtype and memory format; on copies of the state, with fixed chance so that
    dropout agrees. The model is left as it was. The first samples of the batch are compared, at most six.

    Args:
        model: in the train/eval state in which it will be trained.
        loss_fn: ``loss_fn(model, batch) -> losses [B]``.
        batch: any pytree whose tensors have samples on axis 0.
        unit: what one sample is, if it is not one index of axis 0; see :class:`dpcheck.Unit`.

    Raises:
        DpcheckError: as :func:`dpcheck.check`, and for a model whose samples mix: it has no per-sample gradients.
    """
    start = time.perf_counter()
    loss_fn, batch = adapted(unit, loss_fn, batch)
    run_losses(model, loss_fn, batch)
    if not any(p.requires_grad for p in model.parameters()):
        raise DpcheckError(
            "the model has no trainable parameter, so it has no gradient to verify",
            next="set requires_grad=True on the parameters to train",
        )
    entries = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = min(inputs.batch_size(batch), max(2, min(SAMPLES, _BUDGET_BYTES // (24 * entries))))
    # A slice keeps the memory format.
    few = pytree.tree_map_only(Tensor, lambda t: t[:size], batch)
    dtype, own = torch.float64, None
    notes: tuple[str, ...] = ()
    try:
        main = _compare(model, loss_fn, few, torch.float64)
    except DpcheckError:
        raise
    except Exception as error:
        dtype = _narrowest([_real_dtype(p.dtype) for p in model.parameters()])
        notes = (f"compared in the model's own dtype: float64 fails with {type(error).__name__}: {first_line(error)}",)
        main = _in_own_dtype(model, loss_fn, few)
    else:
        dtypes = {_real_dtype(p.dtype) for p in model.parameters()}
        if any(d.is_floating_point and d is not torch.float64 for d in dtypes):
            own = _in_own_dtype(model, loss_fn, few, with_vmap=False)
            if main.worst() <= 1 < own.worst() and main.narrowest is torch.float64:
                own = _allowing_for_jumps(own, model, loss_fn, few)
    sites = main.clipper.sites()
    proofs = tuple(_proof(name, main, own, sites) for name in main.single)
    runs = [main, own] if own is not None else [main]
    off_norms, off_sum = max(c.norms / c.tolerance for c in runs), max(c.clipped / c.tolerance for c in runs)
    notes += tuple(note for run in runs for note in run.notes)
    return Proof(
        ok=all(p.ok for p in proofs) and off_norms <= 1 and off_sum <= 1,
        parameters=proofs,
        method=main.clipper.method,
        reason=main.clipper.reason,
        error_norms=off_norms,
        error_clipped=off_sum,
        dtype=dtype,
        cases=size,
        notes=tuple(dict.fromkeys(notes)),
        seconds=time.perf_counter() - start,
    )


def _proof(name: str, main: _Comparison, own: _Comparison | None, sites: dict[str, tuple[str, ...]]) -> ParameterProof:
    single, vmap = main.single[name], main.vmap[name] if main.vmap is not None else None
    ok = max(single, vmap or 0.0) <= main.tolerance and (own is None or own.single[name] <= own.tolerance)
    own_error = own.single[name] if own is not None else None
    return ParameterProof(name, sites.get(name, ()), main.clipper.method, vmap, single, own_error, ok)


def _in_own_dtype(model: nn.Module, loss_fn: LossFn, batch: Any, *, with_vmap: bool = True) -> _Comparison:
    try:
        return _compare(model, loss_fn, batch, None, with_vmap=with_vmap)
    except DpcheckError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise no_memory(inputs.batch_size(batch)) from error
        location = location_of(error.__traceback__)
        raise DpcheckError(
            f"the gradient of a sample cannot be computed: {type(error).__name__}: {first_line(error)}",
            where=str(location) if location else None,
            next="make loss_fn(model, batch).sum().backward() run on this batch first",
        ) from error


def _allowing_for_jumps(own: _Comparison, model: nn.Module, loss_fn: LossFn, batch: Any) -> _Comparison:
    """Errors as large as those that rounding alone makes in this model are no sign of a wrong sampler."""
    with sandbox(model), FixedChance():
        jump = largest_jump(model, _repeatable(loss_fn), batch, copies(model), _FLOOR[own.narrowest])
    if 2 * jump <= own.tolerance:
        return own
    note = (
        f"rounding errors in parameters and input change this model's gradients in {own.narrowest} by up to {jump:.1g} "
        "(kinks, such as that of a ReLU), so there smaller errors are not seen; in float64 they are"
    )
    return replace(own, tolerance=2 * jump, notes=(*own.notes, note))


def _compare(
    model: nn.Module, loss_fn: LossFn, batch: Any, dtype: torch.dtype | None, *, with_vmap: bool = True
) -> _Comparison:
    """All comparisons in ``dtype``; ``None`` leaves every tensor in its own."""
    batch = inputs.to_dtype(batch, dtype) if dtype is not None else batch
    same = _repeatable(loss_fn)
    precision = _Precision()
    with sandbox(model), FixedChance():
        clipper = Clipper(model, loss_fn, max_grad_norm=1.0)
        # The engine writes derived buffers, so every run has a state of its own.
        with sandbox(model), swapped(model, copies(model, dtype)):
            released = [(clipper(batch), 1.0)]
        with swapped(model, copies(model, dtype)), precision:
            _, alone = fallback.single_gradients(model, same, batch)
        norms = torch.stack([plain(g).reshape(len(g), -1).square().sum(1) for g in alone.values()]).sum(0).sqrt()
        # Half of the samples are clipped.
        bound = max(float(norms.median()), 1e-12)
        with swapped(model, copies(model, dtype)):
            if clipper.method == "graph":
                engine, runs = _samplers(model, loss_fn, batch, bound)
                released += [(run, bound) for run in runs]
            else:
                method: Method = "vmap" if clipper.method == "vmap" else "single"
                engine = _vmap(model, same, batch)[0] if method == "vmap" else alone
                released = [(Clipper(model, same, max_grad_norm=bound, method=method)(batch), bound)]
        floor = _FLOOR[precision.narrowest] * max(
            (float(g.abs().max()) for g in alone.values() if g.numel()), default=0.0
        )
        single = {name: relative_error(engine[name], g, floor) for name, g in alone.items()}
        off_norms = max(relative_error(run.norms, norms, 0.0) for run, _ in released)
        off_sum = max(_error_of_sum(run, norms, alone, c, floor) for run, c in released)
        # The gradients of every sample of a large model do not fit into memory three times.
        del alone, released
        together, why = dict[str, Tensor](), ""
        if with_vmap and clipper.method != "vmap":
            with swapped(model, copies(model, dtype)):
                together, why = _vmap(model, same, batch)
    return _Comparison(
        clipper,
        single,
        {name: relative_error(engine[name], g, floor) for name, g in together.items()} if together else None,
        off_norms,
        off_sum,
        precision.narrowest,
        TOLERANCE[precision.narrowest],
        _notes(clipper, why, precision.narrowest, dtype),
    )


def _samplers(model: nn.Module, loss_fn: LossFn, batch: Any, bound: float) -> tuple[dict[str, Tensor], list[Clipped]]:
    """Every sample's gradients, and the clipped sum in both forms that a site has at one size of batch or another."""
    size = inputs.batch_size(batch)
    batch = inputs.take(batch, [0, 0]) if size == 1 else batch
    result = capture(model, loss_fn, batch)
    assert isinstance(result, Capture), result
    analysis = analyse(result)
    device = next(model.parameters()).device
    weights = torch.tensor([1.0] * size + [0.0] * (size == 1), device=device)
    _, _, each, _ = run_plan(make_plan(analysis, per_sample=True), model, batch, torch.ones_like(weights), 1.0)
    runs = []
    for keep in (True, False):
        with every_site(keep):
            for plan in (make_plan(analysis), second_plan(analysis)):
                if plan is None:
                    continue
                losses, norms, sums, _ = run_plan(plan, model, batch, weights, bound)
                runs.append(Clipped(_with_zeros(model, sums), norms[:size, 0], losses[:size]))
    return _with_zeros(model, {name: g[:size] for name, g in each.items()}, size), runs


def _with_zeros(model: nn.Module, grads: dict[str, Tensor], *lead: int) -> dict[str, Tensor]:
    """Zeros for the parameters that no loss reaches."""
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {name: grads[name] if name in grads else p.new_zeros((*lead, *p.shape)) for name, p in wanted.items()}


def _error_of_sum(run: Clipped, norms: Tensor, alone: dict[str, Tensor], bound: float, floor: float) -> float:
    factors = (bound / norms.clamp_min(1e-300)).clamp(max=1.0)
    expected = {name: torch.einsum("b,b...->...", factors, plain(g)) for name, g in alone.items()}
    return max(relative_error(run.grads[name], g, floor * float(factors.max())) for name, g in expected.items())


def _notes(clipper: Clipper, why: str, narrowest: torch.dtype, dtype: torch.dtype | None) -> tuple[str, ...]:
    notes = []
    if clipper.method != "graph":
        notes.append(f"there are no samplers for this model ({clipper.reason})")
    if clipper.method == "vmap":
        notes.append("the engine uses vmap(grad), compared here with each sample alone")
    if clipper.method == "single":
        notes.append("the engine computes each sample alone, which is the reference itself")
    if why:
        notes.append(f"vmap(grad) cannot run this model ({why}): the single-sample reference stands alone")
    if dtype is not None and narrowest is not dtype:
        notes.append(f"the model computes in {narrowest} by itself, so errors are rounding of that dtype")
    return tuple(notes)


class _Precision(TorchDispatchMode):
    """Sees the least precise dtype that anything is computed in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.narrowest = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        seen = [_real_dtype(t.dtype) for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        self.narrowest = _narrowest([self.narrowest, *seen])
        return out


def _real_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _narrowest(dtypes: list[torch.dtype]) -> torch.dtype:
    return max((d for d in dtypes if d in TOLERANCE), key=TOLERANCE.__getitem__, default=torch.float64)


def _repeatable(loss_fn: LossFn) -> LossFn:
    """The loss with every generator as it was before, at every call."""

    def repeated(model: Any, batch: Any) -> Tensor:
        # What the forward leaves on the modules is taken away by who calls it: the backward may need it.
        with torch.random.fork_rng(devices=[]):
            random.seed(0)
            np.random.seed(0)
            return loss_fn(model, batch)

    return repeated


def copies(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Copies of parameters and buffers by name, in ``dtype`` or their own; parameters stay parameters."""
    parameters, buffers = tensors_of(model)
    state: dict[str, Tensor] = {}
    for name, t in {**parameters, **buffers}.items():
        copy = t.detach().clone()
        copy = inputs.as_dtype(copy, dtype) if dtype is not None else copy
        state[name] = nn.Parameter(copy, requires_grad=t.requires_grad) if name in parameters else copy
    return state


def _vmap(model: nn.Module, loss_fn: LossFn, batch: Any) -> tuple[dict[str, Tensor], str]:
    try:
        return fallback.vmap_gradients(model, loss_fn, batch)[1], ""
    except Exception as error:  # whatever vmap cannot do
        return {}, textwrap.shorten(f"{type(error).__name__}: {first_line(error)}", 100, placeholder=" ...")


__all__ = ["ParameterProof", "Proof", "copies", "verify"]
