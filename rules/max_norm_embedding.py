"""DP302 max-norm-embedding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Facts


class MaxNormEmbedding(Rule):
    """Embeddings that rewrite the rows they look up.

    What it finds
    -------------
    `nn.Embedding(max_norm=...)`: the forward scales the looked-up rows of the table in place.

    Why it breaks privacy
    ---------------------
    Which rows were rewritten tells which indices occur in the data; the change of the weights bypasses clipping
    and noise.

    Example
    -------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Sequential(nn.Embedding(9, 8, max_norm=1.0), nn.Flatten(), nn.Linear(32, 3))


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
    Unsafe: without `max_norm` the function changes once rows grow beyond it.

    References
    ----------
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP302"
    name: ClassVar[str] = "max-norm-embedding"
    fix: ClassVar[Applicability | None] = "unsafe"

    def scan(self, facts: Facts) -> Iterable[Diagnostic]:
        for write in facts.written_parameters():
            if "embedding_renorm" in write.op:
                path = write.name.rpartition(".")[0]
                yield Diagnostic(
                    code=self.code,
                    name=self.name,
                    message=f"an embedding rewrites the rows of {write.name!r} that it looks up (max_norm), un-noised",
                    location=write.origin.location if write.origin else None,
                    module=path,
                    parameter=write.name,
                    related=common.related_to(write.origin),
                    help="set max_norm=None; clip the table after the private step if you need to",
                    fix=self.fix,
                )
