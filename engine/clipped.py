"""What a clipper returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clipped:
    """The result of one call.

    Attributes:
        grads: by parameter name, ``sum_i weights[i] * factor_i * g_i``, in the parameter's shape and dtype; the
            factor is ``min(1, C / norm_i)`` of the parameter's group (one group if flat), or that of another kind.
        norms: L2 norm of every sample's whole gradient before clipping, [B], float32 or wider. Not private.
        losses: [B]. Not private.
        group_norms: the same of each group of parameters, by its name, where groups are clipped apart. Not private.
    """

    grads: dict[str, Tensor]
    norms: Tensor
    losses: Tensor
    group_norms: dict[str, Tensor] = field(default_factory=dict)

    def samples(self, count: int) -> Clipped:
        """Norms and losses of the first ``count`` samples, without the sum."""
        groups = {name: norms[:count] for name, norms in self.group_norms.items()}
        return Clipped({}, self.norms[:count], self.losses[:count], groups)


def joined(parts: Sequence[Clipped]) -> Clipped:
    """Of all samples, in the order of the parts. The sums of the first part are added to."""
    total = parts[0].grads
    for part in parts[1:]:
        for name, grad in part.grads.items():
            total[name].add_(grad)
    groups = {name: torch.cat([p.group_norms[name] for p in parts]) for name in parts[0].group_norms}
    return Clipped(total, torch.cat([p.norms for p in parts]), torch.cat([p.losses for p in parts]), groups)
