"""Certificates: what was checked and verified, in a form that training can demand.

A certificate says what a check of this version found about one model, loss and kind of batch. It is no signature: who
can write the file can write another one. It keeps what is trained from being something else than what was checked.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dpcheck
from dpcheck.api import check
from dpcheck.capture import LossFn
from dpcheck.diagnostic import Report
from dpcheck.errors import DpcheckError
from dpcheck.identity import code_of, digest, form_of, graph_of, model_of
from dpcheck.proof import Proof
from dpcheck.report.json import plain
from dpcheck.rules import RULES
from dpcheck.unit import Unit, adapted
from dpcheck.verification import verify
from dpcheck.writing import replace

SCHEMA = 1
_AGAIN = "make a new certificate: dpcheck model.py --certificate PATH, or dpcheck.certify(model, loss_fn, batch)"


@dataclass(frozen=True)
class Certificate:
    """What a check and a verification found.

    Attributes:
        valid: every batch was proven without findings and its gradients verified.
        reasons: why not, if not.
        dpcheck, torch, python: versions.
        created: when, in UTC.
        rules: codes of the rules that were applied.
        unit: what one sample is, in words.
        model: digests of modules, parameters, buffers and code; see :func:`dpcheck.identity.model_of`.
        loss: digest of the loss function's code.
        batches: for each shape class: ``form``, ``graph`` (a digest), ``verdict``, ``findings``, ``method``, ``plan``
            (the sites of each parameter) and ``verification``.
    """

    valid: bool
    reasons: tuple[str, ...]
    dpcheck: str
    torch: str
    python: str
    created: str
    rules: tuple[str, ...]
    unit: str
    model: Mapping[str, Mapping[str, str]]
    loss: str
    batches: tuple[Mapping[str, Any], ...]

    def to_json(self) -> str:
        """With ``schema`` and a ``digest`` of the rest."""
        content = {"schema": SCHEMA, **plain(asdict(self))}
        return json.dumps({**content, "digest": digest(content)}, indent=2) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it.

        Raises:
            DpcheckError: if that is not possible.
        """
        try:
            replace(Path(path), self.to_json().encode())
        except OSError as error:
            raise DpcheckError(
                f"{path} cannot be written: {error.strerror}", "certificate", "pass another path"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read one that :meth:`save` wrote.

        Raises:
            DpcheckError: if the file cannot be read, is no certificate, or was changed.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DpcheckError(f"the certificate cannot be read: {error}", str(path), _AGAIN) from error
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != {*names, "schema", "digest"}:
            raise DpcheckError("this file is no certificate of dpcheck", str(path), _AGAIN)
        if content["schema"] != SCHEMA:
            raise DpcheckError(f"the certificate has schema {content['schema']}, not {SCHEMA}", str(path), _AGAIN)
        if content.pop("digest") != digest(content):
            raise DpcheckError("the certificate was changed after it was written", str(path), _AGAIN)
        del content["schema"]
        listed = {key: tuple(content[key]) for key in ("reasons", "rules", "batches")}
        return cls(**{**content, **listed})

    def refuse_another(self, model: nn.Module, loss_fn: LossFn, unit: Unit, batch: Any) -> None:
        """Compare with what is to be trained, on a batch in the layout of :meth:`dpcheck.Unit.canonical`.

        Raises:
            DpcheckError: for a certificate that is not valid, or is of another version, model, loss, unit, batch or
                graph; it names what differs.
        """
        if not self.valid:
            reasons = "\n  ".join(self.reasons)
            raise DpcheckError(f"the certificate says that nothing is certified:\n  {reasons}", "certificate", _AGAIN)
        for name, ours in _versions().items():
            if getattr(self, name) != ours:
                raise _differs(f"{name} {getattr(self, name)} checked; this is {name} {ours}")
        missing = sorted({rule.code for rule in RULES} ^ set(self.rules))
        if missing:
            raise _differs(f"other rules were applied: {', '.join(missing)}")
        if self.unit != str(unit):
            raise _differs(f"the unit is {unit}; that of the certificate is {self.unit}")
        self.refuse_another_model(model)
        if self.loss != code_of(loss_fn):
            raise _differs("the loss function has other code, defaults or closure")
        entry = self.entry(batch)
        if entry["graph"] != graph_of(model, unit.loss(loss_fn), batch):
            raise _differs(
                "the same classes and loss compute another graph: a function that they call, a global or a constant "
                "has changed, or the device"
            )

    def refuse_another_model(self, model: nn.Module) -> None:
        """Compare structure, modes and code.

        Raises:
            DpcheckError: naming the first part that differs.
        """
        now = model_of(model)
        for part in ("parameters", "buffers", "modules", "code"):
            before = self.model[part]
            for name in [*before, *now[part]]:
                if before.get(name) != now[part].get(name):
                    raise _differs(_change(part, name, before.get(name), now[part].get(name)))

    def entry(self, batch: Any) -> Mapping[str, Any]:
        """What the certificate says of batches of this form.

        Raises:
            DpcheckError: if it says nothing.
        """
        form = form_of(batch)
        for entry in self.batches:
            if list(entry["form"]) == form:
                return entry
        known = "; ".join(" ".join(entry["form"]) for entry in self.batches)
        raise _differs(f"the batch is {' '.join(form)}; certified are {known}")


def certify(model: nn.Module, loss_fn: LossFn, batch: Any, *others: Any, unit: Unit | None = None) -> Certificate:
    """Check and verify ``model``, and say in a certificate what was found: with findings, an invalid one.

    Args:
        model: in the train/eval state in which it will be trained.
        loss_fn: ``loss_fn(model, batch) -> losses [B]``.
        batch: any pytree whose tensors have samples on axis 0; a few samples are enough.
        others: a batch of each further shape in which samples will be trained (lengths of :func:`dpcheck.bucketed`).
        unit: what one sample is, if it is not one index of axis 0.

    Raises:
        DpcheckError: as :func:`dpcheck.check`.
    """
    entries, reasons = [], list[str]()
    for each in (batch, *others):
        report = check(model, loss_fn, each, unit=unit)
        proof = verify(model, loss_fn, each, unit=unit) if report.method != "none" else None
        adapted_loss, canonical = adapted(unit, loss_fn, each)
        graph = graph_of(model, adapted_loss, canonical)
        entries.append({"form": form_of(canonical), "graph": graph, **_found(report, proof)})
        reasons += _reasons(report, proof, graph)
    return Certificate(
        valid=not reasons,
        reasons=tuple(dict.fromkeys(reasons)),
        **_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rules=tuple(sorted(rule.code for rule in RULES)),
        unit=str(unit or Unit()),
        model=model_of(model),
        loss=code_of(loss_fn),
        batches=tuple(entries),
    )


def _found(report: Report, proof: Proof | None) -> dict[str, Any]:
    verified = None
    if proof is not None:
        worst = max((p.error_single for p in proof.parameters), default=0.0)
        errors = {"worst": worst, "norms": proof.error_norms, "clipped": proof.error_clipped}
        verified = {"ok": proof.ok, "dtype": str(proof.dtype), "cases": proof.cases, "errors": errors}
    findings = [{"code": d.code, "message": d.message, "at": str(d.location or "")} for d in report.diagnostics]
    sites = {p.name: list(p.sites) for p in report.parameters if p.trainable}
    found = {"verdict": report.verdict, "findings": findings, "method": report.method, "plan": sites}
    return {**found, "verification": verified}


def _reasons(report: Report, proof: Proof | None, graph: str | None) -> list[str]:
    found = [f"{d.code} {d.name}: {d.message}" for d in report.diagnostics]
    if report.verdict != "independent":
        found.insert(0, f"the verdict is {report.verdict}")
    if graph is None:
        found.append("there is no graph")
    if proof is not None and not proof.ok:
        found.append("per-sample gradients differ from the references")
    return found


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"dpcheck": dpcheck.__version__, "torch": torch.__version__, "python": python}


def _change(part: str, name: str, before: str | None, now: str | None) -> str:
    noun = {"parameters": "parameter", "buffers": "buffer", "modules": "module", "code": "class"}[part]
    what = f"the {noun} {name or 'model'!r}"
    if before is None or now is None:
        return f"{what} {'was not checked' if before is None else 'is missing'}"
    if part in ("parameters", "buffers"):
        return f"{what} is {now}; {before} was checked"
    return f"{what} has other {'attributes, children or train/eval mode' if part == 'modules' else 'code'} than checked"


def _differs(what: str) -> DpcheckError:
    return DpcheckError(f"what is trained is not what was certified: {what}", "certificate", _AGAIN)
