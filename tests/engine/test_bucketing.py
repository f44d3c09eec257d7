"""Records of different lengths: few shapes, the same sum whoever else is drawn, and errors that name what is wrong."""

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.sampling import Loader
from dpcheck.engine.trainer import PrivacyEngine
from hypothesis import given
from hypothesis import strategies as st
from test_clipping import definition
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import dpcheck
from dpcheck.errors import DpcheckError


def collate(records):
    """Pads to the longest record of the batch."""
    ids = pad_sequence([torch.tensor(r["ids"]) for r in records], batch_first=True, padding_value=0)
    return {"ids": ids, "label": torch.tensor([r["label"] for r in records])}


def made(**changes):
    options = {"length": lambda r: len(r["ids"]), "sizes": (8, 2, 4), "pad": {"ids": 0}}
    return dpcheck.bucketed(collate, **(options | changes))


def records(lengths):
    return [{"ids": [1 + (i + k) % 6 for k in range(n)], "label": i % 2} for i, n in enumerate(lengths)]


class Mean(nn.Module):
    """A mean over all positions, padding too: what a record gives depends on how far it is padded."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.table(ids).mean(1))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch["ids"]), batch["label"], reduction="none")


@given(st.lists(st.integers(1, 8), min_size=1, max_size=12), st.integers(1, 6))
def test_chunks_hold_records_of_one_size_and_every_record_once(lengths, size):
    loader = Loader(records(lengths), made(), size)
    chunks = loader.chunks(torch.arange(len(lengths)))
    assert sorted(torch.cat(chunks).tolist()) == list(range(len(lengths)))
    shapes = set()
    for chunk in chunks:
        batch = loader.read(chunk)
        padded = {next(s for s in (2, 4, 8) if lengths[i] <= s) for i in chunk.tolist()}
        assert padded == {batch.data["ids"].shape[1]}
        assert len(chunk) == batch.real == int(batch.weights.sum()) <= len(batch.weights) <= size
        assert len(batch.weights) < 2 * len(chunk) or len(batch.weights) == -(-size // 4)
        shapes.add(tuple(batch.data["ids"].shape))
        for row, index in zip(batch.data["ids"], chunk.tolist(), strict=False):
            own = records(lengths)[index]["ids"]
            assert row.tolist() == own + [0] * (len(row) - len(own))
    assert len(shapes) <= 9


def released(lengths, collate_fn, **options):
    """The clipped sum of all records, read from the parameters after a step of rate 1 without noise."""
    model = Mean()
    engine = PrivacyEngine(
        model, loss_fn, torch.optim.SGD(model.parameters(), lr=1.0), records(lengths), collate_fn=collate_fn,
        expected_batch_size=len(lengths), max_grad_norm=0.05, delta=1e-3, noise_multiplier=0, steps=1, check=False,
        **options,
    )  # fmt: skip
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    engine.fit(progress=False)
    assert engine._clipper.method == "graph"
    return (before - nn.utils.parameters_to_vector(model.parameters()).detach()) * len(lengths)


@pytest.mark.parametrize("physical", [None, 2, 3])
def test_the_sum_is_that_of_single_records_each_padded_to_its_own_size(physical):
    lengths = [1, 8, 3, 2, 5, 4, 7]
    model, total = Mean(), 0
    for record in records(lengths):
        size = next(s for s in (2, 4, 8) if len(record["ids"]) <= s)
        alone = collate([{**record, "ids": record["ids"] + [0] * (size - len(record["ids"]))}])
        grads = definition(model, loss_fn, alone, 0.05, torch.ones(1))[1]
        total = total + torch.cat([g.flatten() for g in grads.values()])
    torch.testing.assert_close(released(lengths, made(), physical_batch_size=physical), total, rtol=1e-4, atol=1e-6)


def test_a_longer_record_moves_the_sum_by_its_own_gradient_only():
    """Padded to the longest, a record more changes the gradients of all others: the bound of one record is broken."""
    few, more = [2] * 40, [2] * 40 + [8]
    moved = {name: released(more, c) - released(few, c) for name, c in (("alone", made()), ("longest", collate))}
    assert moved["alone"].norm() <= 0.05 * (1 + 1e-4)
    assert moved["longest"].norm() > 0.05 * 1.5


def test_rows_that_other_records_lengthen_are_warned_of_once(caplog):
    for collate_fn, count in ((collate, 1), (made(), 0), (lambda r: {"ids": torch.zeros(len(r), 8)}, 0)):
        caplog.clear()
        loader = Loader(records([1, 2, 3, 8, 5]), collate_fn, 2)
        for chunk in ([0, 1], [2, 3], [4]):
            loader.read(torch.tensor(chunk))
        assert caplog.text.count("the guarantee is false") == count
        assert count == caplog.text.count("shape [2] in one batch and [8] in another")


def test_few_plans_serve_all_lengths():
    torch.manual_seed(0)
    data = records(torch.randint(1, 9, (60,)).tolist())
    model = Mean()
    engine = PrivacyEngine(
        model, loss_fn, torch.optim.SGD(model.parameters(), lr=0.1), data, collate_fn=made(), expected_batch_size=20,
        max_grad_norm=1.0, delta=1e-3, noise_multiplier=1.0, steps=12, physical_batch_size=8,
    )  # fmt: skip
    engine.fit(progress=False)
    assert isinstance(engine._clipper, Clipper)
    assert 1 < len(engine._clipper._plans) <= 9


def test_users_are_padded_by_their_own_records():
    users = dpcheck.by_user(records([1, 8, 2, 3, 1]), [0, 1, 0, 2, 2], max_rows=2)
    loader = Loader(users, made(), 4, users.unit)
    found = {chunk.tolist()[0]: loader.read(chunk).data[0]["ids"].shape[-1] for chunk in loader.chunks(torch.arange(3))}
    assert found == {0: 2, 1: 8, 2: 4}


def test_tuples_tensors_and_other_axes():
    rows = [torch.ones(n, 3) for n in (1, 4, 2)]
    pair = dpcheck.bucketed(lambda r: (torch.stack(r), torch.zeros(len(r))), length=len, sizes=[4], pad={0: -1.0})
    x, y = pair(rows)
    assert (tuple(x.shape), tuple(y.shape)) == ((3, 4, 3), (3,))
    assert x.sum((1, 2)).tolist() == [3.0 - 9, 12.0, 6.0 - 6]
    wide = dpcheck.bucketed(torch.stack, length=lambda r: r.shape[1], sizes=[5], pad=0.0, axis=2)
    assert tuple(wide(rows[:1]).shape) == (1, 1, 5)
    assert dpcheck.bucketed(torch.stack, length=len, sizes=[4, 9], pad=0.0)(rows[:1]).shape == (1, 4, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sizes": ()}, "not positive whole numbers"),
        ({"sizes": (4, 0)}, "not positive whole numbers"),
        ({"sizes": (4, 2.5)}, "not positive whole numbers"),
        ({"sizes": (2,)}, "a record has length 3, and the largest size is 2"),
        ({"pad": {"other": 0}}, "pad names 'other'"),
        ({"pad": {"label": 0}}, r"batch\['label'\] is of shape \[1\]: axis 1 cannot be padded to 4"),
        ({"length": lambda r: 1}, r"batch\['ids'\] is of shape \[1, 3\]: axis 1 cannot be padded to 2"),
    ],
)
def test_bad_buckets(changes, says):
    with pytest.raises(DpcheckError, match=says) as raised:
        made(**changes)(records([3]))
    assert raised.value.next or "sizes" in raised.value.where


def test_a_number_that_differs_between_records_is_refused():
    bad = dpcheck.bucketed(lambda r: (torch.zeros(1, 2), len(r[0])), length=len, sizes=[2], pad={0: 0})
    with pytest.raises(DpcheckError, match="no tensor and differs between records: 1"):
        bad([[1], [1, 2]])
