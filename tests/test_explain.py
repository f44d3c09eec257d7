"""Explanations: the op and line of a planted violation, and no parameter called separate that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dpcheck.api import report_of
from dpcheck.cli import CLEAN, ERROR, main
from dpcheck.errors import DpcheckError
from dpcheck.explanation import Explanation, explain
from dpcheck.passes import find_facts
from dpcheck.samplesets import analyse

THIS = Path(__file__).name


class Planted(nn.Module):
    """Two layers with something between them; ``line`` is where the something runs."""

    def __init__(self, between, **parts):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.between = between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def losses(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def batch():
    return torch.randn(4, 3), torch.tensor([0, 1, 1, 0])


def explained(model, name=None, loss_fn=losses, data=None) -> Explanation:
    facts = find_facts(model, loss_fn, batch() if data is None else data)
    analysis = analyse(facts.capture) if facts.capture is not None else None
    return explain(facts, analysis, report_of(facts), name)


def minus_mean(model, h):
    return h - h.mean(0)


def minus_detached_mean(model, h):
    return h - h.detach().mean(0)


def neighbour(model, h):
    return h + h.roll(1, 0)


def over_samples(model, h):
    return h.softmax(0)


MIXING = {minus_mean: "mean", minus_detached_mean: "mean", neighbour: "roll", over_samples: "_softmax"}


@pytest.mark.parametrize("between", MIXING, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [None, "last.weight"])
def test_the_way_ends_at_the_op_and_line_that_mix(between, name) -> None:
    found = explained(Planted(between), name)
    assert found.answer == "mixing"
    to, *_ = found.walks
    end = to.stops[-1]
    assert end.ops[-1] == MIXING[between]
    assert Path(end.location.file).name == THIS
    assert end.location.line == between.__code__.co_firstlineno + 1
    assert to.stops[0].what == "batch[0]"
    # Before the end, samples are apart.
    assert all("meet" not in stop.samples for stop in to.stops[:-1])


def test_the_second_way_leads_on_to_the_losses() -> None:
    _, on = explained(Planted(minus_mean)).walks
    assert on.stops[-1].ops[-1] == "nll_loss_forward"
    assert on.stops[-1].shape == (5,)
    assert "samples 0 to 4 meet" in on.stops[-1].samples


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 3, scale_grad_by_freq=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.table(x).sum(1))


def test_backward_mixing_is_told_from_the_losses_backwards() -> None:
    data = torch.randint(7, (4, 5)), torch.tensor([0, 1, 1, 0])
    found = explained(Counting(), "table.weight", data=data)
    assert found.answer == "mixing"
    (back, *_) = found.walks
    assert back.title.startswith("from the losses backwards")
    assert [stop.half for stop in back.stops[1:]] == ["backward"] * (len(back.stops) - 1)
    assert back.stops[-1].ops[-1] == "embedding_dense_backward"
    assert "how often an index occurs" in back.stops[-1].what
    # The head's gradient is right; that the model is refused is said.
    head = explained(Counting(), "head.weight", data=data)
    assert head.answer == "separate"
    assert any("refuses the model" in sentence for sentence in head.why)


def own(model, h):
    return torch.tanh(h)


def test_a_fine_parameter_names_its_sum_and_both_factors() -> None:
    found = explained(Planted(own), "last.weight")
    assert found.answer == "separate"
    forward, back, *_ = found.walks
    assert forward.stops[-1].ops[-1] == "tanh"
    assert back.stops[-1].ops[-1] == "mm"
    assert back.stops[-1].samples == "a sum of terms of one sample each"
    assert all("sum of terms" not in stop.samples for stop in (*forward.stops, *back.stops[:-1]))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, x):
        return torch.tanh(self.table(x)).sum(1) @ self.table.weight.t()


def test_each_sum_of_a_parameter_that_is_used_twice_is_told() -> None:
    data = torch.randint(7, (4, 5)), torch.tensor([0, 1, 1, 0])
    found = explained(Tied(), "table.weight", data=data)
    ends = [walk.stops[-1].ops[-1] for walk in found.walks if walk.title.startswith("from the losses")]
    assert sorted(ends) == ["embedding_dense_backward", "mm"]
    assert any("sum 1 of 2" in walk.title for walk in found.walks)


@torch.library.custom_op("explained::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


doubled.register_fake(torch.empty_like)


def normalised():
    return Planted(lambda m, h: m.bn(h), bn=nn.BatchNorm1d(4))


def detached(model, h):
    return h * model.scale.detach()


@pytest.mark.parametrize(
    ("model", "name", "answer", "word"),
    [
        (lambda: Planted(detached, scale=nn.Parameter(torch.ones(4))), "scale", "not reached", "no gradient comes"),
        (lambda: Planted(own, spare=nn.Linear(2, 2)), "spare.weight", "not reached", "never reads it"),
        (lambda: Planted(own, fixed=nn.Parameter(torch.ones(4), False)), "fixed", "frozen", "requires_grad is False"),
        (normalised, "bn.running_mean", "written from data", "noise"),
        (normalised, "bn.num_batches_tracked", "constant", "constants"),
        (normalised, "bn", "mixing", "statistics of the whole batch"),
        (normalised, "first", "separate", "one sample at most"),
        (lambda: Planted(lambda m, h: h if h.sum() > 0 else -h), None, "mixing", "there is no graph"),
        (lambda: Planted(lambda m, h: h * doubled(h.detach())), "last.weight", "unproven", "no transfer rule"),
    ],
)  # fmt: skip
def test_every_kind_of_answer(model, name, answer, word) -> None:
    torch.manual_seed(0)
    found = explained(model(), name)
    assert found.answer == answer
    assert word in "; ".join(found.why)


def test_a_gradient_that_is_called_separate_is_one() -> None:
    """Against autograd: what the other samples are does not change the gradient of one sample's loss."""
    torch.manual_seed(0)
    for between in (*MIXING, own):
        model, (x, y) = Planted(between), batch()
        others = torch.cat([x[:1], torch.randn(3, 3)])
        apart = []
        for name, parameter in model.named_parameters():
            before, after = (torch.autograd.grad(losses(model, (rows, y))[0], parameter)[0] for rows in (x, others))
            if explained(model, name).answer == "separate":
                apart.append(name)
                torch.testing.assert_close(before, after)
        assert len(apart) == (4 if between is own else 0)


def test_an_unknown_name_gets_names_like_it() -> None:
    with pytest.raises(DpcheckError, match=r"no parameter, buffer or module 'fist\.weight'") as raised:
        explained(Planted(own), "fist.weight")
    assert "first.weight" in str(raised.value.next)


FILE = """\
import torch
from torch import nn

model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

def loss_fn(model, batch):
    return model(batch).square().sum(1)

def sample_batch():
    return torch.randn(4, 3)
"""


def test_the_command_prints_lines_and_json(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(FILE)
    assert main(["explain", "m.py", "0.weight"]) == CLEAN
    text = capsys.readouterr().out
    assert "parameter 0.weight: mixing" in text
    assert "m.py:7 | return model(batch).square().sum(1)" in text
    assert main(["explain", "m.py", "--format", "json"]) == CLEAN
    document = json.loads(capsys.readouterr().out)
    assert document["explain"]["answer"] == "mixing"
    assert document["explain"]["findings"][0]["code"] == "DP101"
    assert document["explain"]["walks"][0]["stops"][-1]["location"]["line"] == 7
    assert main(["explain", "m.py", "0.wieght"]) == ERROR
    assert "0.weight" in capsys.readouterr().err


OWN = """
import torch
from torch import nn

class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): return g / g.norm()

class Back(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.attention = nn.Linear(3, 4), nn.MultiheadAttention(4, 2)
    def forward(self, x):
        return Scale.apply(self.inp(x))

class Attend(Back):
    def forward(self, x):
        h = self.inp(x).unsqueeze(1)
        return self.attention(h, h, h)[0].squeeze(1)

def loss_fn(model, batch): return model(batch).square().sum(1)
def sample_batch(): return torch.randn(4, 3)
"""


def test_a_backward_of_the_users_own_is_called_so(tmp_path, capsys):
    (tmp_path / "m.py").write_text(OWN, encoding="utf-8")
    assert main(["explain", f"{tmp_path / 'm.py'}:Back", "inp.weight"]) == 0
    out = capsys.readouterr().out
    assert "a backward of your own: linalg_vector_norm" in out and "backward of the loss function" in out
    assert "backward of the loss function: linalg" not in out


def test_what_is_met_twice_is_told_once(tmp_path, capsys):
    (tmp_path / "m.py").write_text(OWN, encoding="utf-8")
    assert main(["explain", f"{tmp_path / 'm.py'}:Attend"]) == 0
    out = capsys.readouterr().out
    assert out.count("from the batch to the op where samples meet") == 1
    assert out.count("multiplies rows of different samples (2 times)") == 1
