"""Every kind of clipping in the engine: what it releases, the noise that it gets, what it shows."""

import math
import re

import pytest
import torch
from dpcheck.engine import PerGroup, clipping, kinds
from dpcheck.engine.clipping import Clipper
from scipy import stats
from white_box import Linear, make, records, released

from dpcheck.errors import DpcheckError

THREE_TO_FOUR = PerGroup({"a": 3.0, "b": 4.0})


def short(x, bound):
    return x * (bound / x.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp(max=1)


def groups(x, a, b):
    """Both groups of coordinates clipped apart."""
    return torch.cat([short(x[:, :3], a), short(x[:, 3:], b)], 1)


ENGINE = {
    "flat": ("flat", lambda x: short(x, 0.5), r"is clipped to L2 norm 0\.5;"),
    # One module holds both parameters, so there is one layer.
    "per-layer": ("per-layer", lambda x: short(x, 0.5), r"is clipped to L2 norm 0\.5;"),
    "per-group": (
        THREE_TO_FOUR,
        lambda x: groups(x, 0.3, 0.4),
        r"is clipped by groups, a to 0\.3, b to 0\.4, so that its L2 norm is at most 0\.5 in all; .* 0 x 0\.5",
    ),
}


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("kind", ENGINE)
def test_the_engine_releases_the_sum_of_every_kind(kind, secure):
    given_kind, clipped, says = ENGINE[kind]
    x = records()
    engine = make(x, noise_multiplier=0, max_grad_norm=0.5, secure=secure, clipping=given_kind, _clipper=Clipper)
    torch.testing.assert_close(released(engine)[0], clipped(x).sum(0) / 13, rtol=1e-5, atol=1e-6)
    with_it, without = (
        released(make(d, noise_multiplier=0, max_grad_norm=0.5, secure=secure, clipping=given_kind, _clipper=Clipper))
        for d in (torch.cat([x[:6], 1e5 * torch.ones(1, 5)]), torch.cat([x[:6], torch.zeros(1, 5)]))
    )
    assert (with_it - without).norm() * 7 <= 0.5 * (1 + 1e-5)
    assert re.search(says, engine.report())


@pytest.mark.parametrize("secure", [False, True])
def test_the_noise_on_every_group_is_scaled_to_the_sensitivity_of_all(secure):
    engine = make(
        torch.zeros(12, 4003),
        model=Linear(4000, 3),
        noise_multiplier=1.5,
        max_grad_norm=2.0,
        secure=secure,
        clipping=PerGroup({"a": 1e-3, "b": 1.0}),
        _clipper=Clipper,
    )
    z = released(engine, 2).numpy() * 12 / (1.5 * 2.0)
    low, high = stats.chi2.ppf([5e-8, 1 - 5e-8], z.size) / z.size
    assert low < (z**2).mean() < high


def test_the_report_counts_the_layers():
    model = torch.nn.Sequential(Linear(3, 2), torch.nn.Flatten(0))
    engine = make(records(), model=model, clipping="per-layer")
    assert "clipped to L2 norm 1;" in engine.report()
    deep = torch.nn.ModuleDict({str(i): Linear(3, 2) for i in range(4)})
    engine = make(records(), model=deep, clipping="per-layer", max_grad_norm=3.0)
    assert "layer by layer, 4 layers to L2 norm 1.5 each, so that its L2 norm is at most 3 in all" in engine.report()


def test_metrics_show_norms_by_group_and_what_was_shortened():
    x = records()
    engine = make(x, max_grad_norm=1.0, clipping=THREE_TO_FOUR, _clipper=Clipper, physical_batch_size=4)
    metrics = engine.step(next(iter(engine)))
    own = {"a": x[:, :3].norm(dim=1), "b": x[:, 3:].norm(dim=1)}
    torch.testing.assert_close(metrics.norms, x.norm(dim=1))
    torch.testing.assert_close(metrics.group_norms, own)
    assert metrics.clipped_fraction == pytest.approx(((own["a"] > 0.6) | (own["b"] > 0.8)).float().mean().item())


@pytest.mark.parametrize("shares", [(1.0, 1.0), (4 / 5, 3 / 5)])
def test_groups_that_get_more_than_their_share_release_nothing(shares, monkeypatch):
    """Of the second planted fault the whole sum is within its bound, and one group is not."""
    original = kinds.grouping_of

    def wrong(kind, names):
        found = original(kind, names)
        return kinds.Grouping(found.names, found.of, shares)

    monkeypatch.setattr(clipping, "grouping_of", wrong)
    engine = make(torch.full((3, 5), 9.0), clipping=THREE_TO_FOUR, _clipper=Clipper)
    with pytest.raises(DpcheckError, match=r"clipped sum of group 'a' of 3 records has norm .* above its bound 1\.8"):
        engine.fit(progress=False)
    assert not torch.nn.utils.parameters_to_vector(engine.model.parameters()).any()
    assert math.isclose(engine.settings.max_grad_norm, 1.0)


def test_a_group_that_is_wrong_is_refused_before_training():
    with pytest.raises(DpcheckError, match="'b' belongs to no group"):
        make(records(), clipping=PerGroup({"a": 1.0}))
