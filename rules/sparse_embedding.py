"""DP501 sparse-embedding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Facts
    from dpcheck.source import Origin


class SparseEmbedding(Rule):
    """Embeddings with sparse gradients.

    What it finds
    -------------
    A trainable embedding with `sparse=True`: `nn.Embedding`, `nn.EmbeddingBag` or `F.embedding`.

    Why it breaks privacy
    ---------------------
    With sparse gradients only the rows that were looked up get an update. Rows without noise tell that their
    index did not
    occur. DP-SGD must add noise to every row.

    Example
    -------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Flatten(), nn.Linear(32, 3))


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
    Safe: the function and the gradients stay the same.

    References
    ----------
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP501"
    name: ClassVar[str] = "sparse-embedding"
    fix: ClassVar[Applicability | None] = "safe"

    def scan(self, facts: Facts) -> Iterable[Diagnostic]:
        for name, origin in _sparse(facts):
            yield Diagnostic(
                code=self.code,
                name=self.name,
                message=f"the embedding of {name!r} has sparse gradients: rows that do not occur would get no noise",
                location=origin.location if origin else None,
                module=name.rpartition(".")[0],
                parameter=name,
                related=common.related_to(origin),
                help="set sparse=False",
                fix=self.fix,
            )


def _sparse(facts: Facts) -> Iterator[tuple[str, Origin | None]]:
    """Parameters with sparse gradients; without a graph, those of layers that ask for them."""
    import torch
    from torch import nn

    if facts.capture is not None:
        for name, node in facts.capture.gradients.items():
            if node is not None and node.meta["val"].layout is not torch.strided:
                yield name, node.meta["origin"]
        return
    for path, module in facts.model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and module.weight.requires_grad:
            yield f"{path}.weight" if path else "weight", None
