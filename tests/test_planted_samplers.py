"""The property tests find every planted fault: how many drawn examples each takes is written down here."""

import random

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from planted import FAULTS, Frames, Mean, Table, WeightedBag, _python_state, lookup, rows, tied
from torch import nn

from dpcheck import DpcheckError, testing, verify
from dpcheck.cases import Case
from dpcheck.testing import output_losses

LIMIT = 60


@st.composite
def words(draw):
    """Ids of up to 7 words, [B, L]."""
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))


def tables(function, padding=None):
    return words().map(lambda ids: (Table(function, padding), ids))


def numbers(make, *shape):
    """A model, and batches of 1 to 4 samples."""
    return st.integers(1, 4).map(lambda size: (make(), rows(size, *shape)))


STRATEGIES = {
    "convolution": testing.convolutions(), "linear": testing.linears(), "layers": testing.compositions(),
    "embedding": testing.embeddings(), "bag": testing.bags(),
    "largest of a bag": testing.bags(mode="max"), "layer norm": testing.norms(kind="LayerNorm"),
    "group norm": testing.norms(kind="GroupNorm"), "parametrized": testing.parametrized(),
    "tied": tables(tied), "looked up": tables(lookup, 2), "indexed": tables(lambda table, i: table.weight[i]),
    "weighted bag": words().map(lambda ids: (WeightedBag(7, 3, mode="sum"), ids)),
    "frames": numbers(lambda: Frames(nn.Linear(3, 2)), 3, 3), "mean": numbers(Mean, 3),
    "python": numbers(lambda: _python_state()[0], 3),
}  # fmt: skip

# Of each fault: what is drawn, and how many examples it took.
TOOK = {
    "weights of a bag forgotten": ("weighted bag", 2),
    "padding counted in a bag's mean": ("bag", 10),
    "a bag's sum for its mean": ("bag", 4),
    "repeated entries of a bag as separate rows": ("bag", 4),
    "all columns of the largest row": ("largest of a bag", 4),
    "bag's sum unclipped": ("bag", 2),
    "bias forgotten in the sum": ("convolution", 8),
    "bias forgotten in the norm": ("convolution", 8),
    "stride ignored": ("convolution", 3),
    "dilation ignored": ("convolution", 3),
    "channel groups crossed": ("convolution", 4),
    "samples crossed in a convolution": ("convolution", 4),
    "convolution's sum unclipped": ("convolution", 2),
    "ghost norm of the mean": ("linear", 10),
    "norm for its square": ("linear", 9),
    "stale activation": ("linear", 10),
    "weights applied twice": ("linear", 9),
    "batch mean for the sum": ("linear", 2),
    "divisor of a mean forgotten": ("mean", 2),
    "bias of half weight in the norm": ("linear", 2),
    "padding row trained": ("looked up", 3),
    "wrong padding row": ("looked up", 3),
    "repeated ids counted once": ("embedding", 2),
    "repeated ids as separate rows": ("embedding", 5),
    "cross term dropped": ("tied", 2),
    "cross term once": ("tied", 2),
    "second use lost": ("tied", 2),
    "assigned for added": ("indexed", 2),
    "layer norm's input not normalised": ("layer norm", 2),
    "layer norm's sum over all samples": ("layer norm", 2),
    "statistics of another group": ("group norm", 6),
    "frames given to neighbours": ("frames", 2),
    "norm before a weight's parametrization": ("parametrized", 2),
    "one branch detached": ("layers", 10),
    "small gradients scaled up": ("layers", 3),
    "clipped by the largest parameter's norm": ("layers", 4),
    "vmap averages over the batch": ("python", 3),
}


def wrong(drawn):
    """Whether the proof fails on a drawn example; a sampler that raises is found out, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batch = drawn.build() if isinstance(drawn, Case) else drawn
        try:
            return not verify(model.double(), output_losses, batch).ok
        except (RuntimeError, DpcheckError):
            return True


def examples_until_found(strategy):
    """How many examples are drawn until one is wrong."""
    count = 0

    def condition(drawn):
        nonlocal count
        count += 1
        return wrong(drawn)

    chosen = settings(
        max_examples=LIMIT, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    find(strategy, condition, settings=chosen, random=random.Random(0))
    return count


def test_there_are_at_least_25_and_each_has_its_number():
    assert len(FAULTS) == len({fault.what for fault in FAULTS}) >= 25
    assert [fault.what for fault in FAULTS] == list(TOOK)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.what for fault in FAULTS])
def test_a_planted_fault_is_found(fault, monkeypatch):
    name, took = TOOK[fault.what]
    fault.plant(monkeypatch)
    # Another version of hypothesis draws other examples.
    assert examples_until_found(STRATEGIES[name]) <= 2 * took + 10
