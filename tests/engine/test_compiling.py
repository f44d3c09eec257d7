"""Compiled plans: the same sums, and clear words where there is no compiler."""

from __future__ import annotations

import pytest
import torch
from dpcheck.engine import Clipper
from torch import Tensor, nn

from dpcheck import PrivacyEngine
from dpcheck.errors import DpcheckError
from dpcheck.testing import output_losses

# The compiler imports parts of torch that torch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Words(nn.Module):
    """A tied table, a norm and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.table(ids))
        return self.conv(x.transpose(1, 2)).transpose(1, 2).tanh() @ self.table.weight.t()


@pytest.fixture
def words() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Words(), (torch.randint(0, 11, (4, 5)),)


def test_the_same_sums_at_every_clipping_norm(words):
    model, batch = words
    plain = Clipper(model, output_losses, max_grad_norm=1.0)
    other = Clipper(model, output_losses, max_grad_norm=1.0, compile=True)
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for bound in (1.0, 0.01):
        plain.max_grad_norm = other.max_grad_norm = bound
        expected, found = plain(batch, weights), other(batch, weights)
        torch.testing.assert_close(found.norms, expected.norms, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.grads, expected.grads, rtol=1e-4, atol=1e-6)
        assert other.method == "graph"


def test_the_engine_asks_for_it_and_no_compiler_is_an_error(monkeypatch, words):
    model, (ids,) = words

    def compiler(graph: object, inputs: object) -> object:
        raise OSError("no C++ compiler here")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: real(module, backend=compiler, **options))
    engine = PrivacyEngine(
        model, output_losses, torch.optim.SGD(model.parameters(), lr=0.1), [(row,) for row in ids],
        expected_batch_size=4, max_grad_norm=1.0, delta=1e-3, noise_multiplier=1.0, steps=1, compile=True, check=False,
    )  # fmt: skip
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(DpcheckError, match="no C\\+\\+ compiler here") as raised:
        engine.fit(progress=False)
    assert "compile=False" in str(raised.value)
    torch.testing.assert_close([*model.parameters()], before, rtol=0, atol=0)
