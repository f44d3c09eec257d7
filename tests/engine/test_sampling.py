from fractions import Fraction

import numpy as np
import pytest
import torch
from dpcheck.engine.sampling import Loader, physical_size, poisson
from dpcheck.engine.streams import KeyedStreams, SystemStreams
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from dpcheck.errors import DpcheckError
from dpcheck.records import map_style

STREAMS = [KeyedStreams(bytes(range(32))), SystemStreams()]


class Words:
    """Gives out chosen words."""

    def __init__(self, *words):
        self.values = words

    def words(self, count):
        assert count == len(self.values)
        return np.array(self.values, dtype=np.uint64)

    def normals(self, count):
        raise AssertionError("sampling asks for words")


@given(st.integers(1, 10**12), st.data())
def test_the_rate_is_exact_to_64_bits_and_never_above(size, data):
    expected = data.draw(st.integers(1, size))
    if expected == size:
        return
    rate = Fraction(expected, size)
    threshold = (expected << 64) // size
    assert rate - Fraction(1, 2**64) < Fraction(threshold, 2**64) <= rate


def test_a_record_is_in_exactly_below_the_threshold():
    threshold = (1 << 64) // 3
    assert poisson(3, 1, Words(threshold - 1, threshold, 0)).tolist() == [0, 2]
    assert poisson(3, 1, Words(2**64 - 1, threshold, threshold + 1)).tolist() == []


def test_rate_one_takes_all_whatever_is_drawn():
    assert poisson(3, 3, Words()).tolist() == [0, 1, 2]


@pytest.mark.parametrize("streams", STREAMS, ids=["keyed", "system"])
def test_inclusion_is_independent_with_the_stated_rate(streams):
    n, expected, draws = 40, 6, 8000
    q = expected / n
    included = np.zeros((draws, n))
    for step in range(draws):
        included[step, poisson(n, expected, streams.stream("sampling", step)).numpy()] = 1
    assert stats.binomtest(int(included.sum()), draws * n, q).pvalue > 1e-7
    each = (included.sum(0) - draws * q) ** 2 / (draws * q * (1 - q))
    assert stats.chi2.sf(each.sum(), n) > 1e-7
    sizes = included.sum(1)
    assert abs(sizes.var() / (n * q * (1 - q)) - 1) < 5.5 * (2 / draws) ** 0.5
    assert stats.binomtest(int((sizes == 0).sum()), draws, (1 - q) ** n).pvalue > 1e-7
    records = np.corrcoef(included.T)[np.triu_indices(n, 1)]
    assert abs(records).max() < 6 / draws**0.5
    assert abs(np.corrcoef(sizes[:-1], sizes[1:])[0, 1]) < 6 / draws**0.5


def test_empty_draws_happen_and_are_returned():
    sizes = [len(poisson(5, 1, STREAMS[0].stream("sampling", step))) for step in range(400)]
    assert stats.binomtest(sizes.count(0), 400, 0.8**5).pvalue > 1e-7


@given(st.integers(1, 10**6), st.integers(1, 512), st.data())
def test_physical_size_is_within_its_limit_and_seldom_wasteful(size, limit, data):
    expected = data.draw(st.integers(1, size))
    physical = physical_size(expected, size, limit)
    assert 1 <= physical <= min(limit, size)
    if expected == size:
        calls = -(-size // physical)
        assert calls * physical - size < calls


def test_default_sizes():
    assert physical_size(100, 100) == 100
    assert physical_size(256, 60_000) == 144
    assert physical_size(64, 60_000) == 80


def data():
    return TensorDataset(torch.arange(20).float().view(10, 2), torch.arange(10))


def test_physical_batches_have_one_size_and_padding_weighs_nothing():
    loader = Loader(data(), None, 4)
    chunks = loader.chunks(torch.tensor([1, 3, 5, 7, 8, 9]))
    assert [c.tolist() for c in chunks] == [[1, 3, 5, 7], [8, 9]]
    full, padded = map(loader.read, chunks)
    assert (full.real, full.weights.tolist(), full.data[1].tolist()) == (4, [1, 1, 1, 1], [1, 3, 5, 7])
    assert (padded.real, padded.weights.tolist(), padded.data[1].tolist()) == (2, [1, 1, 0, 0], [8, 9, 8, 8])
    assert padded.data[0].shape == (4, 2)
    assert loader.chunks(torch.arange(0)) == ()


def test_a_tensor_data_set_is_read_as_default_collate_would():
    fast = Loader(data(), None, 4).collate(torch.tensor([2, 9, 4]))
    slow = Loader(Subset(data(), range(10)), None, 4).collate(torch.tensor([2, 9, 4]))
    assert type(fast) is type(slow) is type(default_collate([data()[0]]))
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))


def test_collate_fn_and_any_pytree():
    texts = [{"ids": [1]}, {"ids": [2, 3]}, {"ids": []}]

    def pad(records):
        return {"ids": torch.tensor([(r["ids"] + [0, 0])[:2] for r in records])}

    batch = Loader(texts, pad, 3).read(torch.tensor([1, 2]))
    assert batch.data["ids"].tolist() == [[2, 3], [0, 0], [2, 3]]


@pytest.mark.parametrize("wrong", [lambda r: torch.zeros(len(r) + 1), lambda r: torch.zeros(len(r) // 2)])
def test_a_collate_fn_that_changes_the_number_of_samples_is_refused(wrong):
    with pytest.raises(DpcheckError, match=r"samples for 4 records"):
        Loader(data(), wrong, 4).read(torch.arange(4))


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1)


class NoLength(Dataset):
    def __getitem__(self, index):
        return torch.zeros(1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (DataLoader(data(), shuffle=True), "DataLoader"),
        (DataLoader(data(), batch_size=4, drop_last=True), "DataLoader"),
        (RandomSampler(data()), "RandomSampler"),
        (WeightedRandomSampler([0.5] * 10, 10), "WeightedRandomSampler"),
        (BatchSampler(RandomSampler(data()), 4, drop_last=True), "BatchSampler"),
        (DistributedSampler(data(), num_replicas=2, rank=0), "DistributedSampler"),
        (Stream(), "cannot be drawn by number"),
        (NoLength(), "cannot be drawn by number"),
        ({"a": 1}, "cannot be drawn by number"),
        (iter([1]), "cannot be drawn by number"),
        ((torch.zeros(3, 2), torch.zeros(3)), "tuple of tensors"),
        ([], "empty"),
    ],
)
def test_what_is_not_a_map_style_data_set_is_refused(wrong, says):
    with pytest.raises(DpcheckError, match=says) as raised:
        map_style(wrong)
    assert raised.value.where == "dataset"


@pytest.mark.parametrize(
    "of_all",
    [lambda rows: max(float(r.max()) for r in rows), lambda rows: len(rows), lambda rows: [str(r) for r in rows]],
)
def test_numbers_and_strings_of_a_batch_may_not_come_from_its_records(of_all):
    """No pass sees what is no tensor, so it must be the same in every batch."""
    loader = Loader(list(torch.randn(9, 3)), lambda rows: (torch.stack(rows), of_all(rows)), 4)
    with pytest.raises(DpcheckError, match="no tensor"):
        loader.read(torch.tensor([0, 1, 2]))
        loader.read(torch.tensor([3, 4, 5]))


def test_constants_of_a_batch_are_fine():
    loader = Loader(list(torch.randn(9, 3)), lambda rows: {"x": torch.stack(rows), "scale": 0.5, "mode": "train"}, 4)
    assert [loader.read(torch.tensor(rows)).data["mode"] for rows in ([0, 1], [2, 3, 4])] == ["train", "train"]


class Slow(Dataset):
    """Records that cannot be read from memory."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return {"x": torch.full((2,), float(index)), "at": index}


def test_workers_read_the_same_batches_in_the_same_order_for_draw_after_draw():
    here, there = (Loader(Slow(), None, 4, num_workers=n, pin_memory=n > 0) for n in (0, 2))
    for draw in (torch.arange(3, 40, 3), torch.arange(0), torch.tensor([49]), torch.arange(50)):
        expected, found = list(here.physical(draw)), list(there.physical(draw))
        assert [chunk.tolist() for chunk, _ in found] == [chunk.tolist() for chunk, _ in expected]
        for (_, a), (_, b) in zip(expected, found, strict=True):
            assert torch.equal(a.data["x"], b.data["x"]) and torch.equal(a.data["at"], b.data["at"])
            assert torch.equal(a.weights, b.weights) and a.real == b.real
    chunks = [chunk for chunk, _ in there.physical(torch.arange(50))]
    assert torch.equal(torch.cat(chunks), torch.arange(50))


class Bad(Slow):
    def __getitem__(self, index):
        if index == 5:
            raise KeyError("gone")
        return super().__getitem__(index)


def test_what_a_worker_raises_arrives():
    with pytest.raises(KeyError, match="gone"):
        list(Loader(Bad(), None, 4, num_workers=1).physical(torch.arange(8)))


@pytest.mark.parametrize("wrong", [{"num_workers": -1}, {"num_workers": True}, {"num_workers": 1.5}, {"pin_memory": 1}])
def test_bad_settings_of_reading_are_refused_by_name_and_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(DpcheckError, match=f"{name}={value}"):
        Loader(data(), None, 4, **wrong)
