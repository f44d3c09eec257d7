"""One training step by every method: non-private, dpcheck, and what peers offer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from dpcheck.engine.clipping import Clipper
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck import PrivacyEngine, kernels

C, SIGMA, LR = 1.0, 1.0, 1e-4

# A step takes nothing, and leaves its mean gradient in p.grad.
Step = Callable[[], object]
Make = Callable[[nn.Module, Any, Any, float], Step]


class Unable(Exception):
    """Why a method cannot run a model."""


def eager(model: nn.Module, loss_fn: Any, batch: Any, sigma: float) -> Step:
    """Forward, backward, SGD: what the others are compared with."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(model, batch).mean().backward()
        optimizer.step()

    return step


def size_of(batch: Any) -> int:
    return len(pytree.tree_leaves(batch)[0])


def engine_step(
    model: nn.Module, loss_fn: Any, batch: Any, sigma: float, *, compile: bool = False, libraries: bool = True
) -> Step:
    """``PrivacyEngine.step`` with everything in it; every record is drawn, and the batch is collated already.

    Args:
        compile: the engine's option.
        libraries: whether oneDNN may take the place of MKL, which the non-private step uses, where it is faster.
    """
    size = size_of(batch)
    engine = PrivacyEngine(
        model,
        loss_fn,
        torch.optim.SGD(model.parameters(), lr=LR),
        range(size),
        expected_batch_size=size,
        max_grad_norm=C,
        delta=1e-6,
        noise_multiplier=sigma,
        steps=10**6,
        physical_batch_size=size,
        collate_fn=lambda records: batch,
        check=False,
        compile=compile,
    )
    batches: Iterator[Any] = iter(engine)

    def step() -> None:
        for p in model.parameters():
            p.grad = None
        with mock.patch.object(kernels, "onednn_is_faster", lambda: False) if not libraries else nullcontext():
            engine.step(next(batches))

    return step


def without_noise(model: nn.Module, loss_fn: Any, batch: Any, sigma: float) -> Step:
    """The clipped sum and the optimizer. p.grad holds the sum."""
    clipper, size = Clipper(model, loss_fn, max_grad_norm=C), size_of(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR / size)
    parameters = dict(model.named_parameters())

    def step() -> None:
        optimizer.zero_grad()
        for name, grad in clipper(batch).grads.items():
            parameters[name].grad = grad
        optimizer.step()
        if clipper.method != "graph":
            raise Unable(f"falls back to {clipper.method}: {clipper.reason}")

    return step


def opacus(mode: str) -> Make:
    """Opacus: ``hooks`` (per-sample gradients), ``functorch`` (the same by vmap) or ``ghost`` (fast clipping)."""

    def make(model: nn.Module, loss_fn: Any, batch: Any, sigma: float) -> Step:
        try:
            from opacus.grad_sample import GradSampleModule
            from opacus.grad_sample import grad_sample_module_fast_gradient_clipping as fast_clipping
            from opacus.optimizers import DPOptimizer
            from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
            from opacus.validators import ModuleValidator
        except ImportError as error:
            raise Unable("opacus is not installed") from error
        size = size_of(batch)
        if ModuleValidator.validate(model):
            model = ModuleValidator.fix(model)  # its own LSTM for torch's
        sgd = torch.optim.SGD(model.parameters(), lr=LR)
        noise: dict[str, Any] = {"noise_multiplier": sigma, "max_grad_norm": C, "expected_batch_size": size}
        if mode == "ghost":
            fast = fast_clipping.GradSampleModuleFastGradientClipping(model, max_grad_norm=C, use_ghost_clipping=True)
            two_passes = DPOptimizerFastGradientClipping(sgd, **noise)

            def ghost() -> None:
                # What opacus.utils.fast_gradient_clipping_utils.DPLossFastGradientClipping does, for any loss.
                two_passes.zero_grad()
                losses = loss_fn(fast, batch)
                losses.mean().backward(retain_graph=True)
                two_passes.zero_grad()
                coefficients = fast.get_clipping_coef()
                fast.disable_hooks()
                (coefficients * losses).sum().backward()
                fast.enable_hooks()
                two_passes.step()

            return ghost
        wrapped = GradSampleModule(model, force_functorch=mode == "functorch")
        private = DPOptimizer(sgd, **noise)

        def step() -> None:
            private.zero_grad()
            loss_fn(wrapped, batch).mean().backward()
            private.step()

        return step

    return make


def vmap(model: nn.Module, loss_fn: Any, batch: Any, sigma: float) -> Step:
    """``vmap(grad)`` of the whole model, then clipping by hand."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, one: Any) -> Tensor:
            result: Tensor = loss_fn(self.model, pytree.tree_map(lambda t: t.unsqueeze(0), one))
            return result[0]

    module = Loss()
    inner = {f"model.{n}": p for n, p in parameters.items()}
    each = torch.vmap(
        torch.func.grad(lambda ps, one: torch.func.functional_call(module, ps, (one,))), in_dims=(None, 0)
    )

    def step() -> None:
        optimizer.zero_grad()
        grads = each(inner, batch)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
        factors = (C / norms.clamp_min(1e-6)).clamp(max=1)
        for name, p in model.named_parameters():
            total = torch.einsum("b,b...->...", factors, grads[f"model.{name}"])
            p.grad = total.add_(torch.randn_like(total), alpha=sigma * C).div_(len(factors))
        optimizer.step()

    return step


METHODS: dict[str, Make] = {
    "eager": eager,
    "dpcheck": engine_step,
    "no noise": without_noise,
    "same kernels": partial(engine_step, libraries=False),
    "compiled": partial(engine_step, compile=True),
    "opacus hooks": opacus("hooks"),
    "opacus functorch": opacus("functorch"),
    "opacus ghost": opacus("ghost"),
    "vmap(grad)": vmap,
}


def build(name: str, made: tuple[nn.Module, Any, Any], warm: int = 2) -> Step:
    """The step of a method on a copy of the model.

    Raises:
        Unable: saying why this method cannot run this model.
    """
    model, loss_fn, batch = made
    return _guarded(name, copy.deepcopy(model), loss_fn, batch, SIGMA, warm)


def error(name: str, made: tuple[nn.Module, Any, Any]) -> float:
    """Largest relative error over parameters of the clipped mean without noise, against dpcheck's.

    dpcheck's is what the tests compare with single samples.
    """
    model, loss_fn, batch = made
    models = [copy.deepcopy(model) for _ in range(2)]
    for which, copied in zip((name, "no noise"), models, strict=True):
        _guarded(which, copied, loss_fn, batch, 0.0, 1)
    errors = []
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        if a.grad is None or b.grad is None:
            return float("nan")  # the method runs a model of its own
        errors.append(float((a.grad * size_of(batch) - b.grad).norm() / b.grad.norm().clamp_min(1e-12)))
    return max(errors)


def _guarded(name: str, model: nn.Module, loss_fn: Any, batch: Any, sigma: float, warm: int) -> Step:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            step = METHODS[name](model, loss_fn, batch, sigma)
            for _ in range(warm):
                step()
        except Unable:
            raise
        except Exception as error:
            raise Unable(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150]}") from error
    return step
