"""What the engine releases, read from the parameters and not from the engine."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dpcheck.engine import accounting
from dpcheck.engine.clipping import Clipped
from dpcheck.engine.trainer import PrivacyEngine
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

import dpcheck
from dpcheck.errors import DpcheckError


class Linear(nn.Module):
    """A loss that is linear in two parameters, so that a record is its own gradient."""

    def __init__(self, a=3, b=2):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(a)), nn.Parameter(torch.zeros(b))

    def forward(self, x):
        return x[:, : len(self.a)] @ self.a + x[:, len(self.a) :] @ self.b


def loss_fn(model, batch):
    return -model(batch[0])


class Loop:
    """A clipper that computes each sample alone with plain autograd."""

    method, reason = "loop", ""

    def __init__(self, model, loss_fn, *, max_grad_norm, method):
        self.model, self.loss_fn, self.bound = model, loss_fn, max_grad_norm
        self.sizes, self.asked = [], method

    def __call__(self, batch, weights=None):
        self.sizes.append(len(weights))
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        total, norms, losses = {n: torch.zeros_like(p) for n, p in zip(names, parameters, strict=True)}, [], []
        for i, weight in enumerate(weights):
            loss = self.loss_fn(self.model, [t[i : i + 1] for t in batch])[0]
            grads = torch.autograd.grad(loss, parameters)
            norm = torch.cat([g.flatten() for g in grads]).norm()
            for n, g in zip(names, grads, strict=True):
                total[n] += weight * min(1.0, self.bound / max(float(norm), 1e-30)) * g
            norms.append(norm)
            losses.append(loss.detach())
        return Clipped(total, torch.stack(norms), torch.stack(losses))


def make(records, *, model=None, lr=1.0, optimizer=None, **kwargs):
    """An engine whose SGD step of rate 1 adds what is released to the parameters of :class:`Linear`."""
    records = torch.as_tensor(records, dtype=torch.float32)
    model = model or Linear(3, records.shape[1] - 3)
    given = {"noise_multiplier": 1.0} if "target_epsilon" not in kwargs else {}
    given |= {"steps": 4} if "epochs" not in kwargs else {}
    given |= {
        "expected_batch_size": len(records),
        "max_grad_norm": 1.0,
        "delta": 1e-3,
        "check": False,
        "_clipper": Loop,
    }
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    return PrivacyEngine(model, loss_fn, optimizer, TensorDataset(records), **(given | kwargs))


def released(engine, steps=1):
    """The changes of all parameters in the next steps, [steps, parameters]."""
    rows = []
    for batch in engine:
        before = nn.utils.parameters_to_vector(engine.model.parameters()).detach().clone()
        engine.step(batch)
        rows.append(nn.utils.parameters_to_vector(engine.model.parameters()).detach() - before)
        if len(rows) == steps:
            break
    return torch.stack(rows)


def records(n=13, width=5, seed=0):
    scale = torch.logspace(-3, 4, n).unsqueeze(1)
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * scale


# -- the clipped sum


@pytest.mark.parametrize("physical", [None, 1, 4, 13, 50])
@pytest.mark.parametrize("clipper", [Loop, dpcheck.engine.clipping.Clipper])
def test_without_noise_the_step_is_the_clipped_sum_by_the_expected_size(physical, clipper):
    x = records()
    engine = make(x, noise_multiplier=0, physical_batch_size=physical, max_grad_norm=0.5, _clipper=clipper)
    expected = (x * (0.5 / x.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0) / 13
    torch.testing.assert_close(released(engine)[0], expected, rtol=1e-5, atol=1e-6)


def test_secure_mode_gives_the_same_sum_from_single_records():
    x = records()
    engine = make(x, noise_multiplier=0, secure=True, max_grad_norm=0.5)
    expected = (x * (0.5 / x.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0) / 13
    torch.testing.assert_close(released(engine)[0], expected, rtol=1e-5, atol=1e-6)
    assert engine._clipper.sizes == [1] * 13


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    "bad", [[1e30, 0, 0, 0, 0], [0, 0, 0, -1e4, 1e4], [1e-20, 0, 0, 0, 0], [3e3, 3e3, 3e3, 3e3, 3e3]]
)
def test_one_record_more_moves_the_sum_by_at_most_the_bound(bad, secure):
    x = records(7)
    with_it = torch.cat([x, torch.tensor([bad], dtype=torch.float32)])
    without = torch.cat([x, torch.zeros(1, 5)])
    sums = [released(make(d, noise_multiplier=0, max_grad_norm=0.3, secure=secure))[0] * 8 for d in (with_it, without)]
    assert (sums[0] - sums[1]).norm() <= 0.3 * (1 + 1e-5)


def test_every_physical_batch_has_the_same_size():
    engine = make(records(50), expected_batch_size=20, physical_batch_size=8, steps=5)
    engine.fit(progress=False)
    assert set(engine._clipper.sizes) == {8}


def test_the_divisor_is_the_public_size_whatever_was_drawn():
    x = torch.zeros(60, 5)
    x[:, 0] = 1.0
    engine = make(x, noise_multiplier=0, expected_batch_size=6, steps=30)
    sizes = []
    for batch in engine:
        before = engine.model.a[0].item()
        engine.step(batch)
        sizes.append(len(batch))
        assert engine.model.a[0].item() - before == pytest.approx(len(batch) / 6, abs=1e-5)
    assert len(set(sizes)) > 2


# -- the noise


@pytest.mark.parametrize("secure", [False, True])
def test_noise_is_added_once_for_each_logical_step(secure):
    x = torch.zeros(12, 4003)
    kwargs = {} if secure else {"physical_batch_size": 2}
    engine = make(x, model=Linear(4000, 3), noise_multiplier=1.5, max_grad_norm=2.0, secure=secure, **kwargs)
    z = released(engine, 2).numpy() * 12 / 3.0
    assert len(engine._clipper.sizes) == (24 if secure else 12)
    low, high = stats.chi2.ppf([5e-8, 1 - 5e-8], z.size) / z.size
    assert low < (z**2).mean() < high
    assert abs(np.corrcoef(z)[0, 1]) < 6 / 4003**0.5


@pytest.mark.parametrize("secure", [False, True])
def test_canaries_follow_the_subsampled_gaussian(secure):
    """Each record owns a coordinate, so its released values are N(in or out, sigma^2), independent of the others."""
    n, steps, sigma = 20, 150, 0.7
    engine = make(
        torch.eye(n) * 50,
        model=Linear(5, n - 5),
        expected_batch_size=10,
        noise_multiplier=sigma,
        steps=steps,
        secure=secure,
    )
    z = released(engine, steps).numpy() * 10

    def mixture(v):
        return 0.5 * stats.norm.cdf(v / sigma) + 0.5 * stats.norm.cdf((v - 1) / sigma)

    assert stats.kstest(z.flatten(), mixture).pvalue > 1e-7
    correlation = np.corrcoef(z.T)[np.triu_indices(n, 1)]
    assert abs(correlation).max() < 6 / steps**0.5
    assert abs(np.corrcoef(z)[np.triu_indices(steps, 1)]).max() < 0.99


def test_an_empty_draw_takes_a_noisy_step():
    engine = make(records(200), expected_batch_size=1, steps=40)
    empty = 0
    for batch in engine:
        before = engine.model.a.detach().clone()
        metrics = engine.step(batch)
        if len(batch) == 0:
            empty += 1
            assert (metrics.loss, metrics.clipped_fraction, metrics.drawn) == (None, None, 0)
            assert bool((engine.model.a != before).all())
    assert empty > 0
    assert engine.steps_taken == 40


def test_parameters_that_no_record_touches_are_noised_and_frozen_ones_are_not():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Embedding(9, 4)
            self.unused = nn.Linear(2, 2)
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

        def forward(self, x):
            return self.used(x[:, 0].long()).sum(-1) + 0 * self.frozen.sum()

    model = Table()
    engine = make(torch.zeros(4, 5), model=model, _clipper=dpcheck.engine.clipping.Clipper, lr=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.frozen.grad = torch.ones(3)
    engine.fit(progress=False)
    for name, p in model.named_parameters():
        assert bool((p != before[name]).all()) == (name != "frozen")
    assert model.frozen.grad is None


def test_gradients_arrive_in_p_grad_in_the_parameters_dtype():
    model = Linear(3, 2)
    model.b.data = model.b.data.double()

    def loss(m, batch):
        return batch[0][:, :3] @ m.a + batch[0][:, 3:].double() @ m.b

    seen = []
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad.dtype for p in model.parameters()]))
    engine = PrivacyEngine(
        model, loss, optimizer, TensorDataset(records()), expected_batch_size=5, max_grad_norm=1, delta=1e-3,
        noise_multiplier=1, steps=1, check=False, _clipper=Loop,
    )  # fmt: skip
    engine.fit(progress=False)
    assert seen == [[torch.float32, torch.float64]]


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    make(records(), steps=3).fit(progress=False)
    assert torch.equal(before, torch.get_rng_state())


# -- randomness is never used twice


def test_runs_differ_unless_a_seed_makes_them_equal(caplog):
    x = records(30)
    with caplog.at_level(logging.WARNING, "dpcheck"):
        private = [released(make(x, expected_batch_size=10), 3) for _ in range(2)]
        assert not caplog.records
        seeded = [make(x, expected_batch_size=10, seed=7) for _ in range(2)]
        assert "NOT PRIVATE" in caplog.text
    assert not torch.equal(private[0], private[1])
    assert torch.equal(released(seeded[0], 3), released(seeded[1], 3))
    assert "NOT PRIVATE" in seeded[0].report()
    assert "No guarantee" in seeded[0].report()


def test_resuming_uses_new_noise():
    x = torch.zeros(4, 2003)
    first = make(x, model=Linear(2000, 3), steps=40)
    a = released(first, 3)
    state = first.state_dict()
    b = released(first, 3)
    second = make(x, model=Linear(2000, 3), steps=40)
    second.load_state_dict(state)
    c = released(second, 3)
    first.load_state_dict(state)
    d = released(first, 3)
    first.load_state_dict(make(x, model=Linear(2000, 3)).state_dict())
    assert first.steps_taken == 0
    e = released(first, 3)
    correlation = np.corrcoef(torch.cat([a, b, c, d, e]).numpy())[np.triu_indices(15, 1)]
    assert abs(correlation).max() < 6 / 2003**0.5


def test_a_seeded_run_resumes_as_if_it_had_not_stopped():
    x = records(30)
    whole = released(make(x, expected_batch_size=10, seed=7, steps=6), 6)
    first = make(x, expected_batch_size=10, seed=7, steps=6)
    released(first, 2)
    second = make(x, expected_batch_size=10, seed=7, steps=6)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(released(second, 4), whole[2:], rtol=0, atol=2e-6)


def test_the_state_holds_plain_values_only():
    engine = make(records())
    released(engine, 2)
    state = engine.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert set(state) == {"run", "settings", "ledger"}
    assert set(state["ledger"]["entries"][0]) == {
        "run", "noise_multiplier", "max_grad_norm", "expected_batch_size", "dataset_size", "private", "sampler",
        "adjacency", "count",
    }  # fmt: skip


# -- the ledger can only count too much


class Failing(Loop):
    def __call__(self, batch, weights=None):
        raise RuntimeError("out of memory")


def test_a_step_that_fails_is_counted_and_its_batch_not_given_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    engine = make(records(), _clipper=Failing, ledger=path)
    batch = next(iter(engine))
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step(batch)
    assert engine.steps_taken == 1
    assert len(path.read_text().splitlines()) == 1
    assert next(iter(engine)).step == 1
    with pytest.raises(DpcheckError, match="not the one"):
        engine.step(batch)


def test_steps_after_the_checkpoint_stay_counted():
    engine = make(records(), steps=10)
    released(engine, 2)
    state = engine.state_dict()
    released(engine, 3)
    engine.load_state_dict(state)
    assert engine.steps_taken == 5
    assert len(engine) == 5


def test_a_crash_between_checkpoint_and_end_counts_through_the_file(tmp_path):
    path = tmp_path / "ledger.jsonl"
    engine = make(records(), steps=10, ledger=path)
    released(engine, 2)
    state = engine.state_dict()
    released(engine, 3)
    resumed = make(records(), steps=10, ledger=path)
    assert (resumed.steps_taken, resumed.ledger.steps()) == (0, 5)
    resumed.load_state_dict(state)
    assert (resumed.steps_taken, len(resumed)) == (5, 5)


def test_iterating_ends_with_the_steps_and_epsilon_is_that_of_the_accountant():
    engine = make(records(40), expected_batch_size=4, steps=7)
    assert engine.epsilon().upper == 0
    metrics = [engine.step(batch) for batch in engine]
    assert [m.step for m in metrics] == list(range(7))
    assert list(engine) == []
    assert engine.epsilon().upper == pytest.approx(accounting.epsilon(1.0, 0.1, 7, 1e-3).upper)
    assert metrics[2].epsilon.upper == pytest.approx(accounting.epsilon(1.0, 0.1, 3, 1e-3).upper)
    assert metrics[2].epsilon.upper < metrics[6].epsilon.upper == engine.epsilon().upper


def test_a_target_is_met_and_what_is_spent_leaves_less_room(tmp_path):
    kwargs = {"target_epsilon": 3.0, "expected_batch_size": 4, "epochs": 2}
    engine = make(records(40), **kwargs, ledger=tmp_path / "ledger.jsonl")
    assert engine.settings.steps == 20
    assert 0.5 < engine.fit(progress=False).upper <= 3.0 * (1 + 1e-9)
    with pytest.raises(DpcheckError, match=r"above target_epsilon=3"):
        make(records(40), **kwargs, ledger=tmp_path / "ledger.jsonl")


def test_resuming_with_less_noise_than_the_target_allows_is_refused_and_changes_nothing():
    first = make(records(40), expected_batch_size=4, noise_multiplier=0.6, steps=20)
    released(first, 10)
    second = make(records(40), expected_batch_size=4, target_epsilon=1.0, epochs=2)
    with pytest.raises(DpcheckError, match="target_epsilon=1"):
        second.load_state_dict(first.state_dict())
    assert (second.ledger.steps(), second.steps_taken) == (0, 0)


@pytest.mark.parametrize("state", [{}, None, {"run": "x"}])
def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(DpcheckError, match="no state of a PrivacyEngine"):
        make(records()).load_state_dict(state)


def test_a_ledger_of_other_data_is_refused():
    engine = make(records(13))
    released(engine)
    with pytest.raises(DpcheckError, match=r"13 records; this one has 12"):
        make(records(12)).load_state_dict(engine.state_dict())


# -- batches


def test_a_batch_that_the_engine_did_not_draw_is_refused():
    engine, other = make(records()), make(records())
    foreign = next(iter(other))
    next(iter(engine))
    for wrong in (foreign, torch.zeros(3, 5), [0, 1], None):
        with pytest.raises(DpcheckError, match="not the one"):
            engine.step(wrong)
    assert engine.steps_taken == 0


def test_a_batch_is_good_for_one_step():
    engine = make(records())
    batch = next(iter(engine))
    engine.step(batch)
    with pytest.raises(DpcheckError, match="not the one"):
        engine.step(batch)


def test_batches_cannot_be_left_out():
    engine = make(records(100), expected_batch_size=1)
    with pytest.raises(DpcheckError, match="step 0 was not given"):
        for _ in engine:
            pass


def test_a_drawn_batch_waits_for_its_step_even_if_it_is_empty():
    engine = make(records(100), expected_batch_size=1, steps=60)
    sizes = set()
    for _ in range(60):
        batch = next(iter(engine))
        assert next(iter(engine)) is batch
        engine.step(batch)
        sizes.add(len(batch))
    assert 0 in sizes


# -- what must not change


def change_frozen(e):
    e.model.a.requires_grad_(False)


def change_replaced(e):
    e.model.b = nn.Parameter(torch.zeros(2))


def change_added(e):
    e.model.c = nn.Parameter(torch.zeros(2))


def change_mode(e):
    e.model.eval()


def change_group(e):
    e.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def change_stale(e):
    (e.model.a.sum() * 3).backward()


@pytest.mark.parametrize(
    ("change", "says", "where"),
    [
        (change_frozen, "was frozen", "a"),
        (change_replaced, "was replaced", "b"),
        (change_added, "is new", "c"),
        (change_mode, "now in eval mode", "model"),
        (change_group, "not the model's", "optimizer.param_groups[1]['params'][0]"),
        (change_stale, "not the engine's", "a"),
    ],
)
@pytest.mark.parametrize("after", [0, 1])
def test_a_change_after_the_start_is_refused_by_name(change, says, where, after):
    engine = make(records())
    for _ in range(after):
        released(engine)
    batch = next(iter(engine))
    change(engine)
    with pytest.raises(DpcheckError, match=says) as raised:
        engine.step(batch)
    assert raised.value.where == where
    assert raised.value.next
    assert engine.steps_taken == after


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_and_reading_p_grad_between_steps_are_fine(to_none):
    engine = make(records())
    for batch in engine:
        engine.step(batch)
        assert engine.model.a.grad.norm() > 0
        if batch.step != 1:
            engine.optimizer.zero_grad(set_to_none=to_none)
    assert engine.steps_taken == 4


def test_a_data_set_that_grows_is_refused():
    data = [torch.zeros(5)] * 4
    model = Linear()
    engine = PrivacyEngine(
        model, loss_fn, torch.optim.SGD(model.parameters(), 1.0), data, expected_batch_size=2, max_grad_norm=1,
        delta=0.1, noise_multiplier=1, steps=2, check=False, _clipper=Loop,
    )  # fmt: skip
    data.append(torch.zeros(5))
    with pytest.raises(DpcheckError, match="5 records now, and 4 at first"):
        next(iter(engine))


class Unclipped(Loop):
    def __call__(self, batch, weights=None):
        result = super().__call__(batch, weights)
        return Clipped({n: g * 1.01 for n, g in result.grads.items()}, result.norms, result.losses)


class Forgetful(Loop):
    def __call__(self, batch, weights=None):
        result = super().__call__(batch, weights)
        return Clipped({"a": result.grads["a"]}, result.norms, result.losses)


class NotANumber(Loop):
    def __call__(self, batch, weights=None):
        result = super().__call__(batch, weights)
        return Clipped({n: g * float("nan") for n, g in result.grads.items()}, result.norms, result.losses)


@pytest.mark.parametrize(
    ("clipper", "says"), [(Unclipped, "above its bound"), (NotANumber, "norm nan"), (Forgetful, "differ in b")]
)
def test_a_clipper_that_breaks_its_promise_releases_nothing(clipper, says):
    x = torch.zeros(6, 5)
    x[:, 0] = 9.0
    engine = make(x, _clipper=clipper)
    with pytest.raises(DpcheckError, match=says):
        engine.fit(progress=False)
    assert not nn.utils.parameters_to_vector(engine.model.parameters()).any()


# -- arguments


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"expected_batch_size": 0}, "expected_batch_size=0"),
        ({"expected_batch_size": 2.5}, "expected_batch_size=2.5"),
        ({"expected_batch_size": True}, "expected_batch_size=True"),
        ({"expected_batch_size": 14}, "expected_batch_size=14 is more than the 13 records"),
        ({"max_grad_norm": 0}, "max_grad_norm=0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm=inf"),
        ({"delta": 0}, "delta=0"),
        ({"delta": 1.0}, "delta=1"),
        ({"delta": float("nan")}, "delta=nan"),
        ({"noise_multiplier": -0.5}, "noise_multiplier=-0.5"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier=nan"),
        ({"noise_multiplier": None}, "neither noise_multiplier nor target_epsilon"),
        ({"noise_multiplier": 1.0, "target_epsilon": 3.0}, "both noise_multiplier=1.0 and target_epsilon=3.0"),
        ({"target_epsilon": -3.0}, "target_epsilon=-3.0"),
        ({"target_epsilon": 1e-9, "delta": 1e-12}, "target_epsilon=1e-09 cannot be reached"),
        ({"steps": None}, "neither steps nor epochs"),
        ({"steps": 5, "epochs": 2}, "both steps=5 and epochs=2"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"epochs": 0.0}, "epochs=0.0"),
        ({"physical_batch_size": 0}, "physical_batch_size=0"),
        ({"physical_batch_size": 4, "secure": True}, "physical_batch_size=4 with secure=True"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": 1, "secure": True}, "seed and secure=True exclude"),
        ({"secure": "yes"}, "secure='yes'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(kwargs, says):
    with pytest.raises(DpcheckError, match=says.replace(".", r"\.")):
        make(records(), **kwargs)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (0.1, 1), (2.5, 7), (5, 13)])
def test_epochs_are_rounded_up_to_steps(epochs, steps):
    assert make(records(13), expected_batch_size=5, epochs=epochs).settings.steps == steps


def test_optimizers_that_cannot_be_private_are_refused():
    model = Linear()
    a, b = model.a, model.b
    stray = nn.Parameter(torch.zeros(7))
    for optimizer, says in [
        (torch.optim.SGD([a], lr=1.0), "lacks trainable parameters: 'b'"),
        (torch.optim.SGD([a, b, stray], lr=1.0), r"shape \[7\] that is not the model's"),
        (torch.optim.SparseAdam([a, b]), "SparseAdam leaves rows without noise"),
        (torch.optim.LBFGS([a, b]), "LBFGS evaluates the loss"),
        (SimpleNamespace(param_groups=[]), "not a torch.optim.Optimizer"),
    ]:
        with pytest.raises(DpcheckError, match=says):
            make(records(), model=model, optimizer=optimizer)


def test_models_without_trainable_or_with_half_precision_parameters_are_refused():
    with pytest.raises(DpcheckError, match="no trainable parameter"):
        make(records(), model=Linear().requires_grad_(False))
    with pytest.raises(DpcheckError, match=r"'a' is torch\.bfloat16"):
        make(records(), model=Linear().to(torch.bfloat16))


def test_several_ranks_are_refused():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(DpcheckError, match="one of 2 ranks"):
            make(records())
    finally:
        torch.distributed.destroy_process_group()


def test_zero_noise_and_a_large_delta_are_said(caplog):
    with caplog.at_level(logging.WARNING, "dpcheck"):
        engine = make(records(), noise_multiplier=0, delta=0.5)
    assert "epsilon is infinite" in caplog.text
    assert "delta=0.5 is above 1/13" in caplog.text
    released(engine)
    assert engine.epsilon().upper == float("inf")
    assert "No guarantee" in engine.report()


# -- the whole line, with the check


def test_a_model_that_the_check_refuses_is_refused_with_its_findings():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1), nn.Flatten(0))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(DpcheckError, match=r"DP\d+ batch-norm"):
        make(records(), model=model, check=True)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_private_training_learns(capsys):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 5, generator=generator)
    y = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0]) > 0).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))

    def cross_entropy(m, batch):
        return nn.functional.cross_entropy(m(batch[0]), batch[1], reduction="none")

    engine = dpcheck.PrivacyEngine(
        model, cross_entropy, torch.optim.Adam(model.parameters(), lr=0.02), TensorDataset(x, y),
        expected_batch_size=200, max_grad_norm=1.0, delta=1e-4, target_epsilon=3.0, epochs=6,
    )  # fmt: skip
    bounds = engine.fit()
    assert 2.0 < bounds.upper <= 3.0
    assert (model(x).argmax(1) == y).float().mean() > 0.85
    shown = capsys.readouterr().err
    assert "60/60" in shown
    assert "epsilon <=" in shown
    assert "not private: loss" in shown
    report = engine.report()
    for part in ("-differential privacy", "added or removed", "Poisson", "60 of 60", "Not accounted for", "graph"):
        assert part in report
