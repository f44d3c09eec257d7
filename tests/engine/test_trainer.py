"""What the engine releases, read from the parameters and not from the engine."""

import numpy as np
import pytest
import torch
from dpcheck.engine.clipped import Clipped
from dpcheck.engine.trainer import PrivacyEngine
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset
from white_box import Linear, Loop, make, records, released

import dpcheck
from dpcheck.errors import DpcheckError


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


def test_workers_change_nothing_but_who_reads():
    x = records(30)
    runs = [released(make(x, expected_batch_size=10, seed=7, physical_batch_size=4, num_workers=n), 3) for n in (0, 1)]
    assert torch.equal(*runs)
