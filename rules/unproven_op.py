"""DP901 unproven-op."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class UnprovenOp(Rule):
    """Ops for which independence could not be proven.

    What it finds
    -------------
    An op without a transfer rule, such as one of your own, or one whose result depends on indices in the data, between
    the samples and a loss or gradient. The oracle compared samples alone with samples in the batch and saw no
    difference.

    Why it breaks privacy
    ---------------------
    Nothing was found, and nothing was proven. The engine trains such a model with every sample computed alone, which is
    private by construction but slow. An op of your own whose rows do not meet can be declared with
    `dpcheck.engine.register_site`, which tests the declaration.

    Example
    -------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    @torch.library.custom_op("example::bins", mutates_args=())
    def bins(x: torch.Tensor) -> torch.Tensor:
        return (x.unsqueeze(-1) > torch.linspace(-1, 1, 5)).sum(-1)


    bins.register_fake(lambda x: torch.empty_like(x, dtype=torch.int64))


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Embedding(6, 8), nn.Linear(32, 3)

        def forward(self, x):
            return self.b(self.a(bins(x)).flatten(1))


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
            self.a, self.b = nn.Embedding(6, 8), nn.Linear(32, 3)

        def forward(self, x):
            bins = (x.unsqueeze(-1) > torch.linspace(-1, 1, 5)).sum(-1)
            return self.b(self.a(bins).flatten(1))


    model = Net()


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    None.

    References
    ----------
    The transfer rules: `dpcheck/samplesets`.
    """

    code: ClassVar[str] = "DP901"
    name: ClassVar[str] = "unproven-op"
    fix: ClassVar[Applicability | None] = None

    def claims(self, event: Event, facts: Facts) -> bool:
        return event.kind == "unproven"

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        subject = f"{event.op}{common.place(event)} " if event.op else ""
        message = f"independence is unproven: {subject}{event.reason}"
        help = "rewrite the line with ops along the axes of one sample, or train with every sample alone"
        if event.op and not event.op.startswith(("aten.", "prims.")):
            help = "declare the op's rows with dpcheck.engine.register_site, or train with every sample alone"
        return common.from_event(self, event, message, help)
