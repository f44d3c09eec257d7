"""Several targets in one run: each in a process of its own, since files of one name must not meet."""

from __future__ import annotations

import argparse
import importlib
import json as plain_json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpcheck.errors import DpcheckError
from dpcheck.ignores import baseline
from dpcheck.options.base import ERROR, complain, time_limit
from dpcheck.report import documents
from dpcheck.supervise import supervised
from dpcheck.writing import refuse_unwritable

Run = Callable[[Sequence[str], float | None], int]


def run(options: argparse.Namespace, arguments: Sequence[str], run_one: Run = supervised) -> int:
    """Run the same options for every target, one after another; a target that fails does not stop the others.

    Args:
        options: with at least two targets.
        arguments: from which they were parsed.
        run_one: runs the command with arguments and a time limit, and returns the exit code.

    Returns:
        The highest exit code.
    """
    texts: list[str] = []
    entries: list[dict[str, Any]] = []
    codes: list[int] = []
    if options.output_file:
        refuse_unwritable(options.output_file, "--output-file")
    with tempfile.TemporaryDirectory(prefix="dpcheck-") as scratch:
        for i, target in enumerate(options.targets):
            out, known = Path(scratch, f"{i}.out"), Path(scratch, f"{i}.json")
            extra = ["--only", target]
            extra += ["--output-file", str(out)] if options.format != "full" else []
            if options.write_baseline:
                extra += ["--write-baseline", str(known), "--baseline-folder", str(Path(options.write_baseline).parent)]
            try:
                codes.append(run_one(_inserted(arguments, extra), time_limit(arguments)))
            except DpcheckError as error:
                complain(DpcheckError(error.what, error.where or target, error.next), arguments)
                codes.append(ERROR)
            if out.exists():
                texts.append(out.read_text(encoding="utf-8").rstrip("\n"))
            elif options.format != "full":
                # Missing from a report, it would pass for clean.
                texts.append(_format(options.format).failed(target))
            entries += plain_json.loads(known.read_text(encoding="utf-8"))["findings"] if known.exists() else []
    if options.write_baseline:
        baseline.write(Path(options.write_baseline), entries)
    if options.format != "full":
        documents.emit(_joined(options.format, texts), options.output_file)
    elif not options.quiet:
        clean, findings, errors = (codes.count(code) for code in range(3))
        print(f"{len(codes)} targets: {clean} passed, {findings} with findings, {errors} with an error", flush=True)
    return max(codes)


def _inserted(arguments: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Options go before a ``--``."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end], *extra, *arguments[end:]]


def _joined(format: str, texts: Sequence[str]) -> str:
    """One document from one for each target."""
    join = getattr(_format(format), "join", None)
    text: str = join(texts) if join is not None else "\n".join(texts)
    return text


def _format(format: str) -> Any:
    """Its module. A format that nobody asked for is not loaded."""
    return importlib.import_module(f"dpcheck.report.{format}")


def chosen(options: argparse.Namespace) -> list[str]:
    """The targets: those named, else those of ``[tool.dpcheck]`` here, else ``model.py``.

    Raises:
        DpcheckError: if there is none, or the project's options are wrong.
    """
    if options.only or options.targets:
        return [options.only] if options.only else list(options.targets)
    from dpcheck.project import options_of, root_of

    here = Path("model.py")
    targets: list[str] = options_of(here).get("targets", [])
    root = root_of(here)
    if targets:
        if root != Path.cwd().resolve():
            raise DpcheckError(f"the project's targets are relative to {root}", next=f"cd {root}")
        return targets
    if here.is_file():
        print("no target was named: model.py is checked", file=sys.stderr)
        return ["model.py"]
    raise DpcheckError(
        "no target was named, [tool.dpcheck] has no targets, and there is no model.py here",
        next="dpcheck path/to/model.py, or dpcheck --help",
    )
