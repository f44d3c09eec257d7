"""What may ignore a finding, from the command's options, the project's and the source."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpcheck.ignores.baseline import Baseline
from dpcheck.ignores.marking import Ignores
from dpcheck.ignores.selection import selection, split
from dpcheck.project import options_of, root_of


def ignores_of(options: argparse.Namespace, target: str, file: Path) -> Ignores:
    """All ignores for the findings on ``target`` (``model.py:symbol``), but for the comments.

    Raises:
        DpcheckError: for a rule that there is none of, wrong options of the project, a baseline that cannot be read.
    """
    project, root = options_of(file), root_of(file)
    chosen = selection(
        select=None if options.select is None else split(options.select),
        extend=split(options.extend_select),
        ignore=split(options.ignore),
        project=project,
        root=root,
    )
    path = Path(options.baseline) if options.baseline else root / project["baseline"] if "baseline" in project else None
    # One that is being written need not be there.
    written = options.write_baseline is not None and path is not None and not path.exists()
    baseline = None if path is None or written else Baseline.read(path)
    return Ignores(target, str(file), chosen, (), baseline)
