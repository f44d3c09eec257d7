"""Checkpoints of a run on disk: whole or not at all, read without running code, refused when they were changed."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpcheck.errors import DpcheckError
from dpcheck.writing import replace

if TYPE_CHECKING:
    from dpcheck.engine.settings import Settings
    from dpcheck.engine.trainer import PrivacyEngine

_HEAD = b"dpcheck checkpoint 1 sha256 "
_PARTS = ("engine", "model", "optimizer")
_STRUCTURE = "structure"
_WROTE = "pass a file that `dpcheck train --checkpoint PATH` or save_checkpoint() wrote"
# What only memory and time depend on.
_FREE = frozenset({"physical_batch_size"})


def loaded_norm(state: Any, default: float) -> float:
    """The clipping norm in what should be the state of an engine.

    Raises:
        DpcheckError: if it is not one.
    """
    if not isinstance(state, Mapping) or {"run", "ledger"} - state.keys():
        raise DpcheckError("this is no state of a PrivacyEngine", where="state", next="pass engine.state_dict()")
    if not isinstance(state["run"], str):
        raise DpcheckError(f"the state has run={state['run']!r}", where="state", next="pass engine.state_dict()")
    norm = state.get("max_grad_norm", default)
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < math.inf:
        raise DpcheckError(f"the state has max_grad_norm={norm!r}", where="state", next="pass engine.state_dict()")
    return float(norm)


def save_checkpoint(engine: PrivacyEngine, path: str | os.PathLike[str]) -> None:
    """Write engine, model and optimizer to one file. A crash leaves the file that was there, or the new one.

    Raises:
        DpcheckError: if it cannot be written; nothing is left behind then.
    """
    parts = dict(zip(_PARTS, (part.state_dict() for part in (engine, engine.model, engine.optimizer)), strict=True))
    content = _bytes({**parts, _STRUCTURE: _structure(engine)})
    digest = hashlib.sha256(content).hexdigest().encode()
    _replace(Path(path), _HEAD + digest + b"\n" + content)


def load_checkpoint(engine: PrivacyEngine, path: str | os.PathLike[str]) -> None:
    """Continue the run of a checkpoint, with the same model, optimizer and data set.

    The file is read with ``weights_only=True``, so that it cannot run code. Its SHA-256 is compared, which finds what
    was cut off or changed by accident; who changes a file on purpose can change that, too: keep a ledger file, whose
    steps stay counted whatever a checkpoint says.

    Raises:
        DpcheckError: for a file that is missing, cut off or changed, of another model, or that the engine refuses
            (:meth:`PrivacyEngine.load_state_dict`). Engine and model are then as they were.
    """
    state = read_checkpoint(path, next(engine.model.parameters()).device)
    _refuse_another_model(engine.model.state_dict(), state["model"], str(path))
    _refuse_another_structure(_structure(engine), state[_STRUCTURE], str(path))
    engine.load_state_dict(state["engine"])
    engine.model.load_state_dict(state["model"])
    engine.optimizer.load_state_dict(state["optimizer"])


def run_in(path: str | os.PathLike[str], settings: Settings) -> str:
    """The name of the run in a checkpoint, which must be one of the same settings.

    Raises:
        DpcheckError: for what is no checkpoint, and for settings that differ, by name and value.
    """
    state = read_checkpoint(path)["engine"]
    loaded_norm(state, settings.max_grad_norm)  # refuses what is no state
    before, now = state.get("settings", {}), settings.plain()
    odd = [name for name in now if name not in _FREE and not _alike(before.get(name), now[name])]
    if odd:
        was, of_now = (", ".join(f"{name}={of.get(name)!r}" for name in odd) for of in (before, now))
        raise DpcheckError(
            f"the checkpoint is of a run with {was}; this one has {of_now}",
            where=str(path),
            next="resume with the settings that it was started with, or start a new run with the same ledger",
        )
    return str(state["run"])


def _alike(a: Any, b: Any) -> bool:
    # Calibration may end in other last digits elsewhere; each step is in the ledger with its own noise.
    return math.isclose(a, b, rel_tol=1e-6) if isinstance(a, float) and isinstance(b, float) else bool(a == b)


def read_checkpoint(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The parts of a checkpoint: engine, model, optimizer, structure. Nothing of it is run.

    Raises:
        DpcheckError: for a file that is missing, cut off, changed, or no checkpoint.
    """
    where = str(path)
    try:
        whole = Path(path).read_bytes()
    except OSError as error:
        raise DpcheckError(f"{where} cannot be read: {error.strerror}", next=_WROTE) from error
    head, _, content = whole.partition(b"\n")
    if not head.startswith(_HEAD):
        raise DpcheckError("this is no checkpoint", where=where, next=_WROTE)
    if hashlib.sha256(content).hexdigest().encode() != head[len(_HEAD) :]:
        raise DpcheckError(
            "the checkpoint was cut off or changed after it was written: its digest differs",
            where=where,
            next="load an older one, with the same ledger: the steps since then stay counted",
        )
    try:
        state: Any = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise DpcheckError(
            "the checkpoint holds code or is damaged, and was not loaded", where=where, next="load an older one"
        ) from error
    if not isinstance(state, dict) or set(state) != {*_PARTS, _STRUCTURE}:
        raise DpcheckError("this is no checkpoint of a run", where=where, next="pass what save_checkpoint() wrote")
    return state


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """``torch.save``, whole or not at all.

    Raises:
        DpcheckError: if the file cannot be written.
    """
    _replace(path, _bytes(state))


def _bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    try:
        replace(path, content)
    except OSError as error:
        raise DpcheckError(
            f"{path} cannot be written: {error.strerror or error}",
            where=str(path),
            next="make room on the disk, or pass another path; the training can go on",
        ) from error


def _refuse_another_model(own: Mapping[str, Any], saved: Mapping[str, Any], where: str) -> None:
    def forms(state: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(v.shape) if isinstance(v, Tensor) else None for name, v in state.items()}

    before, now = forms(saved), forms(own)
    odd = sorted(name for name in {**before, **now} if before.get(name, "") != now.get(name, ""))
    if odd:
        raise DpcheckError(
            f"the checkpoint is of another model: {', '.join(odd[:3])} differ",
            where=where,
            next="build the model as it was built when the checkpoint was written",
        )


def _structure(engine: PrivacyEngine) -> dict[str, str]:
    """Every module, by path, and the optimizer: class and options, but not where they are defined or lie in memory."""
    modules = {
        path or "the model": f"{type(module).__qualname__}({re.sub(' at 0x[0-9a-f]+', '', module.extra_repr())})"
        for path, module in engine.model.named_modules()
    }
    return {**modules, "the optimizer": type(engine.optimizer).__qualname__}


def _refuse_another_structure(own: Mapping[str, str], saved: Mapping[str, str], where: str) -> None:
    for name in {**saved, **own}:
        before, now = saved.get(name, "missing"), own.get(name, "missing")
        if before != now:
            raise DpcheckError(
                f"the checkpoint is of another run: {name} was {before}, and is {now}",
                where=where,
                next="build model and optimizer as they were built when the checkpoint was written",
            )
