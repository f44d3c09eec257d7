"""Capture: one joint forward+backward ATen graph of ``loss_fn(model, batch) -> losses [B]``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.assertions import Asked
from dpcheck.checkpoints import draw_once
from dpcheck.decompositions import TABLE, MaskedAssignment
from dpcheck.diagnostic import Location
from dpcheck.drawing import USUAL, fixed_draws
from dpcheck.errors import DpcheckError
from dpcheck.functional import functionalized, written_constant
from dpcheck.recurrent import FusedRecurrence
from dpcheck.sandbox import Touched, read_back, sandbox, swapped, tensors_of
from dpcheck.source import location_of
from dpcheck.tracing import Recorder, refusals_noted, without_fused_layers, without_validation
from dpcheck.unsort import unsorted

LossFn = Callable[[Any, Any], Tensor]
Half = Literal["forward", "backward"]
_BRANCH = "control flow or a Python number depends on the data"


@dataclass(frozen=True)
class Capture:
    """The joint graph and what its inputs and outputs are.

    The graph computes, without mutation, from ``(*parameters, *buffers, *batch tensors, tangent [B])``: the losses,
    the gradient of ``(losses * tangent).sum()`` for every trainable parameter, and what parameters and buffers hold
    after the forward.

    Attributes:
        graph: the graph module; every node carries ``meta["origin"]`` (:class:`Origin`), ``meta["half"]``, and
            ``meta["val"]`` (a fake tensor).
        batch_size: B.
        parameters, buffers: placeholder of each, by name.
        batch: placeholders of the batch's tensors, in pytree order.
        tangent: placeholder of the weights of the losses, [B].
        losses: node of the losses, [B].
        gradients: node of each trainable parameter's gradient, ``None`` where the loss does not reach it.
        parameters_after, buffers_after: node of the value after the forward (the placeholder itself when not written).
        touched: Python state and generators that the run changed.
        example: the batch it was captured with.
        model_buffers: the model's buffers themselves, by name.
    """

    graph: fx.GraphModule
    batch_size: int
    parameters: Mapping[str, fx.Node]
    buffers: Mapping[str, fx.Node]
    batch: tuple[fx.Node, ...]
    tangent: fx.Node
    losses: fx.Node
    gradients: Mapping[str, fx.Node | None]
    parameters_after: Mapping[str, fx.Node]
    buffers_after: Mapping[str, fx.Node]
    touched: Touched
    example: Any
    model_buffers: Mapping[str, Tensor]


@dataclass(frozen=True)
class CaptureFailure:
    """Why there is no graph.

    Attributes:
        kind: ``branch`` (control flow or a Python number taken from data), ``shape`` (a shape that depends on data),
            ``state`` (a write to a tensor that the model does not register), ``backward`` or ``other``.
        reason: one sentence.
        location: the line that could not be captured.
        touched: Python state and generators that the run changed.
    """

    kind: Literal["branch", "shape", "state", "backward", "other"]
    reason: str
    location: Location | None
    touched: Touched


def capture(model: nn.Module, loss_fn: LossFn, batch: Any, *, chance: float | None = None) -> Capture | CaptureFailure:
    """Capture the joint graph at the size of ``batch``, in the model's present train/eval state.

    The model is left as it was: parameters, buffers, Python attributes and random generators.

    Args:
        chance: what every single number that Python, NumPy or torch draw from [0, 1) is in this graph. Where a branch
            of the model depends on such a number of torch's, the usual one is taken without being asked for.

    Raises:
        DpcheckError: if the model or the loss raises on this batch, or does not return losses of shape [B].
    """
    paths, root = {id(m): path for path, m in model.named_modules()}, sys._getframe(0)
    recorder = Recorder(paths, root, chance)
    result = _capture(model, loss_fn, batch, recorder)
    if isinstance(result, CaptureFailure) and result.kind == "branch" and recorder.asserted:
        with fixed_draws(chance), Asked(root) as asked:
            run_losses(model, loss_fn, batch)
        recorder = Recorder(paths, root, chance, asked.numbers)
        result = _capture(model, loss_fn, batch, recorder)
    if isinstance(result, CaptureFailure) and result.kind == "branch" and recorder.drew and chance is None:
        return capture(model, loss_fn, batch, chance=USUAL)
    return result


def _capture(model: nn.Module, loss_fn: LossFn, batch: Any, recorder: Recorder) -> Capture | CaptureFailure:
    size = inputs.batch_size(batch)
    leaves, spec = pytree.tree_flatten(batch)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    parameters, buffers = tensors_of(model)
    trainable = [name for name, p in parameters.items() if p.requires_grad]

    def joint(ps: list[Tensor], bs: list[Tensor], xs: list[Tensor], tangent: Tensor) -> tuple[Any, ...]:
        with recorder:
            filled = list(leaves)
            for i, x in zip(where, xs, strict=True):
                filled[i] = x
            state = {**dict(zip(parameters, ps, strict=True)), **dict(zip(buffers, bs, strict=True))}
            with swapped(model, state), MaskedAssignment(), FusedRecurrence():
                losses = loss_fn(model, pytree.tree_unflatten(filled, spec))
                check_losses(losses, size)
                after = read_back(model, state)
                recorder.half = "backward"
                wanted = [p for name, p in zip(parameters, ps, strict=True) if name in trainable]
                grads: Any = [None] * len(wanted)
                if losses.requires_grad:
                    # Under the swap as well: activation checkpointing runs parts of the forward again.
                    grads = torch.autograd.grad(losses, wanted, tangent.to(losses.dtype), allow_unused=True)
            return losses, list(grads), [after[n] for n in parameters], [after[n] for n in buffers]

    device = next((p.device for p in parameters.values()), torch.device("cpu"))
    tangent = torch.ones(size, device=device)
    arguments = (list(parameters.values()), list(buffers.values()), [leaves[i] for i in where], tangent)
    with sandbox(model) as touched:
        try:
            with (
                without_fused_layers(), without_validation(), fixed_draws(recorder.chance) as drawn,
                refusals_noted(recorder.root) as refused,
            ):  # fmt: skip
                # Tensors that are no inputs (a table in a cache, class weights of the loss) become constants.
                constants = {"_allow_non_fake_inputs": True, "_error_on_data_dependent_ops": True}
                graph = make_fx(joint, TABLE, tracing_mode="fake", **constants)(*arguments)
            touched.python_random = bool(drawn.called) or (recorder.drew and recorder.chance is not None)
            touched.uncontrolled = drawn.escaped
            touched.asserted = tuple(dict.fromkeys(str(place) for place in recorder.asserted))
        except DpcheckError:
            raise
        except Exception as error:
            return _failure(error, recorder.half, touched)
    if refused:
        return CaptureFailure("branch", f"{_BRANCH}, and the model caught the error", refused[0], touched)
    unknown = _unknown_shape(graph)
    if unknown is not None:
        origin = unknown.meta.get("origin")
        reason = f"the shape of a tensor depends on the data ({unknown.target})"
        return CaptureFailure("shape", reason, origin.location if origin else None, touched)
    aside = _used_aside(graph, {**parameters, **buffers})
    if aside is not None:
        reason = f"{aside!r} is used through a reference beside the model's own (a plain list, a closure)"
        return CaptureFailure("other", reason, None, touched)
    written = written_constant(graph)
    if written is not None:
        origin = written.meta.get("origin")
        reason = f"a tensor is written that is neither a parameter nor a buffer of the model ({written.target})"
        return CaptureFailure("state", reason, origin.location if origin else None, touched)
    # Kernels are chosen as while tracing: other ones lay their results out in other ways.
    try:
        with without_fused_layers():
            graph = unsorted(draw_once(functionalized(graph)))
    except (RuntimeError, ValueError) as error:
        return _failure(error, recorder.half, touched)
    return _assemble(graph, size, parameters, buffers, trainable, len(where), touched, batch)


def _unknown_shape(graph: fx.GraphModule) -> fx.Node | None:
    """The first op with a result whose shape depends on the data."""
    for node in graph.graph.nodes:
        for out in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(out, Tensor) and not all(isinstance(size, int) for size in out.shape):
                return node  # type: ignore[no-any-return]
    return None


def _used_aside(graph: fx.GraphModule, registered: Mapping[str, Tensor]) -> str | None:
    """A registered tensor that became a constant: it was not reached through the model, so its gradient is lost."""
    names = {id(tensor): name for name, tensor in registered.items()}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            constant = getattr(graph, node.target)
            if id(constant) in names:
                return names[id(constant)]
            if isinstance(constant, Tensor) and constant.requires_grad:
                setattr(graph, node.target, constant.detach())
    return None


def _assemble(
    graph: fx.GraphModule,
    size: int,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    trainable: list[str],
    n_batch: int,
    touched: Touched,
    batch: Any,
) -> Capture:
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    flat: Any = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    n_p, n_b = len(parameters), len(buffers)
    grads, after = flat[1 : 1 + len(trainable)], flat[1 + len(trainable) :]
    return Capture(
        graph=graph,
        batch_size=size,
        parameters=dict(zip(parameters, holders[:n_p], strict=True)),
        buffers=dict(zip(buffers, holders[n_p : n_p + n_b], strict=True)),
        batch=tuple(holders[n_p + n_b : n_p + n_b + n_batch]),
        tangent=holders[-1],
        losses=flat[0],
        gradients=dict(zip(trainable, grads, strict=True)),
        parameters_after=dict(zip(parameters, after[:n_p], strict=True)),
        buffers_after=dict(zip(buffers, after[n_p:], strict=True)),
        touched=touched,
        example=batch,
        model_buffers=dict(buffers),
    )


def check_losses(losses: Any, size: int) -> None:
    """Refuse what is not one floating-point loss per sample.

    Raises:
        DpcheckError: naming the type or shape that was returned.
    """
    fix = (
        "return one loss per sample, for example F.cross_entropy(logits, y, reduction='none'); "
        "`dpcheck model.py --fix` writes it where it is sure"
    )
    if not isinstance(losses, Tensor):
        raise DpcheckError(f"loss_fn returned {type(losses).__name__}, not a tensor of shape [{size}]", next=fix)
    if tuple(losses.shape) != (size,):
        if losses.dim() > 1 and losses.shape[0] == size:
            fix = "reduce every axis but the first, for example losses.flatten(1).mean(1)"
        raise DpcheckError(
            f"loss_fn returned a loss of shape {list(losses.shape)}, not [{size}] (one loss per sample of the batch)",
            next=fix,
        )
    if not losses.is_floating_point():
        raise DpcheckError(f"loss_fn returned losses of dtype {losses.dtype}, not floating point", next=fix)


def run_losses(model: nn.Module, loss_fn: LossFn, batch: Any) -> Tensor:
    """The losses [B], computed eagerly on copies of the state: nothing of the model changes.

    Raises:
        DpcheckError: if the model or the loss raises, or the losses are not [B] or not finite.
    """
    size = inputs.batch_size(batch)
    parameters, buffers = tensors_of(model)
    with sandbox(model), torch.no_grad():
        copies = {n: t.detach().clone() for n, t in {**parameters, **buffers}.items()}
        try:
            with swapped(model, copies):
                losses = loss_fn(model, batch)
        except DpcheckError:
            raise
        except Exception as error:
            location = location_of(error.__traceback__)
            raise DpcheckError(
                f"the model or its loss raised on this batch: {type(error).__name__}: {first_line(error)}",
                where=str(location) if location else None,
                next=getattr(loss_fn, "mend", "make loss_fn(model, batch) run on this batch; --traceback shows where"),
            ) from error
    check_losses(losses, size)
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        listing = ", ".join(f"sample {i}: {losses[i].item()}" for i in bad[:5])
        raise DpcheckError(
            f"the loss of {len(bad)} of {size} samples is not finite ({listing})",
            next="look at these samples and at the scale of the inputs: such a gradient cannot be clipped",
        )
    return losses


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "(no message)")


def _failure(error: Exception, half: str, touched: Touched) -> CaptureFailure:
    name, location = type(error).__name__, location_of(error.__traceback__)
    text = first_line(error)
    kind: Literal["branch", "shape", "backward", "other"] = "other"
    if "DataDependent" in name or "data-dependent" in text or "aten._local_scalar_dense" in text or "item()" in text:
        kind, text = "branch", _BRANCH
    elif "DynamicOutputShape" in name or "nonzero" in text or "unique" in text:
        kind, text = "shape", "the shape of a tensor depends on the data"
    elif half == "backward":
        kind = "backward"
    return CaptureFailure(kind, f"{text} ({name})", location, touched)
