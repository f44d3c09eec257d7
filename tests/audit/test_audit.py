"""An audit of the engine as it is finds no fault, whatever the settings, and leaves the model alone."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from dpcheck.engine.auditing.audit import audit
from dpcheck.engine.auditing.sensitivity import search
from dpcheck.engine.kinds import PerGroup
from small import EFFORT, Small, audited, loss_fn, records

import dpcheck
from dpcheck.cli import CLEAN, ERROR, FINDINGS, main
from dpcheck.errors import DpcheckError

MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

torch.manual_seed(0)
training = {"epsilon": 4.0, "delta": 1e-3, "epochs": 20, "batch_size": 20}

def make_model():
    return nn.Sequential(nn.Linear(4, 6), NORM, nn.Tanh(), nn.Linear(6, 2))

def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

def train_dataset():
    return TensorDataset(torch.randn(100, 4), torch.randint(0, 2, (100,)))

def sample_batch():
    return train_dataset()[:8]
"""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clipping": "per-layer"},
        {"clipping": PerGroup({"hidden": 2.0, "table": 1.0, "head": 1.0})},
        {"clipping": "adaptive"},
        {"expected_batch_size": 200, "clipping": "automatic", "steps": 3},
    ],
)
def test_the_engine_passes(settings):
    found = audited(**settings)
    assert found.ok, [check for check in found.checks if not check.ok]
    assert found.empirical.lower <= found.empirical.claimed.upper
    assert {check.part for check in found.checks} == {"clipping", "noise", "sampling", "release", "epsilon"}


def test_users_and_dropout_are_audited_and_the_model_is_left_alone():
    class Dropping(Small):
        def forward(self, ids, x):
            return torch.nn.functional.dropout(super().forward(ids, x), 0.3)

    model, data = Dropping(), records(120)
    users = dpcheck.by_user(data, [i // 3 for i in range(120)], max_rows=2)
    before, keys = {n: p.detach().clone() for n, p in model.named_parameters()}, set(vars(model))
    state = torch.get_rng_state()
    found = audit(
        model, loss_fn, users, expected_batch_size=10, max_grad_norm=1.0, delta=1e-3, noise_multiplier=1.0, steps=20,
        check=False, _effort=EFFORT,
    )  # fmt: skip
    assert found.ok, [check for check in found.checks if not check.ok]
    assert torch.equal(state, torch.get_rng_state())
    assert set(vars(model)) == keys
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())


def test_a_claim_without_noise_is_refused():
    with pytest.raises(DpcheckError, match="claims no privacy"):
        audited(noise_multiplier=0.0)


def test_the_public_name():
    assert dpcheck.engine.audit is audit


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, norm in (("good", "nn.LayerNorm(6)"), ("mixing", "nn.BatchNorm1d(6)")):
        (folder / f"{name}.py").write_text(MODEL.replace("NORM", norm))
    return folder


def test_the_command_audits_a_file(files, capsys):
    assert main(["audit", str(files / "good.py"), "--format", "json", "--epochs", "5"]) == CLEAN
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is document["audit"]["ok"] is True
    assert document["audit"]["claim"]["steps"] == 25
    assert document["audit"]["empirical"]["claimed"]["upper"] > document["audit"]["empirical"]["lower"]


def test_a_model_with_findings_is_not_audited_but_what_its_fixes_make_is(files, capsys):
    assert main(["audit", str(files / "mixing.py")]) == FINDINGS
    assert "DP101" in capsys.readouterr().out
    assert main(["audit", str(files / "mixing.py"), "--unsafe-fixes", "--epochs", "2"]) == CLEAN
    assert "no fault found" in capsys.readouterr().out


def test_what_cannot_be_audited_is_an_error(files, capsys):
    assert main(["audit", str(files / "good.py"), "--delta", "2"]) == ERROR
    assert "--delta" in capsys.readouterr().err


def test_the_search_finds_a_record_that_no_list_has():
    """A sum that is wrong for losses of a narrow range of scales only."""
    tried = []

    def change(victim):
        pool = SimpleNamespace(**{name: [0.0] for name in ("source", "scale", "slope")})
        victim.plant(pool, 0)
        tried.append((pool.source[0], abs(pool.scale[0])))
        far = abs(math.log10(abs(pool.scale[0]) / 300)) + (pool.source[0] != 2)
        return {"a": torch.tensor([1 / (1 + far)], dtype=torch.float64)}

    search(change, 4, 200)
    source, scale = min(tried, key=lambda t: abs(math.log10(t[1] / 300)) + (t[0] != 2))
    assert source == 2 and abs(math.log10(scale / 300)) < 0.1
