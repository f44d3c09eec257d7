"""What docs/migration-from-opacus.md says of Opacus, run against it.

    python -m pytest -m long tests/test_migration.py

needs opacus 1.6.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dpcheck.engine import accounting
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dpcheck

pytestmark = pytest.mark.long
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "migration-from-opacus.md").read_text(encoding="utf-8")


@pytest.fixture
def opacus() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("opacus")


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def losses(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().flatten(1).sum(1)


def made(step: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("kept", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return step(self, x)

    torch.manual_seed(0)
    return Made()


MIXING = {
    "a function": lambda m, x: F.batch_norm(m.layer(x), None, None, training=True),
    "a mean": lambda m, x: m.layer(x) - m.layer(x).mean(0),
    "a buffer": lambda m, x: m.layer(x) + 0 * m.kept.copy_(x.mean(0)).sum(),
}


@pytest.mark.parametrize("name", MIXING)
def test_its_validator_passes_what_no_class_of_a_layer_shows(opacus: Any, name: str) -> None:
    model, x = made(MIXING[name]), torch.randn(5, 4)
    assert opacus.validators.ModuleValidator.validate(model) == []
    assert dpcheck.check(model, losses, x).diagnostics


def test_it_leaves_out_what_a_function_does_with_a_weight(opacus: Any) -> None:
    x = torch.randn(5, 4)
    model = made(lambda m, x: F.linear(m.layer(x).tanh(), m.layer.weight))
    parameters = list(model.parameters())
    alone = [torch.autograd.grad(losses(model, x[i : i + 1]).sum(), parameters) for i in range(5)]
    true = torch.tensor([float(torch.cat([g.flatten() for g in each]).norm()) for each in alone])
    _, norms = dpcheck.engine.clipped_grads(model, losses, x, max_grad_norm=1.0)
    torch.testing.assert_close(norms, true, rtol=1e-5, atol=0)
    losses(opacus.GradSampleModule(model, loss_reduction="sum"), x).sum().backward()
    theirs = torch.cat([p.grad_sample.flatten(1) for p in parameters], 1).norm(dim=1)  # type: ignore[attr-defined]
    assert (theirs / true).max() < 0.95 and (theirs / true).min() > 0.5


def test_tied_modules(opacus: Any) -> None:
    ghost = importlib.import_module("opacus.grad_sample.grad_sample_module_fast_gradient_clipping")
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    model[1].weight = model[0].weight
    assert dpcheck.verify(model, losses, torch.randint(9, (5, 6))).ok
    with pytest.raises(NotImplementedError, match="tying"):
        wrapped = ghost.GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, use_ghost_clipping=True)
        losses(wrapped, torch.randint(9, (5, 6))).sum().backward()


def test_names_of_the_table(opacus: Any) -> None:
    engine, validators = opacus.PrivacyEngine, opacus.validators.ModuleValidator
    needed = {
        engine.make_private: {"module", "optimizer", "data_loader", "noise_multiplier", "max_grad_norm", "clipping"},
        engine.make_private_with_epsilon: {"target_epsilon", "target_delta", "epochs", "grad_sample_mode"},
        engine.save_checkpoint: {"path", "module"},
        engine.load_checkpoint: {"path", "module"},
        engine.get_epsilon: {"delta"},
        engine: {"secure_mode", "accountant"},
    }
    for function, names in needed.items():
        assert names <= inspect.signature(function).parameters.keys()
    for module, names in {
        "opacus.utils.batch_memory_manager": {"BatchMemoryManager"},
        "opacus.grad_sample": {"register_grad_sampler", "GradSampleModule"},
        "opacus.layers": {"DPLSTM", "DPMultiheadAttention"},
        "opacus.lightning": set(),
        "opacus.schedulers": set(),
        "opacus.utils.fsdp_utils": set(),
    }.items():
        if module != "opacus.lightning" or importlib.util.find_spec("lightning"):
            assert names <= vars(importlib.import_module(module)).keys()
    for layer in (nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)):
        assert validators.validate(layer)
    given = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    fixed = validators.fix(given)
    assert isinstance(given[1], nn.BatchNorm1d) and isinstance(fixed[1], nn.GroupNorm)
    assert all(name.startswith("_module.") for name, _ in opacus.GradSampleModule(fixed).named_parameters())
    with pytest.raises(ImportError, match="torchcsprng"):
        engine(secure_mode=True)
    for clipping in ("adaptive", "automatic"):
        model = nn.Linear(4, 3)
        arguments: dict[str, Any] = {"module": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
        arguments |= {"data_loader": DataLoader(TensorDataset(torch.randn(20, 4)), batch_size=5)}
        arguments |= {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "clipping": clipping}
        if clipping == "automatic":
            with pytest.raises(ValueError, match="automatic"):
                engine().make_private(**arguments)
        else:
            of_adaptive = {"target_unclipped_quantile": 0.5, "clipbound_learning_rate": 0.2, "max_clipbound": 10.0}
            engine().make_private(**arguments, **of_adaptive, min_clipbound=0.1, unclipped_num_std=1.0)


def test_the_training_of_the_page_in_both(opacus: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(block("python"), names)
    ours = names["engine"]
    exec(block("py"), names)
    history = names["engine"].accountant.history
    (noise, rate, steps), *others = history
    assert not others and rate == 1 / len(names["loader"]) and ours.settings.sample_rate == 32 / 200
    # Each says what the other's accountant says of its own run.
    told = names["engine"].get_epsilon(1e-4)
    bound = accounting.epsilon(noise, rate, steps, 1e-4)
    assert bound.lower - 0.05 <= told <= 8.05 and abs(told - bound.upper) < 0.05
    assert 7.5 < ours.epsilon().upper <= 8
    capsys.readouterr()
