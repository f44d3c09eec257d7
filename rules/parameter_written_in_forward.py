"""DP303 parameter-written-in-forward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Facts


class ParameterWrittenInForward(Rule):
    """Parameters that the forward overwrites.

    What it finds
    -------------
    An in-place write to a parameter inside the forward, other than an embedding's `max_norm`.

    Why it breaks privacy
    ---------------------
    The write bypasses clipping and noise. If it depends on data it publishes the data; if not, the optimizer
    still works
    on other values than it thinks.

    Example
    -------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            with torch.no_grad():
                self.a.bias.mul_(0.99)
            return self.a(x)


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
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            return self.a(x)


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

    code: ClassVar[str] = "DP303"
    name: ClassVar[str] = "parameter-written-in-forward"
    fix: ClassVar[Applicability | None] = "display-only"

    def scan(self, facts: Facts) -> Iterable[Diagnostic]:
        for write in facts.written_parameters():
            if "embedding_renorm" not in write.op:
                yield Diagnostic(
                    code=self.code,
                    name=self.name,
                    message=f"the forward overwrites the parameter {write.name!r}, past clipping and noise",
                    location=write.origin.location if write.origin else None,
                    module=write.name.rpartition(".")[0],
                    parameter=write.name,
                    related=common.related_to(write.origin),
                    help="change parameters only through the optimizer",
                    fix=self.fix,
                )
