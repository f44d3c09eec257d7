"""Training that demands a certificate: of the model and loss at first, and of each batch's form in every step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from dpcheck.engine.admission import checked_method
from dpcheck.engine.clipped import Clipped
from dpcheck.engine.sampling import Loader
from dpcheck.engine.summing import ClipperLike, on_device
from torch import Tensor, nn

from dpcheck.capture import LossFn
from dpcheck.errors import DpcheckError, a_type
from dpcheck.unit import Unit

if TYPE_CHECKING:
    from dpcheck.certificate import Certificate


# A certificate or the path of one.
Demanded: TypeAlias = "Certificate | str | os.PathLike[str] | None"

_FEW = 8


def admitted(
    model: nn.Module,
    loss_fn: LossFn,
    loader: Loader,
    parameters: Mapping[str, Tensor],
    check: bool,
    certificate: Demanded,
) -> tuple[str, Callable[[ClipperLike], ClipperLike]]:
    """The clipper's method, and what keeps a clipper to the certificate, if one is demanded.

    Args:
        loader: its first records are read if something is checked on them.

    Raises:
        DpcheckError: lists the findings, or names what the certificate is not of.
    """
    if certificate is None and not check:
        return "auto", lambda clipper: clipper
    few = on_device(loader.collate(torch.arange(min(_FEW, len(loader.dataset)))), parameters)
    valid = _demanded(certificate, model, loss_fn, loader.unit, few) if certificate is not None else None
    method = checked_method(model, loader.unit.loss(loss_fn), few) if check else "auto"
    return method, lambda clipper: clipper if valid is None else OnlyCertified(clipper, valid, model)


def _demanded(
    certificate: Certificate | str | os.PathLike[str], model: nn.Module, loss_fn: LossFn, unit: Unit, few: Any
) -> Certificate:
    from dpcheck.certificate import Certificate  # an engine without one does not load the analysis and its rules

    if isinstance(certificate, str | os.PathLike):
        certificate = Certificate.load(certificate)
    if not isinstance(certificate, Certificate):
        raise DpcheckError(
            f"certificate is {a_type(certificate)}, neither a path nor a dpcheck.Certificate",
            where="certificate",
            next="pass certificate=dpcheck.certify(model, loss_fn, batch), or the path of a saved one",
        )
    certificate.refuse_another(model, loss_fn, unit, few)
    return certificate


class OnlyCertified:
    """A clipper that clips nothing but what the certificate is of."""

    def __init__(self, clipper: ClipperLike, certificate: Certificate, model: nn.Module) -> None:
        self._clipper, self._certificate, self._model = clipper, certificate, model

    @property
    def method(self) -> str:
        return self._clipper.method

    @property
    def reason(self) -> str:
        return self._clipper.reason

    @property
    def max_grad_norm(self) -> float:
        return self._clipper.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        self._clipper.max_grad_norm = value

    def __call__(self, batch: Any, weights: Tensor | None = None) -> Clipped:
        """As the clipper.

        Raises:
            DpcheckError: for a model that has changed, or a batch of a form that was not certified.
        """
        self._certificate.refuse_another_model(self._model)
        self._certificate.entry(batch)
        return self._clipper(batch, weights)
