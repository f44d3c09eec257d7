"""Checkpoints of a run on disk: whole or not at all, read without running code, refused when they were changed."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpcheck.errors import DpcheckError
from dpcheck.writing import replace

if TYPE_CHECKING:
    from dpcheck.engine.trainer import PrivacyEngine

_HEAD = b"dpcheck checkpoint 1 sha256 "
_PARTS = ("engine", "model", "optimizer")


def save_checkpoint(engine: PrivacyEngine, path: str | os.PathLike[str]) -> None:
    """Write engine, model and optimizer to one file. A crash leaves the file that was there, or the new one.

    Raises:
        DpcheckError: if it cannot be written; nothing is left behind then.
    """
    state = dict(zip(_PARTS, (part.state_dict() for part in (engine, engine.model, engine.optimizer)), strict=True))
    content = _bytes(state)
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
    where = str(path)
    try:
        whole = Path(path).read_bytes()
    except OSError as error:
        raise DpcheckError(f"{where} cannot be read: {error.strerror}", where=where) from error
    head, _, content = whole.partition(b"\n")
    if not head.startswith(_HEAD):
        raise DpcheckError("this is no checkpoint", where=where, next="pass a file that save_checkpoint() wrote")
    if hashlib.sha256(content).hexdigest().encode() != head[len(_HEAD) :]:
        raise DpcheckError(
            "the checkpoint was cut off or changed after it was written: its digest differs",
            where=where,
            next="load an older one, with the same ledger: the steps since then stay counted",
        )
    device = next(engine.model.parameters()).device
    try:
        state: Any = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise DpcheckError(
            "the checkpoint holds code or is damaged, and was not loaded", where=where, next="load an older one"
        ) from error
    if not isinstance(state, dict) or set(state) != set(_PARTS):
        raise DpcheckError("this is no checkpoint of a run", where=where, next="pass what save_checkpoint() wrote")
    _refuse_another_model(engine.model.state_dict(), state["model"], where)
    engine.load_state_dict(state["engine"])
    engine.model.load_state_dict(state["model"])
    engine.optimizer.load_state_dict(state["optimizer"])


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
