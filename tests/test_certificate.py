"""Certificates: valid ones only for what is proven and verified, and refused for everything else that is trained."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import dpcheck
from dpcheck import DpcheckError
from dpcheck.certificate import Certificate

SCALE = 1.0


def scaled(x):
    return x * SCALE


class Net(nn.Module):
    def __init__(self, width=4, slope=0.1):
        super().__init__()
        self.first, self.last, self.slope = nn.Linear(3, width), nn.Linear(width, 2), slope
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        return self.last(self.drop(F.leaky_relu(self.first(scaled(x)), self.slope)))


class Smoother(Net):
    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def loss_fn(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def smoothed(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none", label_smoothing=0.1)


def batch(size=4, features=3):
    return torch.randn(size, features), torch.arange(size) % 2


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return dpcheck.certify(Net(), loss_fn, batch())


def engine(model, certificate, loss=loss_fn, data=None, **options):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    data = TensorDataset(*batch(40)) if data is None else data
    given = {"expected_batch_size": 8, "max_grad_norm": 1.0, "delta": 1e-3, "noise_multiplier": 1.0, "steps": 3}
    return dpcheck.PrivacyEngine(model, loss, optimizer, data, certificate=certificate, **{**given, **options})


def test_what_was_certified_is_trained(certificate, tmp_path) -> None:
    assert certificate.valid
    assert certificate.reasons == ()
    certificate.save(tmp_path / "cert.json")
    assert Certificate.load(tmp_path / "cert.json") == certificate
    torch.manual_seed(1)
    trained = engine(Net(), tmp_path / "cert.json")
    assert trained.fit(progress=False).upper > 0
    assert trained.steps_taken == 3
    # Other weights are no other model.
    engine(Net(), certificate, check=False).fit(progress=False)


def test_it_holds_the_plan_and_the_verification(certificate) -> None:
    (entry,) = certificate.batches
    assert entry["form"] == ["[0] float32 [B, 3]", "[1] int64 [B]"]
    assert entry["plan"]["last.weight"] == ["aten.mm.default"]
    assert entry["verification"]["ok"] is True
    assert entry["verification"]["errors"]["worst"] < 1e-9
    assert "DP101" in certificate.rules


def frozen():
    model = Net()
    model.first.bias.requires_grad_(False)
    return model


def tied():
    model = Net()
    model.spare = model.first
    return model


def patched():
    class Patched(Net):
        pass

    Patched.__qualname__ = "Net"
    Patched.forward = Smoother.forward
    return Patched()


def evaluating():
    return Net().eval()


def dropping():
    model = Net()
    model.drop.p = 0.3
    return model


def hooked():
    model = Net()
    model.first.register_forward_hook(lambda module, given, out: out - out.mean(0))
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Net(width=5), r"'first\.weight' is float32 \[5, 3\]"),
        (lambda: Net(slope=0.2), "module 'model' has other attributes"),
        (lambda: Smoother(), "module 'model' has other attributes"),
        (patched, "class 'Net' has other code"),
        (frozen, r"'first\.bias' is float32 \[4\] cpu frozen"),
        (tied, r"'spare\.weight' was not checked"),
        (evaluating, "train/eval mode"),
        (dropping, "module 'drop' has other attributes"),
        (hooked, "module 'first' has other attributes"),
        (lambda: Net().double(), "float64"),
    ],
)
def test_another_model_is_refused(certificate, model, says) -> None:
    with pytest.raises(DpcheckError, match=says) as raised:
        engine(model(), certificate, check=False)
    assert "what is trained is not what was certified" in str(raised.value)
    assert "new certificate" in str(raised.value.next)


def test_another_loss_a_helper_or_a_global_is_refused(certificate, monkeypatch) -> None:
    with pytest.raises(DpcheckError, match="loss function has other code"):
        engine(Net(), certificate, loss=smoothed)
    # Neither the model's class nor the loss have changed: the graph has.
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    with pytest.raises(DpcheckError, match="compute another graph"):
        engine(Net(), certificate)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 1.0)
    monkeypatch.setattr(sys.modules[__name__], "scaled", lambda x: x - x.mean(0))
    with pytest.raises(DpcheckError, match="compute another graph"):
        engine(Net(), certificate, check=False)


@pytest.mark.parametrize(
    "change", [{"torch": "2.12.0"}, {"dpcheck": "0.0.9"}, {"python": "3.9"}, {"rules": ("DP101",)}]
)
def test_another_version_or_other_rules_are_refused(certificate, change) -> None:
    with pytest.raises(DpcheckError, match="not what was certified"):
        engine(Net(), replace(certificate, **change))


def rows_together(records):
    return torch.cat([x for x, _ in records]), torch.cat([y for _, y in records]).long()


def test_another_unit_is_refused(certificate) -> None:
    data = TensorDataset(torch.randn(40, 2, 3), torch.zeros(40, 2))
    with pytest.raises(DpcheckError, match="the unit is"):
        engine(Net(), certificate, unit=dpcheck.Unit(rows=2), data=data, collate_fn=rows_together)


class Pooled(nn.Module):
    """For sequences of any length."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.table(ids).mean(1))


def sequences(length):
    return torch.randint(9, (4, length)), torch.tensor([0, 1, 0, 1])


class Lengths:
    """Records of two lengths; the first eight are short."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.full((4 if i < 20 else 6,), i % 9), torch.tensor(i % 2)


def collate(records):
    ids = [ids for ids, _ in records]
    longest = max(map(len, ids))
    return torch.stack([F.pad(own, (0, longest - len(own))) for own in ids]), torch.stack([y for _, y in records])


def test_each_shape_of_batch_needs_its_own_entry() -> None:
    bucketed = dpcheck.bucketed(
        lambda records: dict(zip("xy", collate([(r["x"], r["y"]) for r in records]), strict=True)),
        length=lambda record: len(record["x"]), sizes=(4, 6), pad={"x": 0},
    )  # fmt: skip

    class Named(Lengths):
        def __getitem__(self, i):
            return dict(zip("xy", super().__getitem__(i), strict=True))

    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    def sample(length):
        return dict(zip("xy", sequences(length), strict=True))

    short = dpcheck.certify(Pooled(), loss, sample(4))
    run = engine(Pooled(), short, loss, Named(), collate_fn=bucketed, expected_batch_size=40)
    with pytest.raises(DpcheckError, match=r"batch is \['x'\] int64 \[B, 6\].*certified are \['x'\] int64 \[B, 4\]"):
        run.fit(progress=False)
    assert run.steps_taken == 1  # a step that fails is counted
    both = dpcheck.certify(Pooled(), loss, sample(4), sample(6))
    engine(Pooled(), both, loss, Named(), collate_fn=bucketed, expected_batch_size=40).fit(progress=False)


def test_a_model_that_changes_between_steps_is_refused(certificate) -> None:
    model = Net()
    run = engine(model, certificate)
    batches = iter(run)
    run.step(next(batches))
    model.slope = 0.5
    with pytest.raises(DpcheckError, match="not what was certified"):
        run.step(next(batches))


def mixing():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Branching(Net):
    def forward(self, x):
        return super().forward(x if float(x.abs().sum()) > 0 else -x)


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "reason"), [(mixing, "the verdict is mixing"), (Branching, "the verdict is unproven"), (Unused, "DP2")]
)
def test_what_is_not_proven_without_findings_gets_no_valid_certificate(model, reason) -> None:
    made = dpcheck.certify(model(), loss_fn, batch())
    assert not made.valid
    assert any(reason in own for own in made.reasons)
    with pytest.raises(DpcheckError, match="nothing is certified"):
        engine(model(), made, check=False)


def test_a_wrong_gradient_gets_no_valid_certificate(monkeypatch) -> None:
    def wrong(*arguments, **options):
        return replace(dpcheck.verify(*arguments, **options), ok=False)

    monkeypatch.setattr("dpcheck.certificate.verify", wrong)
    assert dpcheck.certify(Net(), loss_fn, batch()).reasons == ("per-sample gradients differ from the references",)


def test_a_file_that_was_changed_or_is_none_is_refused(certificate, tmp_path) -> None:
    path = tmp_path / "cert.json"
    content = json.loads(certificate.to_json())
    for changed, says in (
        ({**content, "valid": True, "reasons": ["x"]}, "was changed"),
        ({**content, "schema": 99}, "schema 99"),
        ({"valid": True}, "no certificate"),
        ([1], "no certificate"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(DpcheckError, match=says):
            engine(Net(), path)
    path.write_text("{")
    with pytest.raises(DpcheckError, match="cannot be read"):
        engine(Net(), str(path))
    with pytest.raises(DpcheckError, match="neither a path nor"):
        engine(Net(), {"valid": True})
    with pytest.raises(DpcheckError, match="cannot be written"):
        certificate.save(tmp_path / "no" / "such" / "folder.json")
