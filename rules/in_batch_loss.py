"""DP401 in-batch-loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class InBatchLoss(Rule):
    """Losses of a sample that use other samples of the batch.

    What it finds
    -------------
    The samples meet in the loss function itself: contrastive losses with in-batch negatives, a mean over the
    tokens of the
    whole batch, a normaliser taken from the batch.

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

    model = nn.Linear(4, 3)


    def loss_fn(model, batch):
        x, y = batch
        h = F.normalize(model(x), dim=1)
        return F.cross_entropy(h @ h.t(), torch.arange(len(x)), reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Use instead
    -----------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Linear(4, 3)


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Display only: compare each sample with fixed or public negatives, and average over its own tokens.

    References
    ----------
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP401"
    name: ClassVar[str] = "in-batch-loss"
    fix: ClassVar[Applicability | None] = "display-only"

    def claims(self, event: Event, facts: Facts) -> bool:
        return event.kind == "forward" and common.in_loss(event)

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        message = f"in the loss function, {event.op} {event.reason}: {common.effect(event)}"
        return common.from_event(self, event, message, "make each loss a function of its own sample")
