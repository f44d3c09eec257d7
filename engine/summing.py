"""The clipped sum of a logical batch, from physical batches, and what was seen of its samples on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from dpcheck.engine.adaptive import Count
from dpcheck.engine.clipped import Clipped, joined
from dpcheck.engine.kinds import Grouping
from dpcheck.engine.noise import Gradients, Mechanism
from dpcheck.engine.ranks import Ranks
from dpcheck.engine.refusals import NotFinite, named
from dpcheck.engine.sampling import Loader, PhysicalBatch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck.errors import DpcheckError

# Far above the rounding error of a float32 sum: what exceeds the bound by more is a wrong gradient or norm.
_SLACK = 1e-3


class ClipperLike(Protocol):
    """What the engine asks of a clipper; see :class:`dpcheck.engine.clipping.Clipper`."""

    max_grad_norm: float

    @property
    def method(self) -> str: ...

    @property
    def reason(self) -> str: ...

    def __call__(self, batch: Any, weights: Tensor | None = None) -> Clipped: ...


@dataclass(frozen=True)
class Seen:
    """The samples of one logical batch. Nothing here is private.

    Attributes:
        losses, norms: [n].
        group_norms: [n] by group, where there are several.
        shortened: how many gradients lost length in some group.
    """

    losses: Tensor
    norms: Tensor
    group_norms: dict[str, Tensor]
    shortened: int

    @property
    def loss(self) -> float | None:
        """The mean; None of no samples."""
        return self.losses.double().mean().item() if len(self.losses) else None

    @property
    def clipped_fraction(self) -> float | None:
        """Share of gradients that lost length; None of no samples."""
        return self.shortened / len(self.norms) if len(self.norms) else None

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """Of the parts of a logical batch, in their order."""
        if len(parts) == 1:
            return parts[0]
        groups = {name: torch.cat([p.group_norms[name] for p in parts if p.group_norms]) for name in _groups(parts)}
        losses, norms = torch.cat([p.losses for p in parts]), torch.cat([p.norms for p in parts])
        return cls(losses, norms, groups, sum(p.shortened for p in parts))

    def on_cpu(self) -> Seen:
        """For another process."""
        groups = {name: norms.cpu() for name, norms in self.group_norms.items()}
        return Seen(self.losses.cpu(), self.norms.cpu(), groups, self.shortened)

    def within(self, bound: float) -> Count:
        """How many gradients are no longer than ``bound``."""
        return Count(int((self.norms <= bound).sum()), len(self.norms))


def _groups(parts: Sequence[Seen]) -> tuple[str, ...]:
    """Parts without samples have none."""
    return next((tuple(p.group_norms) for p in parts if p.group_norms), ())


class Summer:
    """Sums clipped gradients over the physical batches of a draw, and holds the clipper to its promise."""

    def __init__(
        self,
        clipper: ClipperLike,
        loader: Loader,
        parameters: Mapping[str, nn.Parameter],
        grouping: Grouping,
    ) -> None:
        self.clipper, self.loader, self.parameters, self.grouping = clipper, loader, parameters, grouping
        self._groups = torch.tensor([grouping.of[name] for name in parameters])

    def sum(self, indices: Tensor, mechanism: Mechanism, max_grad_norm: float) -> tuple[Gradients, Seen]:
        """The sum over the records ``indices`` as ``mechanism`` adds it up; zeros if there are none.

        Raises:
            DpcheckError: as the clipper; if a sum, or that of a group, is longer than its bound for each record.
        """
        self.clipper.max_grad_norm = max_grad_norm
        total: Gradients = {}
        parts: list[Clipped] = []
        for chunk, physical in self.loader.physical(indices):
            try:
                clipped = self._clip(physical, max_grad_norm)
            except NotFinite as error:
                raise self._not_finite(error, chunk) from None
            for name, part in mechanism.contribution(clipped.grads).items():
                total[name] = total[name].add_(part) if name in total else part
            parts.append(clipped.samples(physical.real))
        if not total:
            total = mechanism.contribution({name: torch.zeros_like(p) for name, p in self.parameters.items()})
        return total, self._seen(parts, max_grad_norm)

    def sum_of_ranks(
        self, ranks: Ranks, indices: Tensor, mechanism: Mechanism, max_grad_norm: float
    ) -> tuple[Gradients, Seen]:
        """As :meth:`sum`, of which each rank computes its part; the sum is on rank 0, what was seen on all.

        Raises:
            DpcheckError: on all ranks, as :meth:`sum` on one of them.
        """
        total: Gradients = {}

        def part() -> Seen:
            own, seen = self.sum(ranks.own(indices), mechanism, max_grad_norm)
            total.update(own)
            return seen if ranks.size == 1 else seen.on_cpu()

        seen = Seen.joined(ranks.every(part))
        return ranks.reduced(total), seen

    def _clip(self, physical: PhysicalBatch, max_grad_norm: float) -> Clipped:
        clipped = self.clipper(*on_device((physical.data, physical.weights), self.parameters))
        if clipped.grads.keys() != self.parameters.keys():
            odd = sorted(clipped.grads.keys() ^ self.parameters.keys())
            raise DpcheckError(f"the clipper's gradients and the trainable parameters differ in {', '.join(odd)}")
        # In order of the parameters; float64 keeps what a sum of many squares would lose.
        squares = torch.stack([torch.linalg.vector_norm(clipped.grads[n]).double() for n in self.parameters]).square()
        norms = squares.new_zeros(len(self.grouping.names)).index_add_(0, self._groups.to(squares.device), squares)
        real, noun = physical.real, self.loader.unit.noun
        bounds = self.grouping.bounds(norms, max_grad_norm) * real
        for norm, bound, group in zip(norms.sqrt().tolist(), bounds.tolist(), self.grouping.names, strict=True):
            if not norm <= bound * (1 + _SLACK):
                of = f" of group {group!r}" if len(self.grouping.names) > 1 else ""
                raise DpcheckError(
                    f"the clipped sum{of} of {real} {noun}s has norm {norm:g}, above its bound {bound:g}",
                    next="report this model: dpcheck.verify(model, loss_fn, batch) shows which gradient is wrong",
                )
        return clipped

    def _not_finite(self, error: NotFinite, chunk: Tensor) -> DpcheckError:
        for name, p in self.parameters.items():
            if not bool(torch.isfinite(p).all()):
                return DpcheckError(
                    f"the parameter {name!r} is not finite, so that no loss is: training has diverged",
                    where=name,
                    next="load the last good weights and lower the learning rate; the steps taken stay counted",
                )
        noun = self.loader.unit.noun
        # Padding is copies of the first.
        samples = sorted({i if i < len(chunk) else 0 for i in error.samples})
        records = [int(chunk[i]) for i in samples]
        plural = "s" if len(records) > 1 else ""
        return DpcheckError(
            f"the loss or gradient of {noun}{plural} {named(records)} (sample{plural} {named(samples)} of a physical "
            f"batch) is not finite: the step is refused. Parameters and optimizer are as they were, and the step is "
            f"counted in the ledger. Which {noun}s these are is not private",
            where=f"dataset[{records[0]}]",
            next=f"look at these {noun}s, or lower the learning rate: such a gradient cannot be clipped",
        )

    def _seen(self, parts: Sequence[Clipped], max_grad_norm: float) -> Seen:
        if not parts:
            return Seen(torch.zeros(0), torch.zeros(0), {}, 0)
        whole = joined(parts)
        groups, norms = whole.group_norms, whole.norms
        columns = torch.stack(list(groups.values()), 1) if groups else norms.unsqueeze(1)
        shortened = int(self.grouping.shortened(columns, max_grad_norm).sum())
        return Seen(whole.losses, norms, groups, shortened)


def on_device(batch: Any, parameters: Mapping[str, Tensor]) -> Any:
    """``batch`` where the first of ``parameters`` is."""
    device = next(iter(parameters.values())).device
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), batch)
