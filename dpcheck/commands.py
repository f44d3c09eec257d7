"""What ``dpcheck model.py`` does: check, fix, verify, train, each printed as it happens."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from rich.markup import escape
from torch import nn

from dpcheck.api import check
from dpcheck.config import Settings, settings_of
from dpcheck.diagnostic import BatchNormTo, Report
from dpcheck.errors import DpcheckError
from dpcheck.fixer import FixResult, fix
from dpcheck.options.base import CLEAN, FINDINGS
from dpcheck.private_run import train
from dpcheck.project import options_of
from dpcheck.report import documents, full, source, tables, terminal
from dpcheck.rewrite.apply import apply
from dpcheck.rewrite.losses import LossFix, per_sample
from dpcheck.rewrite.norms import CannotWrite
from dpcheck.rewrite.plan import plan
from dpcheck.target import Target, load
from dpcheck.verification import verify


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; returns the exit code."""
    if options.seed is not None:
        torch.manual_seed(options.seed)
    if options.format == "full":
        return _Run(options, {}).all()
    with documents.printed(options.format, options.output_file) as document:
        return _Run(options, document).all()


class _Run:
    """One run. ``out`` shows findings and results, ``progress`` what is quiet on request."""

    def __init__(self, options: argparse.Namespace, document: dict[str, Any]) -> None:
        self.options, self.document = options, document
        self.out = terminal(quiet=options.format != "full")
        self.progress = terminal(quiet=options.quiet or options.format != "full")
        self.loss: LossFix | None = None

    def all(self) -> int:
        options, target = self.options, self._with_losses(load(self.options.target))
        settings = settings_of(target, options) if options.train else None
        model, report = target.model, self._check(target)
        ok = report.ok
        if options.fix and (options.verify or options.train):
            # In memory, as the loss is already.
            model, report, ok = (model, report, ok) if report.ok else self._fix(target)
        elif options.fix and (self.loss or not report.ok):
            ok = self._write(target)
        elif options.diff:
            self._diff(target)
        self.document |= {"target": str(target.path), "symbol": target.symbol, "ok": ok}
        if options.verify or settings is not None:
            if not _trainable(report):
                self._refuse(report)
                return FINDINGS
            self._verify(model, target)
        if settings is not None:
            self._train(target, model, settings)
        if options.diff and self.loss:
            ok = False  # the file as it is cannot be trained
        return CLEAN if ok or options.exit_zero else FINDINGS

    def _with_losses(self, target: Target) -> Target:
        """The target, with one loss per sample where ``loss_fn`` returns their mean and can be changed."""
        if not (self.options.fix or self.options.diff):
            return target
        try:
            self.loss = per_sample(target, unsafe=self.options.unsafe_fixes)
        except CannotWrite as error:
            self.progress.print(f"[yellow]not fixed[/] loss_fn: {escape(str(error))}")
        if self.loss is None:
            return target
        change = self.loss.change
        self.progress.print(
            f"loss_fn at {escape(str(target.path))}:{self.loss.line}: {change.what} ({change.applicability})"
        )
        return self.loss.target

    def _check(self, target: Target) -> Report:
        report = check(target.model, target.loss_fn, target.batch, unit=target.unit)
        self.document["check"] = report
        full.show(self.out, report, f"{target.path}:{target.symbol}", brief=self.options.quiet)
        if self.options.show == "parameters":
            tables.show_parameters(self.out, report)
        return report

    def _fix(self, target: Target) -> tuple[nn.Module, Report, bool]:
        """In memory, to verify or train at once; the file stays as it is. Also whether all is well then."""
        self.progress.rule("fix", style="dim")
        result = self._fixed(target, self._batch_norm_to(target))
        tables.show_changes(self.progress, result)
        self.progress.print(f"this is a copy in memory; to change {escape(str(target.path))}, use --fix by itself")
        full.show(self.out, result.report, "after the fixes", brief=self.options.quiet)
        return result.model, result.report, result.ok

    def _fixed(self, target: Target, to: BatchNormTo) -> FixResult:
        result = fix(
            target.model,
            target.loss_fn,
            target.batch,
            unsafe=self.options.unsafe_fixes,
            batch_norm_to=to,
            unit=target.unit,
        )
        self.document["fix"] = {
            "changes": result.changes,
            "loss_change": result.loss_change,
            "check": result.report,
            "problem": result.problem,
        }
        return result

    def _batch_norm_to(self, target: Target) -> BatchNormTo:
        chosen: BatchNormTo = self.options.batch_norm_to or options_of(target.path).get("batch-norm-to", "group")
        return chosen

    def _write(self, target: Target) -> bool:
        """In the file; returns whether a new process finds nothing in it any more."""
        self.progress.rule("fix", style="dim")
        to = self._batch_norm_to(target)
        result = self._fixed(target, to)
        outcome = apply(target, result, to=to, loss=self.loss)
        self.document["fix"]["source"] = source.as_document(outcome)
        source.show_diff(self.progress, outcome.fix)
        source.show_plan(self.out, outcome.fix, result, done="fixed" if outcome.fresh else "tried")
        source.show_outcome(self.out, outcome)
        return outcome.fresh is not None and outcome.fresh.ok

    def _diff(self, target: Target) -> None:
        to = self._batch_norm_to(target)
        result = self._fixed(target, to)
        planned = plan(target, result, to=to, loss=self.loss)
        source.show_diff(self.out, planned)
        source.show_plan(self.out, planned, result)

    def _refuse(self, report: Report) -> None:
        where = "above" if self.options.format == "full" else "in the document"
        mend = "" if self.options.unsafe_fixes else ", or try --fix --unsafe-fixes"
        terminal(stderr=True).print(
            f"[bold red]not trained[/]: this model cannot be trained privately as it is ({report.verdict})\n"
            f"  next: mend the findings {where}{mend}"
        )

    def _verify(self, model: nn.Module, target: Target) -> None:
        self.progress.rule("verify", style="dim")
        proof = verify(model, target.loss_fn, target.batch, unit=target.unit)
        self.document["verify"] = proof
        tables.show_proof(self.progress, proof)
        if not proof.ok:
            raise DpcheckError(
                "per-sample gradients differ from the references: this is a bug in dpcheck or in a custom backward",
                next="do not train this model; report it with the table that --verify prints",
            )

    def _train(self, target: Target, model: nn.Module, settings: Settings) -> None:
        self.progress.rule("train", style="dim")
        outcome = train(target, model, settings, self.progress)
        self.document["train"] = outcome
        self.progress.rule("result", style="dim")
        self.out.print(escape(outcome.statement))
        tables.show_outcome(self.out, outcome)


def _trainable(report: Report) -> bool:
    """Whether the engine takes it: what is merely unproven (DP9xx) is trained one sample at a time."""
    return report.method != "none" and all(d.code.startswith("DP9") for d in report.diagnostics)
