"""DP105 cross-sample-product."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class CrossSampleProduct(Rule):
    """Matrix products and attention between samples.

    What it finds
    -------------
    `mm`, `bmm`, `einsum`, `cdist` or attention in which rows of different samples meet, such as attention
    across the batch.

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
            return self.b((h @ h.t()).softmax(-1) @ h)


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
            return self.b(h.softmax(-1) * h)


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

    code: ClassVar[str] = "DP105"
    name: ClassVar[str] = "cross-sample-product"
    fix: ClassVar[Applicability | None] = "display-only"

    _WORDS = frozenset({"mm", "bmm", "addmm", "baddbmm", "dot", "mv", "matmul", "cdist", "_cdist_forward", "outer"})

    def claims(self, event: Event, facts: Facts) -> bool:
        product = common.packet(event) in self._WORDS or "attention" in common.packet(event)
        return event.kind == "forward" and product and not common.in_loss(event)

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        message = f"{event.op} multiplies rows of different samples{common.place(event)}: {common.effect(event)}"
        return common.from_event(
            self, event, message, "keep the sample axis out of the product (attend within a sample)"
        )
