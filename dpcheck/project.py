"""The options that a project sets for itself: ``[tool.dpcheck]`` in its ``pyproject.toml``."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, get_args

from dpcheck.diagnostic import BatchNormTo
from dpcheck.errors import DpcheckError
from dpcheck.rewrite.files import Project

_LISTS = ("targets", "select", "extend-select", "ignore")
# The keys are the command's long options.
KEYS = ("batch-norm-to", *_LISTS, "per-file-ignores", "baseline")


def root_of(file: Path) -> Path:
    """The folder of the project of a file."""
    return Project.of(file).root


def options_of(file: Path) -> dict[str, Any]:
    """``[tool.dpcheck]`` of the project of a model file; empty if there is none.

    Raises:
        DpcheckError: for a file that is no TOML, an unknown key, or a value that the key cannot have.
    """
    path = root_of(file) / "pyproject.toml"
    try:
        tool = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DpcheckError(f"the project's options cannot be read: {error}", where=str(path)) from error
    options = tool.get("dpcheck", {}) if isinstance(tool, dict) else {}
    if not isinstance(options, dict):
        raise DpcheckError("[tool.dpcheck] is no table", str(path), "write [tool.dpcheck] and a key below it")
    for key, value in options.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key.replace("_", "-"), KEYS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            known = f"{hint}the keys are: {', '.join(KEYS)}"
            raise DpcheckError(f"unknown key {key!r} in [tool.dpcheck]", str(path), known)
        wanted = _misfit(key, value)
        if wanted:
            raise DpcheckError(f"{key} cannot be {value!r}", str(path), wanted)
    return dict(options)


def _misfit(key: str, value: Any) -> str | None:
    """What the value of a key should be, if it is not."""
    if key == "batch-norm-to":
        return None if value in get_args(BatchNormTo) else f"choose one of: {', '.join(get_args(BatchNormTo))}"
    if key in _LISTS:
        return None if _strings(value) else f'write a list of strings, {key} = ["...", "..."]'
    if key == "per-file-ignores":
        fits = isinstance(value, dict) and all(_strings(codes) for codes in value.values())
        return None if fits else 'write a table of lists, per-file-ignores = {"old/*.py" = ["DP101"]}'
    return None if isinstance(value, str) and value else "write the path of a file, relative to this one"


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)
