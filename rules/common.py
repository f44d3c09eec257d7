"""What the rules share: reading events, and building diagnostics from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpcheck.diagnostic import Diagnostic, Location
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from torch import nn

    from dpcheck.facts import Event, Facts
    from dpcheck.source import Origin


def packet(event: Event) -> str:
    """``mean`` for ``aten.mean.dim``."""
    parts = event.op.split(".")
    return parts[1] if len(parts) > 1 else event.op


def location(event: Event) -> Location | None:
    return event.origin.location if event.origin else None


def related(event: Event) -> tuple[Location, ...]:
    """The library's line, where the finding points at the user's."""
    return related_to(event.origin)


def related_to(origin: Origin | None) -> tuple[Location, ...]:
    """The library's line of an origin, where the finding points at the user's."""
    return (origin.library,) if origin and origin.user and origin.library else ()


def module_path(event: Event) -> str | None:
    return event.origin.module if event.origin else None


def place(event: Event) -> str:
    """`` in module 'encoder.0' (Block)``, or nothing."""
    path = module_path(event)
    return f" in module {path!r}" if path else ""


def effect(event: Event) -> str:
    """What the event falsifies, as a clause."""
    kinds = {label.partition(":")[0] for label in event.reaches}
    if "losses" in kinds:
        return "the loss of a sample depends on other samples"
    if kinds & {"gradient", "gradients"}:
        return "the gradient of a sample depends on other samples"
    return "a buffer depends on several samples"


def from_event(rule: Rule, event: Event, message: str, help: str) -> Diagnostic:
    """A diagnostic of ``rule`` at the place of ``event``."""
    return Diagnostic(
        code=rule.code,
        name=rule.name,
        message=message,
        location=location(event),
        module=module_path(event),
        op=event.op or None,
        related=related(event),
        help=help,
        fix=rule.fix,
    )


BATCH_NORM_OPS = frozenset(
    {
        "_native_batch_norm_legit", "_native_batch_norm_legit_functional", "native_batch_norm", "cudnn_batch_norm",
        "miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_with_update_functional",
        "native_batch_norm_backward", "cudnn_batch_norm_backward", "batch_norm_backward",
    }
)  # fmt: skip


def is_batch_norm(module: nn.Module | None) -> bool:
    """Whether a module is a batch norm: torch's, a subclass, or one that keeps running statistics of its own."""
    from torch import nn

    if module is None:
        return False
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    names = dict(module.named_buffers(recurse=False))
    return {"running_mean", "running_var"} <= set(names)


def batch_norm_paths(facts: Facts) -> set[str]:
    """Modules that normalise with statistics of the batch."""
    paths = set()
    for event in facts.events:
        path = module_path(event)
        if path is not None and packet(event) in BATCH_NORM_OPS and is_batch_norm(facts.module_of(event)):
            paths.add(path)
    return paths


def in_loss(event: Event) -> bool:
    """Whether the event happens in the loss function, outside every module."""
    return event.origin is not None and not event.origin.modules
