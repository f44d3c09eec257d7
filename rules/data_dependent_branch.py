"""DP107 data-dependent-branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class DataDependentBranch(Rule):
    """Control flow that depends on several samples.

    What it finds
    -------------
    An `if`, a `while` or a number taken from a tensor (`.item()`) for which the oracle saw that the loss of a
    sample changes
    with other samples.

    Why it breaks privacy
    ---------------------
    DP-SGD bounds what one record adds to the sum of gradients by clipping that record's own gradient. Here the
    gradient of every other record moves with it too, so removing one record changes the sum by more than the
    clipping norm, and the accountant's epsilon is not true.

    Example
    -------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x)
            if h.mean() > 0:
                h = -2 * h
            return self.b(h)


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
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.where(h.mean(1, keepdim=True) > 0, -2 * h, h))


    model = Net()


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Display only.

    References
    ----------
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP107"
    name: ClassVar[str] = "data-dependent-branch"
    fix: ClassVar[Applicability | None] = "display-only"

    def claims(self, event: Event, facts: Facts) -> bool:
        branches = facts.failure is not None and facts.failure.kind in ("branch", "shape")
        return event.kind == "not-captured" and event.refuted and branches

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        worst = f"{facts.oracle.worst:.1e}" if facts.oracle else "?"
        message = f"{event.reason}, and the loss or gradient of a sample changes with the others (by {worst}, relative)"
        return common.from_event(self, event, message, "decide for each sample, for example with torch.where")
