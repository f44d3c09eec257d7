"""What ``dpcheck.verify`` says."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ParameterProof:
    """One trainable parameter. Errors are relative to the largest entry of its gradient.

    Attributes:
        name: in ``model.named_parameters()``.
        sites: the kinds of op that sum its gradient over samples (none where the graph is not used).
        method: how the engine computes its gradient: ``graph`` (samplers), ``vmap`` or ``single``.
        error_vmap: largest error of its per-sample gradients against ``vmap(grad)``; ``None`` where vmap cannot run
            the model or is itself the method.
        error_single: the same against each sample alone.
        error_own_dtype: against each sample alone in the model's own dtype and memory format; ``None`` where that is
            the dtype of the other errors.
        ok: whether all are within the tolerance of their dtype.
    """

    name: str
    sites: tuple[str, ...]
    method: str
    error_vmap: float | None
    error_single: float
    error_own_dtype: float | None
    ok: bool


@dataclass(frozen=True)
class Proof:
    """The result of :func:`dpcheck.verify`.

    Attributes:
        ok: every parameter's gradients, the norms and the clipped sum agree with the references.
        parameters: one proof each.
        method: what was verified: ``graph`` (the samplers), ``vmap`` or ``single``.
        reason: why it is not the graph, if it is not.
        error_norms, error_clipped: largest relative errors of the norms [B] and of the clipped sum, in any dtype that
            was tried, as multiples of its tolerance (at most 1 is right).
        dtype: in which the errors against ``vmap`` and single samples were computed.
        cases: how many samples were compared.
        notes: what a reader must know.
        seconds: wall time.
    """

    ok: bool
    parameters: tuple[ParameterProof, ...]
    method: str
    reason: str
    error_norms: float
    error_clipped: float
    dtype: torch.dtype
    cases: int
    notes: tuple[str, ...]
    seconds: float
