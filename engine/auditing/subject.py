"""What is audited: the user's model, loss and records in the engine's own steps, with a canary beside every record.

The model gets one more parameter, of one coordinate for each canary; a canary is a record whose loss has a steep slope
along its own coordinate. Everything that a step releases is read by an optimizer that keeps what it is given and
changes nothing, so that all steps are taken at the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dpcheck.engine import clipping, trainer
from dpcheck.engine.auditing.effort import Effort
from dpcheck.engine.kinds import Clipping, PerGroup, kind_of
from dpcheck.engine.ranks import Ranks
from dpcheck.engine.sampling import Loader, LogicalBatch
from dpcheck.engine.summing import on_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from dpcheck import inputs
from dpcheck.capture import LossFn
from dpcheck.unit import Unit

# The slope of a canary, relative to the clipping norm: what else is in the gradient is then lost in rounding.
STEEP = 1e6
CANARY = "canary"


class Audited(nn.Module):
    """The model, and the parameter of the canaries."""

    def __init__(self, model: nn.Module, canaries: int) -> None:
        super().__init__()
        self.model = model
        like = next(p for p in model.parameters() if p.requires_grad)
        self.canary = nn.Parameter(torch.zeros(canaries, device=like.device))


def with_canaries(loss_fn: LossFn) -> LossFn:
    """``loss_fn`` for batches (records, scale [B], marks [B, canaries]): scale * (loss + marks @ canary)."""

    def loss(model: Any, batch: Any) -> Tensor:
        records, scale, marks = batch
        losses = loss_fn(model.model, records)
        total: Tensor = (losses + (marks * model.canary).sum(1)).to(losses.dtype) * scale
        return total

    return loss


class Pool(Dataset[int]):
    """Slots that hold records of the user, each with a scale of its loss and the slope of its canary.

    Attributes:
        records: a batch of ``count`` records; slot i holds record ``source[i]``.
        scale: float32 [slots].
        slope: float32 [slots], along the coordinate of that number.
    """

    def __init__(self, records: Any, count: int, slots: int, canaries: int) -> None:
        self.records, self.canaries = records, canaries
        self.source = torch.arange(slots) % count
        self.scale, self.slope = torch.ones(slots), torch.zeros(slots)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, slot: int) -> int:
        return slot

    def collate(self, slots: Sequence[int]) -> Any:
        """The batch of some slots."""
        chosen = torch.as_tensor(slots)
        marks = torch.zeros(len(chosen), self.canaries)
        marks[torch.arange(len(chosen)), chosen % self.canaries] = self.slope[chosen]
        return inputs.take(self.records, self.source[chosen]), self.scale[chosen], marks


class Reader(Optimizer):
    """Keeps the gradients that it is given."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {name: p for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(list(self.names.values()), {})
        self.taken = 0
        self.read: dict[str, Tensor] = {}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.taken += 1
        self.read = {name: _flat(p if p.grad is None else p.grad, p.grad is None) for name, p in self.names.items()}


def _flat(t: Tensor, absent: bool) -> Tensor:
    real = torch.view_as_real(t) if t.is_complex() else t
    return torch.zeros(real.numel(), dtype=torch.float64) if absent else real.detach().double().flatten().cpu()


@dataclass(frozen=True)
class Claim:
    """The run whose claim is audited.

    Attributes:
        dataset_size, expected_batch_size: N and B.
        noise_multiplier: sigma, of all that a step releases together.
        max_grad_norm, delta, steps: as in :class:`dpcheck.PrivacyEngine`.
        clipping, secure: the same.
    """

    dataset_size: int
    expected_batch_size: int
    noise_multiplier: float
    max_grad_norm: float
    delta: float
    steps: int
    clipping: Clipping
    secure: bool


class Subject:
    """Makes engines that train the audited model, all with one clipper, so that its plan is made once."""

    def __init__(
        self, model: nn.Module, loss_fn: LossFn, loader: Loader, claim: Claim, effort: Effort, *, method: Any
    ) -> None:
        unit: Unit = loader.unit
        size = len(loader.dataset)
        chosen = Ranks.here().first(lambda: torch.randperm(size)[: effort.records].sort().values)
        self.count, self.canaries, self.claim, self.tries = len(chosen), effort.canaries, claim, effort.tries
        self.model = Audited(model, effort.canaries)
        self.records = on_device(loader.collate(chosen), dict(self.model.named_parameters()))
        self.chosen = chosen.tolist()
        self.loss_fn = with_canaries(unit.loss(loss_fn))
        self.kind = _with_canary_group(claim.clipping)
        self.physical = 1 if claim.secure else min(64, max(2, claim.expected_batch_size))
        self.clipper = clipping.Clipper(
            self.model, self.loss_fn, max_grad_norm=claim.max_grad_norm, method=method, clipping=self.kind
        )

    def pool(self, slots: int | None = None) -> Pool:
        """Slots with the user's records, in turn."""
        return Pool(self.records, self.count, slots or self.count, self.canaries)

    def engine(self, pool: Pool, noise: float, *, expected: int | None = None, steps: int = 10**6) -> Any:
        """An engine of the claim's settings on ``pool``, which expects all records if ``expected`` is None."""
        claim = self.claim
        self.model.zero_grad()
        return trainer.PrivacyEngine(
            self.model,
            self.loss_fn,
            Reader(self.model),
            pool,
            expected_batch_size=expected or len(pool),
            max_grad_norm=claim.max_grad_norm,
            delta=claim.delta,
            noise_multiplier=noise,
            steps=steps,
            physical_batch_size=self.physical,
            secure=claim.secure,
            collate_fn=pool.collate,
            check=False,
            clipping=self.kind,
            _clipper=lambda *_, **__: self.clipper,
        )


def _with_canary_group(kind: Clipping) -> Clipping:
    kind = kind_of(kind)
    if not isinstance(kind, PerGroup):
        return kind
    groups = {f"model.{prefix}" if prefix else "": share for prefix, share in kind.groups.items()}
    return PerGroup(groups if "" in groups else {**groups, CANARY: max(groups.values())})


def released(engine: Any, slots: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """What one step on these slots gives to the optimizer times the expected batch size, by parameter, in float64.

    It is zero where the optimizer is given nothing.

    Raises:
        DpcheckError: what :meth:`PrivacyEngine.step` raises.
    """
    # An adapted clipping norm goes back to the first, so that releases can be compared.
    engine._max_grad_norm = engine.settings.max_grad_norm
    batch = LogicalBatch(engine.steps_taken, torch.as_tensor(slots, dtype=torch.long))
    engine._pending = batch
    return step(engine, batch)


def step(engine: Any, batch: LogicalBatch) -> dict[str, Tensor]:
    """The same on a batch from iterating the engine."""
    reader: Reader = engine.optimizer
    reader.read = {}
    engine.step(batch)
    divisor = engine.settings.expected_batch_size
    read = reader.read or {name: _flat(p, True) for name, p in reader.names.items()}
    return {name: values * divisor for name, values in read.items()}
