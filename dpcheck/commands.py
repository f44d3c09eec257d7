"""What ``dpcheck model.py`` does: check, fix, verify, train, each printed as it happens."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import nn

from dpcheck.api import check
from dpcheck.certificate import certify
from dpcheck.config import Settings, settings_of
from dpcheck.diagnostic import BatchNormTo, Report
from dpcheck.errors import DpcheckError
from dpcheck.fixer import FixResult, fix
from dpcheck.ignores.baseline import entries_of
from dpcheck.ignores.baseline import write as write_baseline
from dpcheck.ignores.marking import Ignores, comments_of_project
from dpcheck.ignores.sources import ignores_of
from dpcheck.options.base import CLEAN, FINDINGS
from dpcheck.private_run import budget_of, train
from dpcheck.project import options_of
from dpcheck.report import counted, documents, full, source, tables, terminal
from dpcheck.rewrite.apply import apply
from dpcheck.rewrite.journal import journal_of, recover
from dpcheck.rewrite.losses import LossFix, per_sample
from dpcheck.rewrite.norms import CannotWrite
from dpcheck.rewrite.plan import plan
from dpcheck.target import Target, file_of, load
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
        self.ignores: Ignores | None = None

    def all(self) -> int:
        self._recover()
        options, target = self.options, self._with_losses(self._load())
        settings = settings_of(target, options) if options.train else None
        model, report = target.model, self._check(target)
        ok, passes = report.ok, report.passes
        if options.fix and (options.verify or options.train):
            # In memory, as the loss is already.
            if not report.ok:
                model, report, ok, passes = self._fix(target)
        elif options.fix and (self.loss or not report.ok):
            ok, passes = self._write(target, report)
        elif options.diff:
            self._diff(target)
        elif options.write_baseline:
            passes = self._write_baseline(report)
        self.document |= {"target": str(target.path), "symbol": target.symbol, "ok": ok, "passes": passes}
        self.document["guessed"] = target.guessed
        if options.verify or settings is not None:
            if not _trainable(report):
                self._refuse(report)
                return FINDINGS
            self._verify(model, target)
        if settings is not None:
            self._train(target, model, settings)
        if options.certificate:
            passes = self._certify(target, options.certificate) and passes
        if options.diff and self.loss:
            passes = False  # the file as it is cannot be trained
        return CLEAN if passes or options.exit_zero else FINDINGS

    def _recover(self) -> None:
        """After a --fix that was killed while it wrote, the files as they were before it."""
        path = file_of(self.options.target)
        if path is None:
            return
        if self.options.fix:
            for file in recover(path):
                self.progress.print(f"{escape(str(file))} is put back: an earlier --fix was killed while it wrote")
        elif journal_of(path).exists():
            self.progress.print(
                f"[yellow]half fixed[/] {escape(str(path))}: a --fix runs, or was killed; --fix undoes it"
            )

    def _load(self) -> Target:
        options = self.options
        target = load(options.target, options.input)
        if target.guessed and (options.train or options.certificate):
            raise DpcheckError(
                "nothing is trained on a guessed loss, nor certified",
                target.name,
                "write loss_fn(model, batch) in a file",
            )
        if not target.writable and (options.diff or (options.fix and not options.verify)):
            raise DpcheckError(
                "fixes are written for model.py or model.py:SYMBOL only",
                target.name,
                "name the file, or fix a copy in memory: --fix --verify",
            )
        return target

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
        options, name = self.options, target.name
        ignores = ignores_of(options, name, target.path)
        with terminal(stderr=True, quiet=options.quiet).status(f"checking {escape(name)}"):  # seen on a terminal only
            report = check(target.model, target.loss_fn, target.batch, unit=target.unit)
            report = replace(report, notes=(*target.notes, *report.notes))
        self.ignores = replace(ignores, comments=comments_of_project(target.path, report))
        self.document["check"] = report = self.ignores.marked(report)
        full.show(self.out, report, name, brief=options.quiet, counts=options.statistics, all=options.verbose)
        self.document["warnings"] = self.ignores.warnings(report)
        for warning in self.document["warnings"]:
            terminal(stderr=True).print(f"[yellow]warning[/]: {escape(warning)}", soft_wrap=True)
        if options.show == "parameters":
            tables.show_parameters(self.out, report)
        return report

    def _write_baseline(self, report: Report) -> bool:
        assert self.ignores is not None
        path = Path(self.options.write_baseline)
        folder = Path(self.options.baseline_folder or path.parent)
        known = [d for d in report.diagnostics if d.ignored is None or d.ignored.by == "baseline"]
        write_baseline(path, entries_of(known, self.ignores.target, self.ignores.file, folder))
        self.progress.print(f"{counted(known)} written to the baseline; the verdict stays what it is")
        return True

    def _fix(self, target: Target) -> tuple[nn.Module, Report, bool, bool]:
        """In memory, to verify or train at once; the file stays as it is. Also whether all is well then, or ignored."""
        self.progress.rule("fix", style="dim")
        result = self._fixed(target, self._batch_norm_to(target), target.calibration)
        tables.show_changes(self.progress, result)
        tables.show_calibration(self.out, result)
        self.progress.print(f"this is a copy in memory; to change {escape(str(target.path))}, use --fix by itself")
        assert self.ignores is not None
        report = self.ignores.marked(result.report)
        full.show(self.out, report, "after the fixes", brief=self.options.quiet, all=self.options.verbose)
        return result.model, report, result.ok, result.ok or (result.problem is None and report.passes)

    def _fixed(self, target: Target, to: BatchNormTo, calibration: Any = None) -> FixResult:
        result = fix(
            target.model,
            target.loss_fn,
            target.batch,
            unsafe=self.options.unsafe_fixes,
            batch_norm_to=to,
            calibration=calibration,
            unit=target.unit,
        )
        self.document["fix"] = {
            "changes": result.changes,
            "loss_change": result.loss_change,
            "check": result.report,
            "problem": result.problem,
            "removed_keys": result.removed_keys,
            "added_keys": result.added_keys,
            "calibrated": result.calibrated,
            "calibration_losses": result.calibration_losses,
        }
        return result

    def _batch_norm_to(self, target: Target) -> BatchNormTo:
        chosen: BatchNormTo = self.options.batch_norm_to or options_of(target.path).get("batch-norm-to", "group")
        return chosen

    def _write(self, target: Target, report: Report) -> tuple[bool, bool]:
        """In the file; returns whether a new process finds nothing in it any more, or only what is ignored."""
        self.progress.rule("fix", style="dim")
        to = self._batch_norm_to(target)
        result = self._fixed(target, to)
        outcome = apply(target, result, to=to, loss=self.loss)
        self.document["fix"]["source"] = source.as_document(outcome)
        source.show_diff(self.progress, outcome.fix)
        source.show_plan(self.out, outcome.fix, result, done="fixed" if outcome.fresh else "tried")
        source.show_outcome(self.out, outcome)
        if target.calibration is not None:
            self.progress.print(
                "calibration_batch() fits weights in memory only: with --verify or --train, or where your file calls "
                "dpcheck.fix(..., calibration=calibration_batch())",
                soft_wrap=True,
            )
        fresh = outcome.fresh
        if fresh is None:
            return False, report.passes and self.loss is None
        counting = {(d.code, d.module or "") for d in report.shown}
        left = {(code, module) for code, module, _ in fresh.findings}
        return fresh.ok, fresh.ok or (fresh.error is None and bool(left) and not left & counting)

    def _diff(self, target: Target) -> None:
        to = self._batch_norm_to(target)
        result = self._fixed(target, to)
        planned = plan(target, result, to=to, loss=self.loss)
        source.show_diff(self.out, planned)
        source.show_plan(self.out, planned, result)

    def _refuse(self, report: Report) -> None:
        where = "above" if self.options.format == "full" else "in the document"
        ignored = sorted({d.code for d in report.ignored if not d.code.startswith("DP9")})
        but = f"; ignored findings count: {', '.join(ignored)}" if ignored else ""
        mend = "" if self.options.unsafe_fixes else ", or try --fix --unsafe-fixes"
        what = "not trained" if self.options.train else "not verified"
        terminal(stderr=True).print(
            f"[bold red]{what}[/]: this model cannot be trained privately as it is ({report.verdict}{but})\n"
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

    def _certify(self, target: Target, path: str) -> bool:
        """Of the file as it is; whether it certifies anything."""
        certificate = certify(target.model, target.loss_fn, target.batch, unit=target.unit)
        certificate.save(path)
        self.document["certificate"] = certificate
        valid = "[bold green]valid[/]" if certificate.valid else "[bold red]certifies nothing[/]"
        self.out.print(f"certificate written to {escape(path)}: {valid}")
        for reason in certificate.reasons:
            self.out.print(f"  {escape(reason)}")
        return certificate.valid

    def _train(self, target: Target, model: nn.Module, settings: Settings) -> None:
        self.progress.rule("train", style="dim")
        outcome = train(target, model, settings, self.progress)
        self.document["train"] = outcome
        if self.options.format == "html":
            self.document["budget"] = budget_of(settings)
        self.progress.rule("result", style="dim")
        self.out.print(escape(outcome.statement))
        tables.show_outcome(self.out, outcome)


def _trainable(report: Report) -> bool:
    """Whether the engine takes it: what is merely unproven (DP9xx) is trained one sample at a time."""
    return report.method != "none" and all(d.code.startswith("DP9") for d in report.diagnostics)
