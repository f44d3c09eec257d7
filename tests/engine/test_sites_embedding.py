"""Embedding tables: every way of looking up, sharing and refusing."""

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from hypothesis import given
from hypothesis import strategies as st
from test_sites import examples
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dpcheck import testing
from dpcheck.errors import DpcheckError
from dpcheck.testing import assert_sampler_correct

SHAPES = [(1,), (5,), (4, 4), (3, 5), (2, 3, 2), (3, 2, 1, 4), (2, 1, 3, 2, 2)]


def ids(*shape, rows=7, seed=0):
    return torch.randint(0, rows, shape, generator=torch.Generator().manual_seed(seed))


@examples(40)
@given(testing.embeddings())
def test_any_index_shape_padding_and_order(case):
    # Sparse gradients have no sampler; DP505 asks for dense ones.
    assert_sampler_correct(case, method="single" if "sparse" in case.model else "graph")


class Tied(nn.Module):
    """A table that is also the output layer, as a module or by a function."""

    def __init__(self, padding, functional):
        super().__init__()
        self.table = nn.Embedding(7, 3, padding_idx=padding)
        self.functional = functional
        if not functional:
            self.head = nn.Linear(3, 7, bias=False)
            self.head.weight = self.table.weight

    def forward(self, i):
        h = torch.tanh(self.table(i))
        return h @ self.table.weight.t() if self.functional else self.head(h)


@pytest.mark.parametrize("shape", SHAPES[:5])
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("padding", [None, 0, -1])
def test_tied_to_the_head(padding, functional, shape):
    torch.manual_seed(0)
    proof = assert_sampler_correct(Tied(padding, functional).double(), ids(*shape), method="graph")
    assert proof.parameters[0].sites == ("joint",)


class Positions(nn.Module):
    """Tables looked up with ids that are the same for every sample, in the ways that models do."""

    def __init__(self):
        super().__init__()
        self.words, self.shared, self.ranged = nn.Embedding(7, 3), nn.Embedding(9, 3), nn.Embedding(9, 3)
        self.padded, self.sliced = nn.Embedding(9, 3, padding_idx=1), nn.Parameter(torch.randn(9, 3))
        self.register_buffer("ids", torch.arange(9)[None])

    def forward(self, i):
        t = i.shape[1]
        h = self.words(i) * self.shared(self.ids[:, :t]) + self.ranged(torch.arange(t))
        h = h * self.padded(self.ids[:, :t].flip(1).expand(i.shape[0], t))
        return torch.tanh(h) + self.shared(self.ids[:, :t] * 0 + 2) + self.sliced[:t]


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (5, 3), (3, 9), (2, 1)])
def test_shared_position_ids(shape):
    torch.manual_seed(0)
    assert_sampler_correct(Positions().double(), ids(*shape), method="graph")


class Hashed(nn.Module):
    """One table, several hashes with trained weights, and a second table by the same ids."""

    def __init__(self):
        super().__init__()
        self.table, self.other = nn.Embedding(5, 3), nn.Embedding(7, 2)
        self.weights = nn.Parameter(torch.randn(2))

    def forward(self, i):
        both = self.weights[0] * self.table(i * 7 % 5) + self.weights[1] * self.table(i * 3 % 5)
        return torch.cat([torch.tanh(both), self.other(i)], -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_several_lookups_of_several_tables(shape):
    torch.manual_seed(0)
    assert_sampler_correct(Hashed().double(), ids(*shape), method="graph")


LOOKUPS = {
    "index": lambda table, i: table[i],
    "index of an axis": lambda table, i: table.t()[:, i].movedim(0, -1),
    "two indices": lambda table, i: table[i, i % 3],
    "index_select": lambda table, i: table.index_select(0, i.flatten()).view(*i.shape, 3),
    "gather": lambda table, i: table[:, 1].expand(len(i), 7).gather(1, i.flatten(1)),
    "one-hot": lambda table, i: nn.functional.one_hot(i, 7).to(table.dtype) @ table,
}


class Lookup(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.table, self.function = nn.Parameter(torch.randn(7, 3)), function

    def forward(self, i):
        return self.function(self.table, i)


@pytest.mark.parametrize("shape", [(5, 1), (4, 4), (3, 5), (2, 3, 2)])
@pytest.mark.parametrize("name", LOOKUPS)
def test_a_bare_parameter_as_a_table(name, shape):
    torch.manual_seed(0)
    assert_sampler_correct(Lookup(LOOKUPS[name]).double(), ids(*shape), method="graph")


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_of_the_batch_in_a_gradient_are_refused(shape):
    model = nn.Embedding(7, 3, scale_grad_by_freq=True).double()
    if shape[0] > 1:
        with pytest.raises(DpcheckError, match="how often an index occurs in the batch"):
            assert_sampler_correct(model, ids(*shape))


def test_rows_rewritten_by_the_forward_are_refused():
    model = nn.Embedding(7, 3, max_norm=0.5)
    with pytest.raises(DpcheckError, match="overwrites a parameter"):
        assert_sampler_correct(model, ids(4, 2))


def test_a_frozen_table_has_no_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding.from_pretrained(torch.randn(7, 3)), nn.Linear(3, 2)).double()
    proof = assert_sampler_correct(model, ids(4, 2), method="graph")
    assert [p.name for p in proof.parameters] == ["1.weight", "1.bias"]


class _Largest(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.entries = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes():
            self.entries.append((str(func), out.untyped_storage().nbytes() // out.element_size()))
        return out


def largest_tensor(run):
    """Entries of the largest tensor that ``run`` makes."""
    with _Largest() as seen:
        run()
    return max(count for _, count in seen.entries)


@pytest.mark.parametrize("tied", [False, True])
def test_work_does_not_grow_with_samples_times_vocabulary(tied):
    rows, width, batch = 20_000, 4, 8
    model = nn.Sequential(nn.Embedding(rows, width), nn.Linear(width, 2))

    def loss_fn(m, b):
        scores = m[0](b[0]).mean(1)
        # A tied head that scores a handful of rows.
        return (scores @ m[0].weight.t())[:, 0] if tied else m[1](scores).sum(1)

    clipper = Clipper(model, loss_fn, max_grad_norm=0.1)
    batch_of = (ids(batch, 5, rows=rows),)
    clipper(batch_of)
    # A tied head has [B, rows] scores and their gradient; nothing is [B, rows, width].
    assert largest_tensor(lambda: clipper(batch_of)) <= max(rows * width, 2 * batch * rows if tied else 0)


@examples(10)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 5))
def test_tied_with_repeated_rows_and_padding(batch, length, rows, functional, seed):
    torch.manual_seed(seed)
    model = Tied(0, functional).double()
    assert_sampler_correct(model, ids(batch, length, rows=rows, seed=seed), method="graph")
