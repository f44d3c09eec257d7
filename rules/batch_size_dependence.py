"""DP108 batch-size-dependence."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class BatchSizeDependence(Rule):
    """Values that depend on how many samples there are.

    What it finds
    -------------
    The number of samples in the batch enters the arithmetic, as in `x / x.shape[0]`. It is found by comparing
    the graphs of
    two batch sizes.

    Why it breaks privacy
    ---------------------
    The size of a Poisson sample depends on every record of the data set: adding one record changes the scale of all
    gradients. DP-SGD divides by the public expected batch size, once, after the noise.

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
            return self.b(self.a(x) / x.shape[0])


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
            return self.b(self.a(x) / x.shape[1])


    model = Net()


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Unsafe: where torch.fx traces the forward of the module, the number of samples in it becomes a constant, that of the
    batch given, and is written so in the file: put there what you mean. Elsewhere: leave the division to the engine.

    References
    ----------
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP108"
    name: ClassVar[str] = "batch-size-dependence"
    fix: ClassVar[Applicability | None] = "unsafe"

    def claims(self, event: Event, facts: Facts) -> bool:
        return event.kind == "batch-size"

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        message = f"{event.op or 'the model'} {event.reason}{common.place(event)}: {common.effect(event)}"
        return common.from_event(self, event, message, "drop it: the engine divides by the public expected batch size")
