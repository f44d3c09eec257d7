"""Records that cannot be trained on are named, the step is refused and counted, and nothing else happens."""

import copy

import pytest
import torch
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.refusals import NotFinite
from dpcheck.engine.trainer import PrivacyEngine
from torch import nn
from torch.utils.data import TensorDataset
from white_box import Linear, make, records, released

import dpcheck
from dpcheck.errors import DpcheckError


def with_bad(*rows, value=float("nan"), count=40):
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    x[list(rows)] = value
    return x


def states(engine):
    return copy.deepcopy((engine.model.state_dict(), engine.optimizer.state_dict()))


def same(a, b):
    return repr(a) == repr(b)


METHODS = ["graph", "vmap", "single"]


def by_method(method):
    def build(model, loss_fn, **options):
        return Clipper(model, loss_fn, **(options | {"method": method}))

    return build


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("physical", [8, 20])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_that_is_not_finite_is_named_by_its_place_in_the_data(method, physical, value):
    model = Linear()
    engine = make(
        with_bad(21, 22, value=value), model=model, optimizer=torch.optim.Adam(model.parameters()),
        _clipper=by_method(method), physical_batch_size=physical,
    )  # fmt: skip
    before = states(engine)
    batch = next(iter(engine))
    with pytest.raises(DpcheckError, match="of records 21, 22") as raised:
        engine.step(batch)
    assert f"samples {21 % physical}, {22 % physical} of a physical batch" in str(raised.value)
    assert "counted in the ledger" in str(raised.value)
    assert raised.value.where == "dataset[21]"
    assert engine.steps_taken == 1
    assert same(states(engine), before)
    assert all(p.grad is None for p in model.parameters())


def test_training_goes_on_with_the_next_draw():
    engine = make(with_bad(3, count=30), expected_batch_size=10, steps=12, _clipper=Clipper)
    refused = 0
    for batch in engine:
        try:
            engine.step(batch)
        except DpcheckError:
            refused += 1
            assert 3 in batch.indices.tolist()
        else:
            assert 3 not in batch.indices.tolist()
    assert 0 < refused < 12
    assert engine.steps_taken == 12
    assert all(bool(torch.isfinite(p).all()) for p in engine.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_samples_of_a_part_are_named_by_their_place_in_the_whole(method):
    model = nn.Linear(5, 2)
    x = with_bad(5, count=7)
    clipper = Clipper(model, lambda m, b: m(b[0]).sum(1), max_grad_norm=1.0, method=method)
    clipper._at_most = 3
    with pytest.raises(NotFinite, match="sample 5 of the batch") as raised:
        clipper((x,))
    assert raised.value.samples == (5,)


def test_padding_is_the_first_sample():
    engine = make(with_bad(0, count=9), physical_batch_size=4, _clipper=Clipper)
    with pytest.raises(DpcheckError, match="of record 0 "):
        engine.step(next(iter(engine)))


def test_users_are_named_as_users():
    data = dpcheck.by_user(TensorDataset(with_bad(4, count=8)), [0, 0, 1, 1, 2, 2, 3, 3], max_rows=2)
    model = Linear()
    engine = PrivacyEngine(
        model, lambda m, b: m(b[0]), torch.optim.SGD(model.parameters(), lr=1.0), data, expected_batch_size=4,
        max_grad_norm=1.0, delta=1e-3, noise_multiplier=1.0, steps=1, check=False,
    )  # fmt: skip
    with pytest.raises(DpcheckError, match=r"of user 2 .* Which users these are is not private"):
        engine.fit(progress=False)


def test_weights_that_diverged_are_said_to_be_the_cause():
    engine = make(records(), _clipper=Clipper, steps=3)
    released(engine)
    engine.model.b.data[1] = float("inf")
    with pytest.raises(DpcheckError, match="the parameter 'b' is not finite") as raised:
        engine.step(next(iter(engine)))
    assert "lower the learning rate" in raised.value.next


def test_records_of_different_shapes_are_named():
    data = [torch.zeros(5)] * 6 + [torch.zeros(4)]
    model = Linear()
    engine = PrivacyEngine(
        model, lambda m, b: m(b), torch.optim.SGD(model.parameters(), lr=1.0), data, expected_batch_size=7,
        max_grad_norm=1.0, delta=1e-3, noise_multiplier=1.0, steps=2, check=False,
    )  # fmt: skip
    with pytest.raises(DpcheckError, match=r"record 0 has a tensor of shape \[5\], record 6 of \[4\]") as raised:
        engine.step(next(iter(engine)))
    assert "dpcheck.bucketed" in raised.value.next
    assert engine.steps_taken == 1


@pytest.mark.parametrize("what", ["dataset", "collate_fn", "loss_fn"])
def test_an_error_of_the_users_code_is_left_as_it_is_and_noted(what):
    def fails(*_):
        raise KeyError("gone")

    class Data(list):
        def __getitem__(self, index):
            return fails() if what == "dataset" else super().__getitem__(index)

    model = Linear()
    engine = PrivacyEngine(
        model, fails if what == "loss_fn" else (lambda m, b: m(b)), torch.optim.SGD(model.parameters(), lr=1.0),
        Data(records().unbind()), collate_fn=fails if what == "collate_fn" else None, expected_batch_size=13,
        max_grad_norm=1.0, delta=1e-3, noise_multiplier=1.0, steps=2, check=False,
    )  # fmt: skip
    with pytest.raises(KeyError, match="gone") as raised:
        engine.step(next(iter(engine)))
    assert "step 0 is counted in the ledger" in raised.value.__notes__[0]
    assert engine.steps_taken == 1
