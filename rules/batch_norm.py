"""DP101 batch-norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dpcheck.rules import common

from dpcheck.diagnostic import Applicability, Diagnostic
from dpcheck.registry import Rule

if TYPE_CHECKING:
    from dpcheck.facts import Event, Facts


class BatchNorm(Rule):
    """Batch normalisation layers in training mode.

    What it finds
    -------------
    A module that normalises with the mean and variance of the batch: `nn.BatchNorm1d/2d/3d`,
    `nn.SyncBatchNorm`, subclasses,
    fused variants, with or without affine weights, frozen or not, as long as it runs in training mode.

    Why it breaks privacy
    ---------------------
    DP-SGD bounds what one record adds to the sum of gradients by clipping that record's own gradient. Here the
    gradient of every other record moves with it too, so removing one record changes the sum by more than the
    clipping norm, and the accountant's epsilon is not true.
    Its running statistics are saved with the model and hold data without noise.

    Example
    -------
    ```python
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


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

    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


    def loss_fn(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")


    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    ```

    Fix safety
    ----------
    Unsafe: group norm computes another function. `dpcheck.fix(..., unsafe=True)` keeps affine weights, eps,
    dtype and device.

    References
    ----------
    Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167
    Wu and He 2018, Group Normalization, https://arxiv.org/abs/1803.08494
    Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133
    """

    code: ClassVar[str] = "DP101"
    name: ClassVar[str] = "batch-norm"
    fix: ClassVar[Applicability | None] = "unsafe"

    def claims(self, event: Event, facts: Facts) -> bool:
        return common.packet(event) in common.BATCH_NORM_OPS and common.is_batch_norm(facts.module_of(event))

    def diagnose(self, event: Event, facts: Facts) -> Diagnostic:
        module = facts.module_of(event)
        message = (
            f"{type(module).__name__} {common.module_path(event)!r} normalises with statistics of the whole batch: "
            f"{common.effect(event)}"
        )
        return common.from_event(
            self,
            event,
            message,
            "replace it by GroupNorm or LayerNorm, or freeze it with .eval() when it is pretrained",
        )
