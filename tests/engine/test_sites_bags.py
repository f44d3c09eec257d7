"""Embedding bags: rows, offsets, weights, padding, tied heads; and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from dpcheck.engine.clipping import Clipper
from hypothesis import given
from hypothesis import strategies as st
from test_embedding_uses import REFUSED
from test_sites import examples
from test_sites_embedding import largest_tensor
from torch import nn

import dpcheck
from dpcheck import testing
from dpcheck.errors import DpcheckError
from dpcheck.testing import assert_sampler_correct, output_losses

MODES = ("sum", "mean", "max")


@examples(25)
@given(testing.bags())
def test_rows_of_indices(case):
    assert_sampler_correct(case, method="graph")


class Bags(nn.Module):
    """``nn.EmbeddingBag`` on flat indices [B * K * L] in bags of the lengths ``cuts`` each, K bags for a sample."""

    def __init__(self, cuts, **options):
        super().__init__()
        self.bag, self.cuts = nn.EmbeddingBag(6, 3, **options), cuts
        self.weights = nn.Parameter(torch.randn(sum(cuts)))
        self.weighted = options["mode"] == "sum"

    def forward(self, i):
        lengths = torch.tensor(self.cuts).repeat(len(i))
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        offsets = offsets if self.bag.include_last_offset else offsets[:-1]
        # Weights of all samples, which depend on a parameter and on the data.
        weights = (self.weights * torch.sin(i.to(self.weights.dtype))).flatten() if self.weighted else None
        return self.bag(i.flatten(), offsets, weights).view(len(i), -1)


@examples(30)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(any), st.integers(1, 4), st.sampled_from(MODES),
    st.booleans(), st.none() | st.integers(-6, 5), st.integers(0, 9),
)  # fmt: skip
def test_offsets_made_from_shapes(cuts, size, mode, last, padding, seed):
    """Uneven and empty bags, several for a sample, with weights that are trained."""
    torch.manual_seed(seed)
    model = Bags(cuts, mode=mode, include_last_offset=last, padding_idx=padding).double()
    assert_sampler_correct(model, torch.randint(0, 6, (size, sum(cuts))), method="graph")


class Framed(nn.Module):
    """Bags of every frame, frames before samples; ``tied`` scores the words again."""

    def __init__(self, mode, tied):
        super().__init__()
        self.bag, self.tied = nn.EmbeddingBag(6, 3, mode=mode, padding_idx=1), tied

    def forward(self, i):
        frames = i.transpose(0, 1).flatten(0, 1)
        h = torch.tanh(self.bag(frames)).view(i.shape[1], i.shape[0], 3).sum(0)
        return F.linear(h, self.bag.weight) if self.tied else h


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(4, 2, 3), (3, 3, 3), (1, 2, 2)])
def test_several_bags_of_a_sample_and_a_tied_head(mode, tied, shape):
    torch.manual_seed(0)
    proof = assert_sampler_correct(Framed(mode, tied).double(), torch.randint(0, 6, shape), method="graph")
    assert proof.parameters[0].sites == (("joint",) if tied and mode != "max" else proof.parameters[0].sites)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_own_dtype(mode, dtype):
    torch.manual_seed(0)
    model = nn.EmbeddingBag(6, 3, mode=mode, padding_idx=2).to(dtype)
    proof = assert_sampler_correct(model, torch.randint(0, 6, (4, 5)), method="graph")
    assert proof.parameters[0].error_own_dtype is not None


def test_a_record_without_words_has_gradient_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(6, 3, padding_idx=0), nn.Linear(3, 2)).double()
    assert_sampler_correct(model, torch.tensor([[0, 0], [1, 0], [2, 2]]), method="graph")


@pytest.mark.parametrize("mode", MODES)
def test_work_does_not_grow_with_samples_times_vocabulary(mode):
    rows, width, batch = 20_000, 4, 8
    model = nn.Sequential(nn.EmbeddingBag(rows, width, mode=mode), nn.Linear(width, 2))
    clipper, words = Clipper(model, output_losses, max_grad_norm=0.1), torch.randint(0, rows, (batch, 5))
    clipper(words)
    assert largest_tensor(lambda: clipper(words)) <= rows * width
    assert clipper.sites()["0.weight"] == ("embedding-bag",)


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(7, 3), nn.Linear(3, 2)

    def forward(self, i, offsets):
        return self.head(self.bag(i, offsets))


@pytest.mark.parametrize("offsets", [[0, 1, 2, 3], [0, 2, 3, 3]])
def test_offsets_that_are_data_are_refused_with_a_way_out(offsets):
    batch = (torch.tensor([1, 2, 3, 4]), torch.tensor(offsets))
    report = dpcheck.check(Cut(), output_losses, batch)
    assert report.verdict == "mixing"
    assert [d.code for d in report.diagnostics] == ["DP111"]
    assert "[B, L]" in report.diagnostics[0].help
    with pytest.raises(DpcheckError, match="offsets that are data"):
        Clipper(Cut(), output_losses, max_grad_norm=1.0)(batch)


def test_flat_indices_have_no_sample_axis():
    with pytest.raises(DpcheckError, match=r"indices \[B, L\] with padding_idx"):
        dpcheck.check(Cut(), output_losses, (torch.arange(6), torch.tensor([0, 2, 3, 3])))


def test_bags_of_several_samples_mix():
    def loss_fn(m, i):
        return m(i.flatten(), (torch.arange(len(i)) * 4 - 1).clamp(min=0)).sum(1)

    report = dpcheck.check(nn.EmbeddingBag(7, 3), loss_fn, torch.randint(0, 7, (4, 4)))
    assert [d.code for d in report.diagnostics] == ["DP111"]


@pytest.mark.parametrize("option", REFUSED)
def test_refused_by_a_rule(option):
    model = nn.EmbeddingBag(7, 3, mode="sum", **{option: 0.5 if option == "max_norm" else True})
    report = dpcheck.check(model, output_losses, torch.tensor([[1, 1, 2], [2, 2, 2], [6, 0, 6], [3, 4, 5]]))
    assert REFUSED[option] in {d.code for d in report.diagnostics}
    assert all(d.help for d in report.diagnostics)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_counts_of_the_batch_in_a_function_are_found(mode):
    table = nn.Embedding(7, 3)
    bag = lambda m, i: F.embedding_bag(i, m.weight, mode=mode, scale_grad_by_freq=True).sum(1)  # noqa: E731
    report = dpcheck.check(table, bag, torch.randint(0, 7, (4, 3)))
    assert [d.code for d in report.diagnostics] == ["DP104"]
