"""DP104 frequency-scaled-embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts

_BACKWARDS = ("embedding_dense_backward", "_embedding_bag_backward")


class FrequencyScaledEmbedding(Rule):
    """Embeddings that scale gradients by counts in the batch.

    What it finds
    -------------
    `nn.Embedding` and `nn.EmbeddingBag` with `scale_grad_by_freq=True`, `F.embedding` and `F.embedding_bag` with it:
    the backward divides by how often an index occurs in the whole batch. The forward shows nothing.

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

    model = nn.Sequential(nn.Embedding(9, 8, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(32, 3))


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randint(0, 9, (6, 4)), torch.randint(0, 3, (6,)))
    ```

    Use instead
    -----------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(32, 3))


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randint(0, 9, (6, 4)), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Safe: the function stays the same; gradients lose a scale that no private training can have.

    References
    ----------
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP104"
    name: ClassVar[str] = "frequency-scaled-embedding"
    fix: ClassVar[Applicability | None] = "safe"

    def claims(self, event: Event, facts: Facts) -> bool:
        return event.kind == "backward" and common.packet(event) in _BACKWARDS

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        message = f"the gradient{common.place(event)} is scaled by counts over the batch: {common.effect(event)}"
        return common.from_event(self, event, message, "set scale_grad_by_freq=False")
