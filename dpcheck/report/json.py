"""The report for machines."""

from __future__ import annotations

import json
from dataclasses import asdict

from dpcheck import __version__
from dpcheck.diagnostic import Report

SCHEMA = 1


def render(report: Report) -> str:
    """The report as JSON: ``schema`` (an integer that grows with every incompatible change), ``version``, ``ok`` and
    the fields of :class:`dpcheck.Report`."""
    body = {"schema": SCHEMA, "version": __version__, "ok": report.ok, **asdict(report)}
    return json.dumps(body, indent=2)
