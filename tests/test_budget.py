"""``dpcheck budget``: what it plans and reads is what the accountant says."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from dpcheck.engine.accounting import Phase, epsilon, epsilon_of, rdp_epsilon, rdp_epsilon_of
from dpcheck.engine.ledger import Ledger, StepRecord

from dpcheck.budget import planned, spent
from dpcheck.cli import main
from dpcheck.errors import DpcheckError

RECORD = StepRecord("run", 1.1, 1.0, 20, 1000, True)


def test_a_plan_reaches_its_target_on_the_safe_side():
    budget = planned(dataset_size=2000, batch_size=100, epochs=3, target_epsilon=2.0)
    (phase,) = budget.phases
    assert (phase.steps, phase.sample_rate, budget.epsilon.delta) == (60, 0.05, 1e-5)
    assert 1.99 < budget.epsilon.upper <= 2
    assert budget.epsilon == epsilon(phase.noise_multiplier, 0.05, 60, 1e-5)
    uppers = [bounds.upper for _, bounds in budget.over_steps]
    assert uppers == sorted(uppers) and uppers[-1] == budget.epsilon.upper and budget.over_steps[-1][0] == 60
    assert [b.upper for b in budget.over_delta] == sorted(b.upper for b in budget.over_delta)
    assert budget.rdp >= budget.epsilon.upper


def test_users_of_several_records_need_more_noise():
    plan = {"dataset_size": 2000, "batch_size": 100, "steps": 20, "target_epsilon": 2.0}
    one, four = planned(**plan), planned(**plan, records=4)
    assert four.phases[0].noise_multiplier > 2 * one.phases[0].noise_multiplier
    assert four.epsilon == epsilon_of(four.phases, 1e-5, records=4)


def test_what_a_ledger_spent(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(RECORD, 30)
    ledger.append(StepRecord("run", 2.0, 1.0, 20, 1000, True), 10)
    budget = spent(Ledger(tmp_path / "ledger.jsonl"), 1e-6)
    assert budget.epsilon == ledger.epsilon(1e-6)
    assert dict(budget.over_steps)[32] == epsilon_of([Phase(1.1, 0.02, 30), Phase(2.0, 0.02, 2)], 1e-6)
    assert (budget.steps, budget.dataset_size, budget.over_steps[-1][1]) == (40, 1000, budget.epsilon)


def test_the_command_in_all_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan = ["budget", "--dataset-size", "1000", "--batch-size", "50", "--steps", "20", "--noise-multiplier", "1.1"]
    assert main([*plan, "--svg", str(tmp_path / "curve.svg")]) == 0
    text, upper = capsys.readouterr().out, epsilon(1.1, 0.05, 20, 1e-5).upper
    shown = float(re.search(r"epsilon at most ([\d.]+)", text)[1])
    assert upper <= shown <= upper * 1.0001
    root = ElementTree.parse(tmp_path / "curve.svg").getroot()
    lines = [line.get("points").split() for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in lines] == [11, 10]
    assert main([*plan, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"]["epsilon"]["upper"] == upper
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(RECORD, 3)
    assert main(["budget", "--ledger", str(ledger.path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"]["steps"] == 3


def test_no_noise_and_a_delta_that_is_too_large_are_said(capsys: pytest.CaptureFixture[str]):
    plan = ["budget", "--dataset-size", "1000", "--steps", "2"]
    assert main([*plan, "--noise-multiplier", "0", "--format", "json"]) == 0
    assert math.isinf(float(json.loads(capsys.readouterr().out)["budget"]["epsilon"]["upper"]))
    assert main([*plan, "--noise-multiplier", "0"]) == 0
    assert "epsilon is infinite" in capsys.readouterr().out
    assert main([*plan, "--noise-multiplier", "1", "--delta", "0.01"]) == 0
    assert "more than 1/N" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "number of records is missing"),
        (["--dataset-size", "10"], "neither is given of --epochs and --steps"),
        (["--dataset-size", "10", "--steps", "1"], "--target-epsilon and --noise-multiplier"),
        (["--dataset-size", "10", "--steps", "1", "--epochs", "1", "--noise-multiplier", "1"], "both are given"),
        (["--dataset-size", "0", "--steps", "1", "--noise-multiplier", "1"], "--dataset-size 0"),
        (["--dataset-size", "9", "--batch-size", "10", "--steps", "1", "--noise-multiplier", "1"], "is more than"),
        (["--dataset-size", "9", "--steps", "-1", "--noise-multiplier", "1"], "--steps -1"),
        (["--dataset-size", "9", "--epochs", "nan", "--noise-multiplier", "1"], "--epochs nan"),
        (["--dataset-size", "9", "--steps", "1", "--noise-multiplier", "nan"], "nan"),
        (["--dataset-size", "9", "--steps", "1", "--noise-multiplier", "-1"], "-1"),
        (["--dataset-size", "9", "--steps", "1", "--target-epsilon", "0"], "target_epsilon"),
        (["--dataset-size", "9", "--steps", "1", "--noise-multiplier", "1", "--delta", "2"], "delta"),
        (["--ledger", "nowhere"], "there is no ledger nowhere"),
        (["--ledger", "nowhere", "--steps", "1"], "no effect with --ledger"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_value(options, says, capsys):
    assert main(["budget", *options]) == 2
    assert says in capsys.readouterr().err


def test_a_ledger_that_is_being_written_to_is_read_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(RECORD, 3)
    with ledger.path.open("a") as file:
        file.write('{"run": "ru')
    before = ledger.path.read_bytes()
    assert main(["budget", "--ledger", str(ledger.path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"]["steps"] == 3
    assert ledger.path.read_bytes() == before


def test_accountants_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(RECORD, 30)
    ledger.append(StepRecord("run", 2.0, 1.0, 20, 1000, True), 10)
    rdp = spent(ledger, 1e-6).rdp
    assert rdp == rdp_epsilon_of([Phase(2.0, 0.02, 10), Phase(1.1, 0.02, 30)], 1e-6) > ledger.epsilon(1e-6).upper
    assert main(["budget", "--ledger", str(ledger.path), "--delta", "1e-6"]) == 0
    shown = capsys.readouterr().out
    assert rdp <= float(re.search(r"Renyi +at most ([\d.]+)", shown)[1]) <= rdp * 1.0001
    assert re.search(r"PLD +[\d.]+ to [\d.]+", shown) and re.search(r"GDP, CLT +not offered", shown)
    assert rdp_epsilon_of([Phase(1.1, 0.02, 30)], 1e-6) == rdp_epsilon(1.1, 0.02, 30, 1e-6)
    replaced = Ledger()
    replaced.append(StepRecord("run", 1.0, 1.0, 20, 1000, True, "fixed-size", "replace-one"))
    assert spent(replaced, 1e-6).rdp is None
    with pytest.raises(DpcheckError, match="RDP is not computed"):
        rdp_epsilon_of([Phase(1.0, 0.1, 1, mechanism="laplace")], 1e-6)
    assert math.isinf(rdp_epsilon(0.0, 0.1, 1, 1e-6))
    assert rdp_epsilon(0.0, 0.1, 0, 1e-6) == 0


def test_a_plan_does_not_wait_for_torch():
    plan = ["budget", "--dataset-size", "1000", "--steps", "2", "--noise-multiplier", "3", "--format", "json"]
    code = f"import sys; from dpcheck.cli import main; main({plan}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["budget"]["steps"] == 2
