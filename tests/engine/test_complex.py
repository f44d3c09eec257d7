"""Complex parameters: a number has two coordinates, and both are in the norm, in the sum and under the noise."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.kinds import clip_factors
from dpcheck.engine.sampling import LogicalBatch
from torch import Tensor, nn

import dpcheck


class Filter(nn.Module):
    """A filter in frequency space, and a complex matrix product."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.filter, self.mix = nn.Parameter(torch.randn(4, dtype=dtype)), nn.Parameter(torch.randn(4, 3, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x.to(self.filter.real.dtype)) * self.filter
        return (spectrum @ self.mix).abs().sum(1) / 10


def square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square()  # type: ignore[no-any-return]


def alone(model: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
    """Every sample's gradients, by autograd."""
    named = dict(model.named_parameters())
    rows = [torch.autograd.grad(square(model, x[i : i + 1]).sum(), list(named.values())) for i in range(len(x))]
    return [dict(zip(named, row, strict=True)) for row in rows]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("method", ["graph", "vmap", "single"])
def test_norms_and_sums_have_both_coordinates(dtype: torch.dtype, method: Literal["graph", "vmap", "single"]) -> None:
    torch.manual_seed(0)
    model, x = Filter(dtype), torch.randn(5, 6)
    found, each = Clipper(model, square, max_grad_norm=1.0, method=method)(x), alone(model, x)
    squares = [sum(float(g.real.square().sum() + g.imag.square().sum()) for g in row.values()) for row in each]
    norms = torch.tensor(squares, dtype=torch.float64).sqrt()
    torch.testing.assert_close(found.norms.double(), norms, rtol=1e-5, atol=0)
    factors = clip_factors(norms, 1.0, torch.ones(5, dtype=torch.float64))
    for name, grad in found.grads.items():
        expected = sum(f * row[name] for f, row in zip(factors, each, strict=True))
        torch.testing.assert_close(grad, torch.as_tensor(expected).to(dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_gradients_are_verified(dtype: torch.dtype) -> None:
    proof = dpcheck.verify(Filter(dtype), square, torch.randn(5, 6))
    assert proof.ok
    assert proof.method == "graph"


def engine_of(model: nn.Module, data: Tensor, **settings: float | bool) -> dpcheck.PrivacyEngine:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return dpcheck.PrivacyEngine(
        model,
        square,
        optimizer,
        data,
        expected_batch_size=4,
        max_grad_norm=1.0,
        delta=1e-3,
        steps=1,
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("secure", [False, True])
def test_without_noise_both_coordinates_are_trained(secure: bool) -> None:
    model, data = Filter(torch.complex128), torch.randn(40, 6)
    engine = engine_of(model, data, noise_multiplier=0.0, secure=secure)
    (batch,) = iter_once(engine)
    expected = Clipper(model, square, max_grad_norm=1.0)(data[batch.indices]).grads
    engine.step(batch)
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, expected[name] / 4, rtol=1e-5, atol=1e-5)


def iter_once(engine: dpcheck.PrivacyEngine) -> list[LogicalBatch]:
    """The first batch."""
    return [next(iter(engine))]


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(20_000, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x.sum(1, keepdim=True)).real.mean(1)


@pytest.mark.parametrize("secure", [False, True])
def test_both_coordinates_have_the_whole_noise(secure: bool) -> None:
    model = Wide()
    engine = engine_of(model, torch.randn(40, 6), noise_multiplier=100.0, secure=secure)
    engine.step(*iter_once(engine))
    grad = model.weight.grad
    assert grad is not None
    for part in (grad.real, grad.imag):
        # 20,000 values: five standard errors are 2.5 %.
        assert float(part.std()) == pytest.approx(100.0 / 4, rel=0.03)
    assert abs(float((grad.real * grad.imag).mean())) < 0.04 * (100.0 / 4) ** 2
