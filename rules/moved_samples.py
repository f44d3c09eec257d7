"""DP106 moved-samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class MovedSamples(Rule):
    """Samples moved to another place of the batch.

    What it finds
    -------------
    `roll`, `flip`, `index` or a permutation along the sample axis, whose result meets the original batch
    (mixup, shuffled
    negatives), or labels of other samples.

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
            return self.b(0.7 * h + 0.3 * h.roll(1, 0))


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
            return self.b(0.7 * h + 0.3 * h.roll(1, 1))


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
    Zhang et al. 2018, mixup, https://arxiv.org/abs/1710.09412
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP106"
    name: ClassVar[str] = "moved-samples"
    fix: ClassVar[Applicability | None] = "display-only"

    _WORDS = frozenset(
        {"roll", "flip", "index", "index_select", "gather", "permute", "transpose", "slice", "select", "view", "cat"}
    )

    def claims(self, event: Event, facts: Facts) -> bool:
        proven = event.kind == "forward" or (event.kind == "unproven" and event.refuted)
        return proven and common.packet(event) in self._WORDS

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        message = f"{event.op} moves samples along the sample axis{common.place(event)}: {common.effect(event)}"
        return common.from_event(self, event, message, "mix within a sample, or prepare mixed records before sampling")
