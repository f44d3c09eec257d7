"""Matrix products by either library: equal up to rounding, in every layout, and only where both can."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpcheck import kernels
from dpcheck.tracing import without_fused_layers

SIZES = st.integers(1, 90)


def laid_out(rows, columns, transposed, strided):
    t = torch.randn((columns, rows) if transposed else (rows, columns * (2 if strided else 1)))
    return t.t() if transposed else t[:, :columns]


@pytest.fixture(params=[True, False], autouse=True)
def library(request, monkeypatch):
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: request.param)
    monkeypatch.setattr(kernels, "_WORTH_IT", 1)


@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_products_in_every_layout(m, n, k, left, right, strided, wide):
    a, b = laid_out(m, k, left, strided), laid_out(k, n, right, strided)
    added = torch.randn(m, n) if wide else torch.randn(n)
    expected, size = a.double() @ b.double(), float((a.abs().double() @ b.abs().double()).max())
    product = kernels.matmul(a, b)
    assert float((product - expected).abs().max()) <= 1e-6 * size
    assert product.is_contiguous()
    total = kernels.addmm(added, a, b) - (added.double() + expected)
    assert float(total.abs().max()) <= 1e-6 * (size + float(added.abs().max()))


@pytest.mark.parametrize(
    ("left", "right", "dtype"),
    [((3, 4, 5), (5, 6), torch.float32), ((2, 3, 4), (2, 4, 5), torch.float32), ((4, 5), (5, 6), torch.float64)],
)
def test_what_only_torch_multiplies(left, right, dtype):
    a, b = torch.randn(left, dtype=dtype), torch.randn(right, dtype=dtype)
    torch.testing.assert_close(kernels.matmul(a, b), a @ b, rtol=0, atol=0)


@pytest.mark.parametrize("m", [0, 3])
def test_nothing_to_multiply(m):
    product = kernels.matmul(torch.randn(m, 0), torch.randn(0, 4))
    torch.testing.assert_close(product, torch.zeros(m, 4))


def test_the_choice_is_made_once_and_obeys_torch(monkeypatch):
    monkeypatch.undo()
    assert kernels.onednn_is_faster() == kernels.onednn_is_faster()
    with without_fused_layers():
        assert not kernels.onednn_is_faster()
