"""The options that a project sets for itself: ``[tool.dpcheck]`` in its ``pyproject.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args

from dpcheck.diagnostic import BatchNormTo
from dpcheck.errors import DpcheckError
from dpcheck.rewrite.files import Project

# Key -> the values that it may have; the keys are the command's long options.
_KEYS = {"batch-norm-to": get_args(BatchNormTo)}


def options_of(file: Path) -> dict[str, Any]:
    """``[tool.dpcheck]`` of the project of a model file; empty if there is none.

    Raises:
        DpcheckError: for a file that is no TOML, an unknown key, or a value that the key cannot have.
    """
    path = Project.of(file).root / "pyproject.toml"
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("dpcheck", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DpcheckError(f"the project's options cannot be read: {error}", where=str(path)) from error
    for key, value in options.items():
        if key not in _KEYS:
            known = ", ".join(_KEYS)
            raise DpcheckError(f"unknown key {key!r} in [tool.dpcheck]", str(path), f"the keys are: {known}")
        if value not in _KEYS[key]:
            raise DpcheckError(f"{key} cannot be {value!r}", str(path), f"choose one of: {', '.join(_KEYS[key])}")
    return dict(options)
