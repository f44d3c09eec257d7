"""Every sampler against each sample alone and vmap(grad): layers over their option space."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from dpcheck import testing
from dpcheck.testing import assert_sampler_correct


def examples(count):
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )  # fmt: skip


@examples(12)
@given(testing.linears())
def test_linear(case):
    assert_sampler_correct(case, method="graph")


@examples(20)
@given(testing.convolutions())
def test_convolution(case):
    assert_sampler_correct(case, method="graph")


@examples(12)
@given(testing.transposed_convolutions())
def test_transposed_convolution(case):
    assert_sampler_correct(case, method="graph")


@examples(15)
@given(testing.norms())
def test_norm(case):
    assert_sampler_correct(case, method="graph")


@examples(5)
@given(testing.recurrents())
def test_recurrent(case):
    # Shapes of packed sequences depend on the lengths, which are data.
    assert_sampler_correct(case, method="single" if "Packed" in case.model else "graph")


@examples(6)
@given(testing.attentions())
def test_attention(case):
    assert_sampler_correct(case, method="graph")


@examples(12)
@given(testing.compositions())
def test_composition(case):
    assert_sampler_correct(case, method="graph")


@examples(10)
@given(testing.parametrized())
def test_parametrized(case):
    # The backward of `orthogonal` writes into slices, of which nothing is proven: such a model falls back.
    assert_sampler_correct(case, method=None if "orthogonal" in case.model else "graph")


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
@examples(8)
@given(data=st.data())
def test_own_dtype(dtype, data):
    strategy = data.draw(st.sampled_from([testing.linears, testing.convolutions, testing.embeddings, testing.norms]))
    proof = assert_sampler_correct(data.draw(strategy(dtype=dtype)))
    assert all(p.error_own_dtype is not None for p in proof.parameters)


class Bare(nn.Module):
    """Parameters outside any layer, used by ``function(x, matrix, vector, scalar)``."""

    def __init__(self, function):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
        self.scalar, self.function = nn.Parameter(torch.randn(())), function

    def forward(self, x):
        return self.function(x, self.matrix, self.vector, self.scalar)


BARE = {
    "scale": lambda x, m, v, s: x * v + s,
    "mm": lambda x, m, v, s: (x.flatten(0, 1) @ m.t()).view(*x.shape[:2], 3),
    "bmm": lambda x, m, v, s: torch.bmm(x, m.t().expand(len(x), 4, 3)) * s,
    "baddbmm": lambda x, m, v, s: torch.baddbmm(v.expand_as(x), x, (m.t() @ m).expand(len(x), 4, 4)),
    "addmm": lambda x, m, v, s: torch.addmm(v, x.flatten(0, 1), m.t() @ m, beta=0.5, alpha=2).view_as(x),
    "mv": lambda x, m, v, s: x @ v,
    "addmv": lambda x, m, v, s: torch.addmv(s.expand(len(x)), x[:, 0], v),
    "outer": lambda x, m, v, s: torch.outer(x[:, 0, 0], v),
    "einsum": lambda x, m, v, s: torch.einsum("btc,kc,kd,d->btd", x, m, m, v),
    "low rank": lambda x, m, v, s: x @ (m.t() @ m + torch.diag(v)),
    "normalised": lambda x, m, v, s: x @ (m / m.norm(dim=1, keepdim=True)).t() * s.exp(),
    "mean": lambda x, m, v, s: (x * v).mean((1, 2)) + (x * s).mean(1).sum(1),
    "twice": lambda x, m, v, s: torch.tanh(x @ m.t()) @ m,
    "in place": lambda x, m, v, s: (x * v).add_(s).relu_(),
    "row": lambda x, m, v, s: x * m[1] + m[0, 2],
    "concatenated": lambda x, m, v, s: x @ torch.cat([m, v[None]]).t(),
    "unrelated": lambda x, m, v, s: x * v,
}


@pytest.mark.parametrize("shape", [(5, 2, 4), (4, 4, 4), (1, 2, 4)])
@pytest.mark.parametrize("name", BARE)
def test_bare_parameters(name, shape):
    torch.manual_seed(0)
    model = Bare(BARE[name]).double()
    assert_sampler_correct(model, torch.randn(*shape, dtype=torch.float64), method="graph")


def test_a_regulariser_is_part_of_every_loss():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()

    def loss_fn(m, batch):
        return testing.output_losses(m, batch) + 0.1 * m.weight.square().sum() + 0.1 * m.bias.abs().sum()

    assert_sampler_correct(model, torch.randn(4, 3, dtype=torch.float64), loss_fn=loss_fn, method="graph")


class Frames(nn.Module):
    """Video: convolutions and norms over B * T frames; ``last`` puts time before samples."""

    def __init__(self, last):
        super().__init__()
        self.conv, self.norm, self.head, self.last = nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Linear(4, 3), last

    def forward(self, x):
        b, t = x.shape[:2]
        frames = x.transpose(0, 1).flatten(0, 1) if self.last else x.flatten(0, 1)
        h = self.norm(self.conv(frames)).mean((2, 3))
        h = self.head(h)
        return h.view(t, b, 3).mean(0) if self.last else h.view(b, t, 3).mean(1)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_sample_of_several_frames_stays_one_sample(last, size):
    torch.manual_seed(0)
    x = torch.randn(size, 3, 2, 4, 3, dtype=torch.float64)
    assert_sampler_correct(Frames(last).double(), x, method="graph")


class Recurrent(nn.Module):
    """Time before samples, and a trained first state."""

    def __init__(self):
        super().__init__()
        self.rnn, self.cell, self.first = nn.LSTM(3, 4), nn.GRUCell(3, 2), nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x):
        state = self.first.expand(1, len(x), 4).contiguous()
        return torch.cat([self.rnn(x.transpose(0, 1), (state, state))[0][-1], self.cell(x[:, 0])], 1)


def test_samples_on_the_second_axis():
    torch.manual_seed(0)
    assert_sampler_correct(Recurrent().double(), torch.randn(3, 3, 3, dtype=torch.float64), method="graph")


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_layouts_that_depend_on_the_kernel(mode):
    """In float32 oneDNN gives a convolution channels-last strides that a plain kernel does not."""
    torch.manual_seed(0)
    model = nn.Conv3d(2, 3, 2, padding=1, padding_mode=mode).to(memory_format=torch.channels_last_3d)
    x = torch.randn(3, 2, 3, 2, 2).to(memory_format=torch.channels_last_3d)
    assert_sampler_correct(model, x, method="graph")
