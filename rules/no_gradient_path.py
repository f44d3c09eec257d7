"""DP201 no-gradient-path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Facts


class NoGradientPath(Rule):
    """Trainable parameters that no loss reaches.

    What it finds
    -------------
    A parameter with `requires_grad=True` whose gradient is never computed: unused, behind a `detach`, or in a
    branch that is
    not taken.

    Why it breaks privacy
    ---------------------
    It would get noise in every step and no signal: it drifts, and its noise is part of the model. Other tools
    drop such a
    parameter in silence; a mistake in the model is then never seen.

    Example
    -------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
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
            self.a, self.also = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.a(x) + self.also(x)


    model = Net()


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Safe: it is frozen with `requires_grad_(False)`. It never had a gradient, and no output changes. Where it was to be
    trained, the mistake is elsewhere: use it in the loss.

    References
    ----------
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP201"
    name: ClassVar[str] = "no-gradient-path"
    fix: ClassVar[Applicability | None] = "safe"

    def scan(self, facts: Facts) -> Iterable[Diagnostic]:
        for parameter in facts.parameters:
            if parameter.status == "no-gradient":
                missing = "is read by nothing" if parameter.uses == () else "is reached by no loss"
                yield Diagnostic(
                    code=self.code,
                    name=self.name,
                    message=f"the trainable parameter {parameter.name!r} {missing}: "
                    "private training would add noise to it and nothing else",
                    location=parameter.uses[0] if parameter.uses else None,
                    module=parameter.name.rpartition(".")[0],
                    parameter=parameter.name,
                    help="use it in the loss, or freeze it with requires_grad_(False)",
                    fix=self.fix,
                )
