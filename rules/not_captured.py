"""DP902 not-captured."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class NotCaptured(Rule):
    """Models whose graph could not be captured.

    What it finds
    -------------
    Control flow, numbers or shapes that depend on data, and ops that cannot run on fake tensors. The oracle
    compared samples
    alone with samples in the batch and saw no difference, or could not run.

    Why it breaks privacy
    ---------------------
    Nothing was found, and nothing was proven. The engine trains such a model with every sample computed alone,
    which is
    private by construction but slow.

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
            if not torch.isfinite(h).all():
                h = torch.nan_to_num(h)
            return self.b(h)


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
            return self.b(torch.nan_to_num(self.a(x)))


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
    torch.fx.experimental.proxy_tensor.make_fx
    """

    code: ClassVar[str] = "DP902"
    name: ClassVar[str] = "not-captured"
    fix: ClassVar[Applicability | None] = None

    def claims(self, event: Event, facts: Facts) -> bool:
        return event.kind == "not-captured"

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        failed = facts.oracle.failed if facts.oracle else None
        seen = f"the oracle could not run either: {failed}" if failed else "the oracle saw no mixing"
        message = f"the graph could not be captured: {event.reason}; {seen}"
        return common.from_event(
            self, event, message, "move the check of data out of the forward, for example to the loader"
        )
