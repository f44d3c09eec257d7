"""DP103 batch-statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class BatchStatistics(Rule):
    """Reductions, scans and normalisations along the sample axis.

    What it finds
    -------------
    `mean`, `sum`, `var`, `max`, `norm`, `softmax`, `cumsum`, `sort` and their kind, taken over the samples, and
    used by the
    losses; also when detached, since the value still depends on other samples.

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
            h = self.a(x)
            return self.b(h - h.detach().mean(0))


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
            h = self.a(x)
            return self.b(h - h.mean(1, keepdim=True))


    model = Net()


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Unsafe: where torch.fx traces the forward of the module, the statistic is taken over the axes of each sample. In the
    file the expression is edited where that is the very same, else the model is put through `dpcheck.fix`. Where only
    numbers in the output follow from the statistics (balancing losses of mixtures of experts), they are taken over the
    tokens of each sample, and each sample gets the number that it alone would have given. Scans and sorts over the
    samples, and forwards that cannot be traced, are for you to change: what the statistic is for decides what may
    replace it.

    References
    ----------
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP103"
    name: ClassVar[str] = "batch-statistics"
    fix: ClassVar[Applicability | None] = "unsafe"

    _WORDS = frozenset(
        {
            "sum", "mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "prod", "norm", "median",
            "logsumexp", "linalg_vector_norm", "any", "all", "argmax", "argmin", "_softmax", "_log_softmax", "cumsum",
            "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "topk", "kthvalue", "aminmax", "nansum", "renorm",
        }
    )  # fmt: skip

    def claims(self, event: Event, facts: Facts) -> bool:
        return event.kind == "forward" and common.packet(event) in self._WORDS and not common.in_loss(event)

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        message = f"{event.op} {event.reason}{common.place(event)}: {common.effect(event)}"
        return common.from_event(self, event, message, "take the statistic over the axes of one sample, or drop it")
