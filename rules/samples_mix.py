"""DP109 samples-mix."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class SamplesMix(Rule):
    """Any other op that combines samples.

    What it finds
    -------------
    An op in the forward that gives a value depending on two samples, of a kind that no other rule names.

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
            return self.b(h + torch.fft.fft(h, dim=0).real)


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
            return self.b(h + torch.fft.fft(h, dim=1).real)


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

    code: ClassVar[str] = "DP109"
    name: ClassVar[str] = "samples-mix"
    fix: ClassVar[Applicability | None] = "display-only"

    def claims(self, event: Event, facts: Facts) -> bool:
        return event.kind == "forward" or (event.kind in ("unproven", "not-captured") and event.refuted)

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        message = f"{event.op} {event.reason}".lstrip() + f"{common.place(event)}: {common.effect(event)}"
        return common.from_event(self, event, message, "compute it from one sample at a time")
