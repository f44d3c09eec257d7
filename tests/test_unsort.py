"""Sorts whose order does not matter go from the graph; sorts whose order matters stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dpcheck
from dpcheck.capture import Capture, capture
from dpcheck.oracle import isolate

TOKENS, WIDTH, EXPERTS, TOP = 6, 8, 4, 2


class Experts(nn.Module):
    """Tokens sorted by expert, multiplied group by group, and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 16) * 0.3)
        self.down = nn.Parameter(torch.randn(EXPERTS, 16, WIDTH) * 0.3)
        self.head = nn.Linear(WIDTH, 3)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.router(x).softmax(-1).topk(TOP, -1)
        return weights.reshape(-1), chosen.reshape(-1)

    def multiply(self, rows: Tensor, ends: Tensor, chosen: Tensor) -> Tensor:
        hidden = F.grouped_mm(rows, self.up, offs=ends).relu()
        return F.grouped_mm(hidden, self.down, offs=ends)

    def ends(self, chosen: Tensor) -> Tensor:
        counts = torch.histc(chosen.float(), bins=EXPERTS, min=0, max=EXPERTS - 1)
        return torch.cumsum(counts, 0, dtype=torch.int32)

    def put_back(self, rows: Tensor, order: Tensor) -> Tensor:
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        return rows[back].view(-1, TOP, WIDTH).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        weights, ids = self.route(flat)
        chosen, order = torch.sort(ids)
        rows = self.multiply(flat[order // TOP], self.ends(chosen), chosen) * weights[order].unsqueeze(-1)
        return self.head((flat + self.put_back(rows, order)).view(x.shape).mean(1))


class AddedUp(Experts):
    """Puts the rows back by adding them to their tokens."""

    def put_back(self, rows: Tensor, order: Tensor) -> Tensor:
        return torch.zeros(order.shape[0] // TOP, WIDTH).index_add(0, order // TOP, rows)


class OneByOne(Experts):
    """The two best experts, one after the other."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.router(x).softmax(-1)
        first = scores.max(-1)
        others = scores.masked_fill(torch.arange(EXPERTS) == first.indices.unsqueeze(-1), 0.0)
        second = others.argmax(-1, keepdim=True)
        ids = torch.cat((first.indices.unsqueeze(-1), second), -1)
        return scores.gather(1, ids).reshape(-1), ids.reshape(-1)


class Sortable(Experts):
    """The inverse of the order by another sort."""

    def put_back(self, rows: Tensor, order: Tensor) -> Tensor:
        return rows[order.argsort()].view(-1, TOP, WIDTH).sum(1)


class Ranked(Experts):
    """Scales a row by its place among the sorted rows, which other samples move."""

    def multiply(self, rows: Tensor, ends: Tensor, chosen: Tensor) -> Tensor:
        return super().multiply(rows, ends, chosen) * torch.linspace(0.5, 1.5, rows.shape[0]).unsqueeze(1)


class Running(Experts):
    """A running sum over the sorted rows."""

    def multiply(self, rows: Tensor, ends: Tensor, chosen: Tensor) -> Tensor:
        return super().multiply(rows, ends, chosen).cumsum(0)


class Neighbours(Experts):
    """Multiplies every row by the one behind it."""

    def multiply(self, rows: Tensor, ends: Tensor, chosen: Tensor) -> Tensor:
        return super().multiply(rows, ends, chosen) + rows.roll(1, 0)


class LeftSorted(Experts):
    """Never puts the rows back."""

    def put_back(self, rows: Tensor, order: Tensor) -> Tensor:
        return rows[: order.shape[0] // TOP]


class Capacity(Experts):
    """An expert takes no more than five tokens of the whole batch."""

    def multiply(self, rows: Tensor, ends: Tensor, chosen: Tensor) -> Tensor:
        place = torch.arange(rows.shape[0]) - F.pad(ends, (1, 0)).long()[chosen]
        return super().multiply(rows, ends, chosen) * (place < 5).unsqueeze(1)


class OtherEnds(Experts):
    """Groups whose ends are not the counts of the numbers that were sorted."""

    def ends(self, chosen: Tensor) -> Tensor:
        return super().ends((chosen + 1) % EXPERTS)


class AnyNumbers(Experts):
    """Numbers of which nothing says that they are those of an expert."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, _ = super().route(x)
        return weights, (x[:, :TOP].reshape(-1) * 2).abs().long().clamp(max=EXPERTS - 1)


class Descending(Experts):
    """Sorted from the last expert to the first, and multiplied as if it were the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        weights, ids = self.route(flat)
        chosen, order = torch.sort(ids, descending=True)
        rows = self.multiply(flat[order // TOP], self.ends(chosen), chosen) * weights[order].unsqueeze(-1)
        return self.head((flat + self.put_back(rows, order)).view(x.shape).mean(1))


class Rounded(Experts):
    """Counts in a type that does not hold them all exactly."""

    def ends(self, chosen: Tensor) -> Tensor:
        return super().ends(chosen).bfloat16().int()


class Twice(Experts):
    """Rows in the order of one sort, put back by another."""

    def put_back(self, rows: Tensor, order: Tensor) -> Tensor:
        return super().put_back(rows, torch.sort(order % EXPERTS)[1])


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, TOKENS, WIDTH), torch.randint(0, 3, (4,))


def captured(model: nn.Module) -> tuple[Capture, Any]:
    example = batch()
    result = capture(model, loss_fn, example)
    assert isinstance(result, Capture), result
    return result, example


def sorts(result: Capture) -> int:
    return sum("sort" in str(node.target) for node in result.graph.graph.nodes)


@pytest.mark.parametrize("kind", [Experts, AddedUp, OneByOne, Sortable])
def test_a_mixture_that_puts_its_tokens_back_is_proven_and_computed_without_the_sort(kind: type[Experts]) -> None:
    torch.manual_seed(0)
    model = kind()
    result, example = captured(model)
    assert sorts(result) == 0
    with torch.no_grad():
        losses, *gradients = pytree.tree_leaves(result.graph(*model.parameters(), *example, torch.ones(4)))
    want = loss_fn(model, example)
    torch.testing.assert_close(losses, want)
    for got, true in zip(gradients, torch.autograd.grad(want.sum(), list(model.parameters())), strict=False):
        torch.testing.assert_close(got, true)
    report = dpcheck.check(model, loss_fn, example)
    assert (report.verdict, report.method) == ("independent", "graph")


@pytest.mark.parametrize(
    "kind",
    [Ranked, Running, Neighbours, LeftSorted, Capacity, OtherEnds, AnyNumbers, Descending, Rounded, Twice],
    ids=lambda kind: kind.__name__,
)
def test_a_sort_whose_order_matters_or_may_matter_stays(kind: type[Experts]) -> None:
    torch.manual_seed(0)
    model = kind()
    result, example = captured(model)
    assert sorts(result) > 0
    report = dpcheck.check(model, loss_fn, example)
    assert report.verdict == ("mixing" if isolate(model, loss_fn, example).mixing else "unproven")


def test_per_sample_gradients_of_experts_are_those_of_single_samples() -> None:
    torch.manual_seed(0)
    proof = dpcheck.verify(Experts(), loss_fn, batch())
    assert proof.ok
    assert {p.method for p in proof.parameters} == {"graph"}
