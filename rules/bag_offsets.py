"""DP111 bag-offsets."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class BagOffsets(Rule):
    """Embedding bags that are cut at offsets from the batch.

    What it finds
    -------------
    `nn.EmbeddingBag` or `F.embedding_bag` on flat indices with offsets that are data of the batch, or that put indices
    of several samples in one bag. Offsets that are made from shapes alone, one bag or more for each sample, are fine.

    Why it breaks privacy
    ---------------------
    A bag ends where the next one starts: the offset of one record decides what is in the bag of another. And a flat
    tensor of indices has no axis along which records lie, so no record can be taken out of it.

    Example
    -------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(9, 8), nn.Linear(8, 3)

        def forward(self, words, offsets):
            return self.head(self.bag(words, offsets))


    model = Net()


    def loss_fn(model, batch):
        words, offsets, y = batch
        return F.cross_entropy(model(words, offsets), y, reduction="none")


    batch = (torch.randint(0, 9, (6,)), torch.tensor([0, 2, 3, 4, 5, 6]), torch.randint(0, 3, (6,)))
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
            self.bag, self.head = nn.EmbeddingBag(9, 8, padding_idx=0), nn.Linear(8, 3)

        def forward(self, words):
            return self.head(self.bag(words))


    model = Net()


    def loss_fn(model, batch):
        words, y = batch
        return F.cross_entropy(model(words), y, reduction="none")


    # One row of words for each record, filled up with padding_idx, which no bag counts.
    batch = (torch.tensor([[1, 2], [3, 0], [4, 0], [5, 0], [6, 0], [0, 0]]), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    None: the batch has to be laid out differently where it is collated.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.EmbeddingBag.html
    """

    code: ClassVar[str] = "DP111"
    name: ClassVar[str] = "bag-offsets"
    fix: ClassVar[Applicability | None] = None

    def claims(self, event: Event, facts: Facts) -> bool:
        mixes = event.kind == "forward" or event.refuted
        return mixes and common.packet(event) in ("_embedding_bag", "_embedding_bag_forward_only")

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        message = f"an embedding bag{common.place(event)} {event.reason}: {common.effect(event)}"
        help = "pass indices as [B, L], one row for each record, filled up with padding_idx, and no offsets"
        return common.from_event(self, event, message, help)
