"""Moving an optimizer from a model to its fixed copy."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from dpcheck.errors import DpcheckError


def repoint(optimizer: Optimizer, old: nn.Module, new: nn.Module) -> None:
    """Points ``optimizer`` from the parameters of ``old`` to those of the same name in ``new``; its state moves along.

    Raises:
        DpcheckError: if it holds a parameter that ``old`` does not, or whose name or shape ``new`` does not have;
            nothing has been moved then.
    """
    names = {id(p): name for name, p in old.named_parameters()}
    targets = dict(new.named_parameters())
    moved: list[tuple[list[Any], int, nn.Parameter, nn.Parameter]] = []
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):
            name = names.get(id(p))
            target = targets.get(name or "")
            if target is None or target.shape != p.shape:
                model = "given" if name is None else "fixed"
                raise DpcheckError(
                    f"the optimizer holds a parameter of shape {list(p.shape)} that the {model} model does not have",
                    where=name,
                    next="build a new optimizer from result.model.parameters()",
                )
            moved.append((group["params"], i, p, target))
    for held, i, p, target in moved:
        held[i] = target
        if p in optimizer.state:
            optimizer.state[target] = optimizer.state.pop(p)
