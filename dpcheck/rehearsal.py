"""A rehearsal of training: private steps, an empty batch and a checkpoint, on a copy of the model."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn

from dpcheck import inputs
from dpcheck.capture import LossFn, first_line, run_losses
from dpcheck.determinism import FixedChance
from dpcheck.engine.trainer import PrivacyEngine
from dpcheck.errors import DpcheckError
from dpcheck.fixes.copying import duplicate
from dpcheck.unit import Unit, adapted

# One of B >= 2 records is expected in a draw, so at least a quarter of the draws are empty.
_MOST_STEPS = 200


def rehearse(model: nn.Module, loss_fn: LossFn, batch: Any, *, unit: Unit | None = None) -> str | None:
    """Train a copy of ``model`` privately on samples of ``batch`` until a batch with and one without samples were
    drawn, then save and load it.

    Args:
        model, loss_fn, batch, unit: as for :func:`dpcheck.check`; the model is untouched.

    Returns:
        Why it cannot be trained like that; ``None`` if all is well: the steps were taken, every parameter is finite,
        and a copy with the saved state has the same losses.
    """
    loss_fn, batch = adapted(unit, loss_fn, batch)
    try:
        trained = duplicate(model).model
        return _steps(trained, loss_fn, batch) or _round_trip(trained, duplicate(model).model, loss_fn, batch)
    except DpcheckError as error:
        return first_line(error)
    except Exception as error:  # a class of the user's may refuse in any way
        return f"{type(error).__name__}: {first_line(error)}"


def _steps(model: nn.Module, loss_fn: LossFn, batch: Any) -> str | None:
    size = inputs.batch_size(batch)
    engine = PrivacyEngine(
        model,
        loss_fn,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9),
        [i % size for i in range(max(size, 2))],
        expected_batch_size=1,
        max_grad_norm=1.0,
        delta=1e-5,
        noise_multiplier=1.0,
        steps=_MOST_STEPS,
        physical_batch_size=size,
        collate_fn=lambda rows: inputs.take(batch, rows),
        check=False,
    )
    drawn: set[bool] = set()
    for samples in engine:
        drawn.add(len(samples) > 0)
        engine.step(samples)
        if len(drawn) == 2:
            break
    engine.load_state_dict(engine.state_dict())
    wrong = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    return f"a private step makes {wrong[0]} not finite" if wrong else None


def _round_trip(trained: nn.Module, fresh: nn.Module, loss_fn: LossFn, batch: Any) -> str | None:
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=False))
    with FixedChance():
        saved, loaded = (run_losses(model, loss_fn, batch) for model in (trained, fresh))
    same = torch.allclose(saved, loaded, rtol=1e-4, atol=1e-6)
    return None if same else "a copy with the saved state_dict has other losses"
