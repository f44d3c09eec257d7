"""The report for machines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpcheck import __version__
from dpcheck.diagnostic import Report
from dpcheck.report import NOT_CHECKED

SCHEMA = 1


def render(document: Mapping[str, Any]) -> str:
    """What a run found, as JSON.

    ``schema`` is an integer that grows with every incompatible change, ``version`` is dpcheck's, ``target`` and
    ``symbol`` say what was checked, ``ok`` is the verdict after fixes. ``check`` has the fields of
    :class:`dpcheck.Report`; ``fix``, ``verify`` and ``train`` are there when they were asked for and reached.
    Numbers that are not finite are the strings ``inf``, ``-inf`` and ``nan``.
    """
    return json.dumps({"schema": SCHEMA, "version": __version__, **plain(document)}, indent=2)


def failed(target: str) -> str:
    """The document of a target that could not be checked."""
    return render({"target": target, "symbol": "", "ok": False, "passes": False, "error": NOT_CHECKED})


def plain(value: Any) -> Any:
    """Reports, dataclasses, mappings, lists and numbers as what JSON can hold."""
    if isinstance(value, Report):
        return {"ok": value.ok, **_fields(value)}
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def join(texts: Sequence[str]) -> str:
    """One document of several."""
    results = [json.loads(text) for text in texts]
    whole = {"schema": SCHEMA, "version": __version__, "ok": all(r["ok"] for r in results), "targets": results}
    return json.dumps(whole, indent=2)
