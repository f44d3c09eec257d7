"""DP301 data-written-buffer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Facts


class DataWrittenBuffer(Rule):
    """Buffers written from data.

    What it finds
    -------------
    A buffer whose new value after the forward depends on the samples: moving averages, codebooks, quantisation
    ranges,
    InstanceNorm's running statistics.

    Why it breaks privacy
    ---------------------
    Buffers are saved with the model. Noise is added to gradients only, so such a buffer publishes a function of
    the data
    without any noise.

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
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x):
            h = self.a(x)
            self.seen = 0.9 * self.seen + 0.1 * h.detach().mean(0)
            return h


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
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x):
            self.steps = self.steps + 1
            return self.a(x)


    model = Net()


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Unsafe: running statistics of normalisation layers go; another buffer of the module that writes it keeps the value
    that it has, and what the forward writes there is dropped.

    References
    ----------
    Ponomareva et al. 2023, How to DP-fy ML, https://arxiv.org/abs/2303.00654
    """

    code: ClassVar[str] = "DP301"
    name: ClassVar[str] = "data-written-buffer"
    fix: ClassVar[Applicability | None] = "unsafe"

    def scan(self, facts: Facts) -> Iterable[Diagnostic]:
        reported = common.batch_norm_paths(facts)
        origins = {write.name: write.origin for write in facts.writes}
        for buffer in facts.buffers:
            path = buffer.name.rpartition(".")[0]
            if buffer.kind == "data" and path not in reported:
                yield Diagnostic(
                    code=self.code,
                    name=self.name,
                    message=f"the buffer {buffer.name!r} is written from data: it would be saved un-noised",
                    location=buffer.location,
                    module=path,
                    buffer=buffer.name,
                    related=common.related_to(origins.get(buffer.name)),
                    help="do not update it in private training, or keep it out of the model",
                    fix=self.fix,
                )
