"""dpcheck: can this model be trained with DP-SGD, and will the guarantee be true?

The names below are imported on first use, so that ``dpcheck --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpcheck import engine, testing
    from dpcheck.api import check
    from dpcheck.bucketing import bucketed
    from dpcheck.certificate import Certificate, certify
    from dpcheck.diagnostic import Diagnostic, Location, Report
    from dpcheck.engine.trainer import PrivacyEngine
    from dpcheck.errors import DpcheckError
    from dpcheck.fixer import fix
    from dpcheck.records import by_user
    from dpcheck.unit import Unit
    from dpcheck.verification import verify

__version__ = "0.1.0"
__all__ = [
    "Certificate",
    "Diagnostic",
    "DpcheckError",
    "Location",
    "PrivacyEngine",
    "Report",
    "Unit",
    "bucketed",
    "by_user",
    "certify",
    "check",
    "engine",
    "fix",
    "testing",
    "verify",
]

_HOMES = {
    "check": "dpcheck.api",
    "certify": "dpcheck.certificate",
    "Certificate": "dpcheck.certificate",
    "fix": "dpcheck.fixer",
    "verify": "dpcheck.verification",
    "PrivacyEngine": "dpcheck.engine.trainer",
    "DpcheckError": "dpcheck.errors",
    "Diagnostic": "dpcheck.diagnostic",
    "Location": "dpcheck.diagnostic",
    "Unit": "dpcheck.unit",
    "bucketed": "dpcheck.bucketing",
    "by_user": "dpcheck.records",
    "Report": "dpcheck.diagnostic",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in ("engine", "testing"):
        return importlib.import_module(f"dpcheck.{name}")
    raise AttributeError(f"module 'dpcheck' has no attribute {name!r}")
