"""One table used in several ways at once, drawn: its gradient is the sum of all uses, cross terms included."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_sites import examples
from torch import nn

import dpcheck
from dpcheck.testing import assert_sampler_correct, output_losses

ROWS, WIDTH = 8, 3


def rows(i):
    return i.reshape(len(i), -1)


def pooled(h, i):
    """[*, D] of a sample to [B, D]; what all samples share is added to each."""
    return h.reshape(len(i), -1, WIDTH).mean(1)


def shared(table, t):
    """Position ids [1, T]."""
    return table(torch.arange(ROWS)[None, :t])


def hashed(table, i):
    return table(torch.stack([i * 5 % 7, i * 3 % ROWS, i], -1)).prod(-2)


def counted(table, i):
    """RoBERTa's position ids: padding keeps its own."""
    mask = (rows(i) != 1).long()
    return table((mask.cumsum(1) * mask + 1).clamp(max=ROWS - 1))


# function(table, ids [B, ...], hidden [B, D]) -> [B, D]
USES = {
    "lookup": lambda table, i, h: pooled(table(i), i),
    "functional": lambda table, i, h: pooled(F.embedding(i, table.weight, padding_idx=-2), i),
    "index": lambda table, i, h: pooled(table.weight[i], i),
    "repeated": lambda table, i, h: pooled(table(i // 2), i),
    "out of order": lambda table, i, h: pooled(table(rows(i).sort(1, descending=True).values), i),
    "first word": lambda table, i, h: table(rows(i)[:, 0]),
    "shared positions": lambda table, i, h: h + shared(table, min(ROWS, i[0].numel())).square().sum((0, 1)),
    "arange": lambda table, i, h: h * table(torch.arange(len(i[0].flatten()[:ROWS]))).mean(0),
    "arange of samples": lambda table, i, h: h * table(torch.arange(i[0].numel()).expand(len(i), -1) % ROWS).mean(1),
    "counted positions": lambda table, i, h: pooled(counted(table, i), i),
    "hashes": lambda table, i, h: pooled(hashed(table, i), i),
    "tied head": lambda table, i, h: torch.tanh(h @ table.weight.t()) @ table.weight,
    "one row": lambda table, i, h: h * table.weight[2] + table.weight[2, 0],
    "rows of norm one": lambda table, i, h: pooled(F.embedding(i, F.normalize(table.weight, dim=1)), i),
    "bag": lambda table, i, h: F.embedding_bag(rows(i), table.weight, mode="mean", padding_idx=0),
}


class Uses(nn.Module):
    """``uses`` of one table, each multiplied with what came before, and a second table."""

    def __init__(self, uses, **options):
        super().__init__()
        self.uses, self.table, self.other = uses, nn.Embedding(ROWS, WIDTH, **options), nn.Embedding(ROWS, WIDTH)

    def forward(self, i):
        h = pooled(self.other(i), i)
        for use in self.uses:
            h = torch.tanh(h) + USES[use](self.table, i, h) * (1 + h)
        return h


@st.composite
def ids(draw):
    """0 to 3 axes between samples and nothing; T == B is frequent."""
    shape = [draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 4), max_size=3))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randint(0, draw(st.integers(1, ROWS)), shape, generator=generator)


@examples(30)
@given(st.lists(st.sampled_from(sorted(USES)), min_size=1, max_size=3), ids(), st.none() | st.integers(-ROWS, ROWS - 1))
def test_a_table_used_in_several_ways(uses, batch, padding):
    torch.manual_seed(0)
    assert_sampler_correct(Uses(uses, padding_idx=padding).double(), batch, method="graph")


@pytest.mark.parametrize("use", USES)
def test_each_use_when_there_are_as_many_words_as_samples(use):
    torch.manual_seed(0)
    batch = torch.tensor([[1, 1, 2], [2, 7, 2], [6, 0, 6]])
    assert_sampler_correct(Uses([use], padding_idx=1).double(), batch, method="graph")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_own_dtype(dtype):
    torch.manual_seed(0)
    model = Uses(["lookup", "shared positions", "tied head"], padding_idx=0).to(dtype)
    proof = assert_sampler_correct(model, torch.randint(0, ROWS, (4, 3)), method="graph")
    assert all(p.error_own_dtype is not None for p in proof.parameters)


REFUSED = {"sparse": "DP501", "scale_grad_by_freq": "DP104", "max_norm": "DP302"}


@pytest.mark.parametrize("shape", [(4,), (4, 4), (4, 3), (5, 1, 2), (4, 2, 2, 2)])
@pytest.mark.parametrize("option", REFUSED)
def test_refused_by_a_rule_with_a_way_out(option, shape):
    """Whatever the shape of the indices; an index repeats within the batch in all of them."""
    model = nn.Embedding(3, 2, **{option: 0.5 if option == "max_norm" else True})
    batch = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(1))
    report = dpcheck.check(model, output_losses, batch)
    assert not report.ok
    (found,) = [d for d in report.diagnostics if d.code == REFUSED[option]]
    assert found.help and found.fix
