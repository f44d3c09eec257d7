"""The joint graph: the same numbers as eager, for any batch and call style, with sources, and no trace left behind."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpcheck.capture import Capture, CaptureFailure, capture, run_losses
from dpcheck.errors import DpcheckError
from dpcheck.functional import mutates


def line_of(function: Callable[..., Any], mark: str = "# HERE") -> int:
    lines, first = inspect.getsourcelines(function)
    (at,) = [i for i, line in enumerate(lines) if mark in line]
    return first + at


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def captured(model: nn.Module, loss_fn: Any, batch: Any) -> Capture:
    result = capture(model, loss_fn, batch)
    assert isinstance(result, Capture), result
    return result


def run(result: Capture, model: nn.Module, batch: Any, tangent: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    leaves = [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
    with torch.no_grad():
        losses, *rest = result.graph(
            *[p.detach() for p in model.parameters()], *[b.detach() for b in model.buffers()], *leaves, tangent
        )
    return losses, rest[: len(result.gradients)]


def eager(model: nn.Module, loss_fn: Any, batch: Any, tangent: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    losses = loss_fn(model, batch)
    wanted = [p for p in model.parameters() if p.requires_grad]
    return losses.detach(), list(torch.autograd.grad(losses, wanted, tangent, allow_unused=True))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.LayerNorm(8), nn.Linear(8, 3))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(11, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(ids))[0][:, -1])


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, torch.randn(6, 4)),
    "conv": (conv, torch.randn(6, 1, 8, 8)),
    "recurrent": (Recurrent, torch.randint(0, 11, (6, 7))),
    "transformer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(12, 3)
        ),
        torch.randn(6, 3, 4),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_what_eager_computes(name: str) -> None:
    make, x = MODELS[name]
    model, y, tangent = make(), torch.randint(0, 3, (6,)), torch.rand(6)
    result = captured(model, cross_entropy, (x, y))
    got, expected = run(result, model, (x, y), tangent), eager(model, cross_entropy, (x, y), tangent)
    torch.testing.assert_close(got[0], expected[0])
    for (parameter, _), a, b in zip(model.named_parameters(), got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, p=parameter: f"{p}: {m}")


@pytest.mark.parametrize("name", MODELS)
def test_there_is_no_mutation_and_every_node_has_a_half_and_a_value(name: str) -> None:
    make, x = MODELS[name]
    result = captured(make(), cross_entropy, (x, torch.randint(0, 3, (6,))))
    calls = [n for n in result.graph.graph.nodes if n.op == "call_function"]
    assert not [n for n in calls if mutates(n)]
    assert {n.meta["half"] for n in calls} == {"forward", "backward"}
    assert all("val" in n.meta for n in calls)


class Marked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"a": nn.Linear(4, 4)})
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder["a"](x)  # LAYER
        return (h * self.scale).cumsum(1)  # HERE


def test_nodes_carry_the_users_line_its_span_and_the_module_path() -> None:
    result = captured(Marked(), lambda m, b: m(b).sum(1), torch.randn(3, 4))
    nodes = {str(n.target): n for n in result.graph.graph.nodes if n.meta.get("half") == "forward"}
    here = nodes["aten.cumsum.default"].meta["origin"]
    source = inspect.getsource(Marked.forward)
    assert here.user.file == __file__
    assert here.user.line == line_of(Marked.forward)
    assert here.user.function == "forward"
    assert here.module == ""
    line = next(line for line in source.splitlines() if "# HERE" in line)
    assert line[here.user.column : here.user.end_column] == "(h * self.scale).cumsum(1)"
    layer = nodes["aten.addmm.default"].meta["origin"]
    assert layer.user.line == line_of(Marked.forward, "# LAYER")
    assert layer.module == "encoder.a"
    assert layer.modules == ("", "encoder.a")


def test_backward_nodes_point_at_the_forward_line_that_made_them() -> None:
    result = captured(Marked(), lambda m, b: m(b).sum(1), torch.randn(3, 4))
    gradient = result.gradients["encoder.a.weight"]
    assert gradient is not None
    products = [n for n in result.graph.graph.nodes if n.meta.get("half") == "backward" and "aten.mm" in str(n.target)]
    assert products
    assert {n.meta["origin"].user.line for n in products} == {line_of(Marked.forward, "# LAYER")}
    assert {n.meta["origin"].module for n in products} == {"encoder.a"}


@dataclass
class Output:
    logits: Tensor


class ByKeyword(nn.Module):
    """Takes a dictionary by keyword, with what is no tensor in it, and returns an object."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, *, features: Tensor, scale: float, extra: list[Tensor] | None = None) -> Output:
        hidden = features * scale
        for t in extra or ():
            hidden = hidden + t
        return Output(self.head(hidden))


def loss_by_keyword(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    return F.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")


def test_any_pytree_and_any_call_style() -> None:
    batch = {
        "labels": torch.tensor([0, 1, 2, 0]),
        "features": torch.randn(4, 4),
        "scale": 0.5,
        "extra": [torch.randn(4, 4), torch.randn(4, 1)],
    }
    model, tangent = ByKeyword(), torch.rand(4)
    got = run(captured(model, loss_by_keyword, batch), model, batch, tangent)
    expected = eager(model, loss_by_keyword, batch, tangent)
    torch.testing.assert_close(got, expected)


class Writes(nn.Module):
    """Writes to a buffer, to Python state of two kinds, and draws random numbers of all kinds."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("count", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(len(x))
        self.calls = getattr(self, "calls", 0) + 1
        return F.dropout(self.layer(x), 0.5)[:, 0] * random.random()


def test_the_model_is_left_as_it_was() -> None:
    model, batch = Writes(), torch.randn(5, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    result = captured(model, lambda m, b: m(b), batch)
    assert result.touched.python_random
    assert set(result.touched.attributes) == {"seen", "calls"}
    assert model.seen == []
    assert not hasattr(model, "calls")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert result.buffers_after["count"] is not result.buffers["count"]
    assert all(p.grad is None for p in model.parameters())


def branches(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x  # HERE


def number(x: Tensor) -> Tensor:
    return x * float(x.max().item())  # HERE


def shape(x: Tensor) -> Tensor:
    return x + x[x.sum(1) > 0].sum(0)  # HERE


class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if bool(grad.sum() > 0):  # HERE
            return grad
        return -grad


@pytest.mark.parametrize(
    ("middle", "kind"), [(branches, "branch"), (number, "branch"), (shape, "shape"), (Refuses.apply, "branch")]
)
def test_what_cannot_be_captured_is_reported_with_reason_and_line(middle: Any, kind: str) -> None:
    model = nn.Linear(4, 4)
    result = capture(model, lambda m, b: middle(m(b)).sum(1), torch.randn(4, 4))
    assert isinstance(result, CaptureFailure)
    assert result.kind == kind
    assert "data" in result.reason
    assert result.location is not None
    assert result.location.file == __file__
    place = Refuses.backward if middle not in (branches, number, shape) else middle
    assert result.location.line == line_of(place)


def test_an_error_of_the_model_is_not_an_error_of_the_capture() -> None:
    with pytest.raises(DpcheckError) as caught:
        run_losses(nn.Linear(5, 3), cross_entropy, (torch.randn(4, 4), torch.tensor([0, 1, 2, 0])))
    assert "RuntimeError" in caught.value.what
    assert caught.value.where is not None
    assert caught.value.where.startswith(__file__)
    assert caught.value.next


def test_losses_must_be_one_for_each_sample() -> None:
    batch = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for loss_fn, says in (
        (lambda m, b: m(b[0]), "[4, 3]"),
        (lambda m, b: m(b[0]).sum(), "[]"),
        (lambda m, b: m(b[0]).argmax(1), "torch.int64"),
        (lambda m, b: [1.0], "list"),
    ):
        with pytest.raises(DpcheckError, match="returned") as caught:
            capture(nn.Linear(3, 3), loss_fn, batch)
        assert says in caught.value.what


class _Settings(dict[str, Any]):
    """As lightning keeps hyper-parameters: a copy of it is a plain dictionary."""


@pytest.mark.parametrize("writes", [False, True])
def test_a_dictionary_of_the_users_own_class_counts_as_changed_where_it_is(writes: bool) -> None:
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if writes:
                self.settings["rows"] = len(x)
            return super().forward(x)

    model = Model(4, 1)
    model.settings = _Settings(rows=2)
    result = captured(model, lambda m, b: m(b)[:, 0], torch.randn(5, 4))
    assert result.touched.attributes == (["settings"] if writes else [])
    assert type(model.settings) is _Settings and model.settings == {"rows": 2}
