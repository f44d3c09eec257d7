"""Two processes train as one: the same draw, each record on one rank, noise once, equal parameters."""

import pytest
import rank_runs
import torch
from dpcheck.engine.ranks import Ranks
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from white_box import make, records, released

from dpcheck.errors import DpcheckError


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(rank_runs.main, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"found{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", rank_runs.SAMES)
def test_with_the_same_draws_and_noise_two_ranks_are_one_process(found, name):
    """With noise too: it is added once, and it is that of the one process."""
    steps, norm, epsilon = rank_runs.same_as_one(**rank_runs.SAMES[name])
    for own_steps, own_norm, own_epsilon in (rank[name] for rank in found):
        torch.testing.assert_close(own_steps, steps, rtol=1e-5, atol=2e-6)
        assert (own_norm, own_epsilon) == (norm, epsilon)
    assert torch.equal(found[0][name][0], found[1][name][0])


def test_integer_sums_of_secure_mode_are_the_same_too(found):
    alone = released(make(rank_runs.X, noise_multiplier=0.0, secure=True), 1)
    assert torch.equal(found[0]["secure"], alone)
    assert torch.equal(found[1]["secure"], alone)


def test_there_is_one_draw_and_each_record_of_it_is_on_one_rank(found):
    (drawn, first, seen), (also, second, also_seen) = (rank["draws"] for rank in found)
    assert drawn == also
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == drawn
    assert sum(map(len, first)) > 0 and sum(map(len, second)) > 0
    assert stats.binomtest(sum(map(len, drawn)), 60 * 23, 6 / 23).pvalue > 1e-7
    for (count, loss, norms), (_, other_loss, other_norms), indices in zip(seen, also_seen, drawn, strict=True):
        assert count == len(norms) == len(indices)
        assert (loss, norms.tolist()) == (other_loss, other_norms.tolist())
        expected = rank_runs.X[indices].norm(dim=1)
        torch.testing.assert_close(norms, expected)


def test_noise_is_added_once_and_is_equal_on_both_ranks(found):
    noise = found[0]["noise"]
    assert torch.equal(noise, found[1]["noise"])
    x = noise.flatten().double().numpy() * 4
    low, high = stats.chi2.ppf([5e-8, 1 - 5e-8], len(x)) / len(x)
    assert low < (x**2).mean() < high
    assert abs(torch.corrcoef(noise).triu(1)).max() < 6 / noise.shape[1] ** 0.5


def test_ranks_start_and_end_with_the_parameters_of_rank_0(found):
    assert torch.equal(found[0]["start"], found[1]["start"])
    engine = make(rank_runs.X, noise_multiplier=0.0, seed=1)
    engine.fit(progress=False)
    alone = torch.nn.utils.parameters_to_vector(engine.model.parameters()).detach()
    torch.testing.assert_close(found[0]["start"], alone)


def test_what_fails_on_one_rank_stops_all_and_is_counted(found):
    (said, steps), (cause, also) = (rank["failure"] for rank in found)
    assert "rank 1 failed" in said and "record 7" in said
    assert "of record 7 " in cause
    assert steps == also == 1


def test_ranks_that_differ_are_refused_by_name(found):
    for rank in found:
        assert "expected_batch_size is" in rank["settings"]
        assert "the model is" in rank["model"]
        assert "DistributedDataParallel" in rank["wrapped"] and "model.module" in rank["wrapped"]


def test_one_file_counts_the_steps_of_all_ranks(found):
    for counted, steps, ledger, lines in (rank["ledgers"] for rank in found):
        assert counted == (3, 0)
        assert (steps, ledger) == (6, found[0]["ledgers"][2])
        assert lines == (6 if lines is not False else False)
    assert [rank["ledgers"][3] for rank in found] == [6, False]


@given(st.integers(0, 200), st.integers(1, 9))
def test_parts_are_disjoint_and_together_the_whole(count, size):
    parts = [Ranks(rank, size).own(torch.arange(count)) for rank in range(size)]
    assert torch.cat(parts).tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_engine_that_was_made_before_its_ranks_is_refused():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    engine = make(records())
    batch = next(iter(engine))
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(DpcheckError, match=r"rank 0 of 1, and this is rank 0 of 2") as raised:
            engine.step(batch)
        assert "init_process_group() first" in raised.value.next
        assert engine.steps_taken == 0
    finally:
        torch.distributed.destroy_process_group()
