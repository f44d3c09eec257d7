"""What must stay as it was when the engine was made, and whose gradients are in p.grad."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from dpcheck.engine.fingerprint import changed, fingerprint, is_structure, names_in
from dpcheck.engine.gradients import in_dtype_of
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from dpcheck.errors import DpcheckError, a_type

log = logging.getLogger("dpcheck")

_NEW_ENGINE = "make the model and its optimizer first, then PrivacyEngine; for a new phase make a new one"
_WIDE = (torch.float32, torch.float64, torch.complex64, torch.complex128)


class Watch:
    """Remembers a model and its optimizer, and refuses changes that would break the guarantee.

    Raises:
        DpcheckError: if the optimizer is not one that updates exactly the trainable parameters of the model.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.parameters = _trainable(model)
        self._forms = _forms(self.parameters)
        self._modes = _modes(model)
        self._print = fingerprint(model)
        self._told: set[tuple[str, str]] = set()
        self._ours: dict[str, tuple[Tensor, int]] = {}
        if not self.parameters:
            raise DpcheckError(
                "the model has no trainable parameter, so there is nothing to train privately",
                where="model",
                next="set requires_grad=True on the parameters to train",
            )
        narrow = [name for name, p in self.parameters.items() if p.dtype not in _WIDE]
        if narrow:
            raise DpcheckError(
                f"the trainable parameter {narrow[0]!r} is {self.parameters[narrow[0]].dtype}: a sum of clipped "
                "gradients rounded to so few bits has no bounded sensitivity",
                where=narrow[0],
                next="keep trainable parameters in float32 and use torch.autocast in loss_fn",
            )
        if not isinstance(optimizer, Optimizer):
            raise DpcheckError(f"optimizer is {a_type(optimizer)}, not a torch.optim.Optimizer", where="optimizer")
        if isinstance(optimizer, (SparseAdam, LBFGS)):
            why = "evaluates the loss itself" if isinstance(optimizer, LBFGS) else "leaves rows without noise"
            raise DpcheckError(
                f"{type(optimizer).__name__} {why}; the private gradient is dense and computed once",
                where="optimizer",
                next="use a dense first-order optimizer, such as torch.optim.AdamW(model.parameters())",
            )
        self._check_hooks()
        self._check_optimizer()

    def refuse(self) -> None:
        """:meth:`refuse_changes` and :meth:`refuse_foreign_gradients`."""
        self.refuse_changes()
        self.refuse_foreign_gradients()

    def refuse_changes(self) -> None:
        """Raises DpcheckError if the model, its train/eval modes or the optimizer's parameters are not the first ones.

        Attributes of modules may change, such as a rate of dropout: the next step is planned anew, and that is logged.
        """
        now = _trainable(self.model)
        for name in [*self.parameters, *now]:
            if now.get(name) is not self.parameters.get(name):
                change = "was frozen or removed" if name not in now else "is new or was unfrozen"
                if name in now and name in self.parameters:
                    change = "was replaced by another tensor"
                raise DpcheckError(
                    f"the trainable parameter {name!r} {change} after PrivacyEngine was made",
                    where=name,
                    next=_NEW_ENGINE,
                )
        for name, form in _forms(now).items():
            if form != self._forms[name]:
                raise DpcheckError(
                    f"the trainable parameter {name!r} was {self._forms[name]} and is {form} now",
                    where=name,
                    next=f"{_NEW_ENGINE}; to compute in fewer bits use torch.autocast in loss_fn",
                )
        self._refuse_another_model()
        for name, training in _modes(self.model).items():
            if training != self._modes.get(name):
                now_in, before = ("train", "eval") if training else ("eval", "train")
                raise DpcheckError(
                    f"the module {name or 'model'!r} is now in {now_in} mode; it was checked in {before} mode",
                    where=name or "model",
                    next=f"call .{before}() on it before engine.step()",
                )
        self._check_hooks()
        self._check_optimizer()

    def _refuse_another_model(self) -> None:
        before, now = self._print, fingerprint(self.model)
        places = [place for place in changed(before, now) if place[1] != "training"]
        for path, attribute in places:
            if is_structure(attribute):
                names = f" ({', '.join(own)})" if (own := names_in(before, now, (path, attribute))) else ""
                raise DpcheckError(
                    f"the {attribute}{names} of the module {path or 'model'!r} changed after PrivacyEngine was made: "
                    "this is another model than the one that was checked",
                    where=path or "model",
                    next=_NEW_ENGINE,
                )
        new = [place for place in places if place not in self._told]
        if new:
            shown = ", ".join(f"{path}.{attribute}" if path else attribute for path, attribute in new[:3])
            log.warning("%s of the model changed: from now on steps are planned anew for what it is", shown)
        self._told.update(new)
        self._print = now

    def _check_hooks(self) -> None:
        for name, p in self.parameters.items():
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                raise DpcheckError(
                    f"the trainable parameter {name!r} has a gradient hook, which would not be called: the gradient of "
                    "each sample is clipped, and no other is computed",
                    where=name,
                    next="remove the hook; change gradients after engine.step(), or the loss",
                )

    def refuse_foreign_gradients(self) -> None:
        """Raises DpcheckError if a p.grad holds anything but what :meth:`publish` put there."""
        for name, p in self.parameters.items():
            grad = p.grad
            if grad is None:
                continue
            ours, version = self._ours.get(name, (None, -1))
            if (grad is not ours or grad._version != version) and bool(grad.count_nonzero()):
                raise DpcheckError(
                    f"the parameter {name!r} has a gradient that is not the engine's: one without noise",
                    where=name,
                    next="call optimizer.zero_grad() before engine.step(); put regularisers into loss_fn",
                )

    def publish(self, gradients: Mapping[str, Tensor]) -> None:
        """Sets p.grad of every trainable parameter, in the parameter's dtype; of the others it is cleared.

        Gradients of complex parameters come as pairs of real numbers, [*, 2].
        """
        for p in self.model.parameters():
            p.grad = None
        for name, p in self.parameters.items():
            p.grad = in_dtype_of(gradients[name], p)
            self._ours[name] = p.grad, p.grad._version

    def _check_optimizer(self) -> None:
        names = {id(p): name for name, p in self.model.named_parameters()}
        held = set()
        for g, group in enumerate(self.optimizer.param_groups):
            for i, p in enumerate(group["params"]):
                held.add(id(p))
                if id(p) not in names:
                    raise DpcheckError(
                        f"the optimizer holds a parameter of shape {list(p.shape)} that is not the model's: "
                        "it would be updated without noise",
                        where=f"optimizer.param_groups[{g}]['params'][{i}]",
                        next="build the optimizer from model.parameters() of the model that you pass",
                    )
        missing = [name for name, p in self.parameters.items() if id(p) not in held]
        if missing:
            raise DpcheckError(
                f"the optimizer lacks trainable parameters: {', '.join(map(repr, missing))}",
                where="optimizer",
                next="build it from model.parameters(), or freeze them with requires_grad_(False)",
            )


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _forms(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{p.dtype} {list(p.shape)}" for name, p in parameters.items()}


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}
