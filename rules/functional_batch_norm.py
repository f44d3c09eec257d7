"""DP102 functional-batch-norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class FunctionalBatchNorm(Rule):
    """Batch normalisation called as a function.

    What it finds
    -------------
    A call of `F.batch_norm(..., training=True)` outside a batch-norm module. Looking for modules does not find it.

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
            return self.b(F.batch_norm(self.a(x), None, None, training=True).relu())


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
            return self.b(F.group_norm(self.a(x), 2).relu())


    model = Net()


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Unsafe: group norm computes another function. The call is replaced by `F.group_norm` with the same weight, bias
    and eps; running statistics that were passed to it are not used any more.

    References
    ----------
    Wu and He 2018, Group Normalization, https://arxiv.org/abs/1803.08494
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP102"
    name: ClassVar[str] = "functional-batch-norm"
    fix: ClassVar[Applicability | None] = "unsafe"

    def claims(self, event: Event, facts: Facts) -> bool:
        return common.packet(event) in common.BATCH_NORM_OPS

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        message = f"batch norm is called as a function{common.place(event)}: {common.effect(event)}"
        return common.from_event(self, event, message, "use F.group_norm, or a normalisation over one sample")
