"""DP304 state-between-calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class StateBetweenCalls(Rule):
    """Python state that carries data from one batch to the next.

    What it finds
    -------------
    Plain attributes (an average, a list or queue of past activations, a value set on the first call), caches and other
    objects outside the registered buffers that still depend on a batch after the next one has run, or that change its
    losses. Two runs are compared that differ in the first of two batches.

    Why it breaks privacy
    ---------------------
    Clipping bounds what a record adds to the gradient of its own batch. Here it also changes the losses of later
    batches, in which nothing of it is clipped or counted.

    Example
    -------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.centre = nn.Linear(4, 3), torch.zeros(3)

        def forward(self, x):
            h = self.a(x)
            out = h - self.centre
            self.centre = 0.9 * self.centre + 0.1 * h.detach().mean(0)
            return out


    model = Net()


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Use instead
    -----------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.centre = nn.Linear(4, 3), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.a(x) - self.centre


    model = Net()


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Display only: learn the value as a parameter, or drop it.

    References
    ----------
    Ponomareva et al. 2023, How to DP-fy ML, https://arxiv.org/abs/2303.00654
    """

    code: ClassVar[str] = "DP304"
    name: ClassVar[str] = "state-between-calls"
    fix: ClassVar[Applicability | None] = "display-only"

    def claims(self, event: Event, facts: Facts) -> bool:
        written = event.kind == "not-captured" and facts.failure is not None and facts.failure.kind == "state"
        return event.kind == "state" or (written and event.refuted)

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        return common.from_event(self, event, f"{event.reason}: the losses depend on samples of other batches", _HELP)

    def scan(self, facts: Facts) -> Iterable[Diagnostic]:
        if facts.past.losses:
            return
        for event in facts.kept:
            yield common.from_event(self, event, f"{event.reason}, un-noised", _HELP)


_HELP = "learn it as a parameter, compute it from each sample, or keep nothing between calls"
