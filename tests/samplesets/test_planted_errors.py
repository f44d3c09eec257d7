"""Transfer rules that claim too little are planted; the random programs must catch every one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from judge import captured
from programs import Model, Program, batch_of, build, programs
from referee import objections

from dpcheck.capture import Capture
from dpcheck.samplesets import analyse, linear
from dpcheck.samplesets.lattice import Samples, compact, joined, moved, none
from dpcheck.samplesets.op import RULES, Op, packet_of

POOL = 220


@cache
def pool() -> tuple[tuple[Program, Model, Capture], ...]:
    """Random programs, captured once: a graph does not depend on the rules."""
    found: list[tuple[Program, Model, Capture]] = []

    @seed(5)
    @settings(max_examples=POOL, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(programs())
    def draw(program: Program) -> None:
        model = build(program)
        found.append((program, model, captured(model, batch_of(5, 1))))

    draw()
    return tuple(found)


def _using(packet: str) -> Iterator[tuple[Program, Model, Capture]]:
    for program, model, capture in pool():
        if any(packet_of(n.target) == packet for n in capture.graph.graph.nodes if n.target is not operator.getitem):
            yield program, model, capture


def _caught(packet: str) -> str | None:
    for program, model, capture in _using(packet):
        said = objections(analyse(capture), model, batch_of(5, 9))
        if said:
            return f"{program}: {said[0]}"
    return None


def _nothing(op: Op) -> Any:
    """Results of comparisons, argmaxes and the like carry no sample."""
    return op.each(lambda out: none(out.shape, op.batch))


def _first_only(op: Op) -> Any:
    """The result depends on the first argument's element at the same place."""
    value = op.args[0][0] if isinstance(op.args[0], list) else op.args[0]
    return op.each(lambda out: _fitted(value, out.shape, op.batch))


def _second_only(op: Op) -> Any:
    return op.each(lambda out: _fitted(op.args[1], out.shape, op.batch))


def _fitted(value: Samples, shape: Any, batch: int) -> Samples:
    """The value cut or repeated to a shape, as a careless rule would."""

    def fit(t: torch.Tensor) -> torch.Tensor:
        t = t.reshape(t.shape[-len(shape) :] if t.dim() >= len(shape) else (*[1] * (len(shape) - t.dim()), *t.shape))
        index = [torch.arange(n) % max(m, 1) for n, m in zip(shape, t.shape, strict=True)]
        return compact(t[torch.meshgrid(*index, indexing="ij")] if index else t)

    low, high = (
        fit(value.low[(0,) * max(value.low.dim() - len(shape), 0)]),
        fit(value.high[(0,) * max(value.high.dim() - len(shape), 0)]),
    )
    return joined([Samples(low, high, batch)], shape, batch)


def _reshaped(op: Op) -> Any:
    """A permutation taken for a reshape."""
    return moved(op.args[0], lambda t: t.reshape(op.out.shape))


def _no_gradient(op: Op) -> Any:
    """A backward that forgets the values saved by the forward."""
    first = op.each(lambda out: _fitted(op.args[0], out.shape, op.batch))
    return first


PLANTED: dict[str, tuple[str, Callable[[Op], Any]]] = {
    "mean keeps one row": ("mean", _first_only),
    "amax keeps one row": ("amax", _first_only),
    "var keeps one row": ("var", _first_only),
    "softmax is elementwise": ("_softmax", _first_only),
    "log_softmax is elementwise": ("_log_softmax", _first_only),
    "softmax backward is elementwise": ("_softmax_backward_data", _no_gradient),
    "cumsum is elementwise": ("cumsum", _first_only),
    "sort is elementwise": ("sort", _first_only),
    "flip moves nothing": ("flip", _first_only),
    "roll moves nothing": ("roll", _first_only),
    "permute is a reshape": ("permute", _reshaped),
    "transpose is a reshape": ("transpose", _reshaped),
    "mm sees its left side": ("mm", _first_only),
    "bmm sees its right side": ("bmm", _second_only),
    "cat sees its first part": ("cat", _first_only),
    "argmax has no sample": ("argmax", _nothing),
    "comparisons have no sample": ("gt", _nothing),
    "where sees its condition": ("where", _first_only),
    "gather ignores the index": ("gather", _first_only),
    "index ignores the index": ("index", _first_only),
    "index_put keeps the base": ("index_put", _first_only),
    "scatter keeps the base": ("scatter", _first_only),
    "slice_scatter keeps the base": ("slice_scatter", _first_only),
    "embedding has no sample": ("embedding", _nothing),
    "layer norm is elementwise": ("native_layer_norm", _first_only),
    "batch norm is elementwise": ("native_batch_norm", _first_only),
    "convolution keeps channels apart": ("convolution", _first_only),
    "nll forgets the target": ("nll_loss_forward", _nothing),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packet, wrong = PLANTED[name]
    monkeypatch.setitem(RULES, packet, wrong)
    assert _caught(packet), f"no program of {POOL} objects to: {name}"


@pytest.mark.parametrize("packet", ["tanh", "sign"])
def test_a_sum_that_is_none_is_caught(packet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An op wrongly listed as linear makes values sums over samples that are none."""
    monkeypatch.setattr(linear, "_FIRST", linear._FIRST | {packet})
    assert _caught(packet), f"no program objects to a linear {packet}"


def test_frequency_scaling_called_a_sum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RULES["embedding_dense_backward"]
    monkeypatch.setitem(RULES, "embedding_dense_backward", lambda op: right(op).with_(additive=True))
    assert _caught("embedding_dense_backward")


def test_the_right_rules_are_not_objected_to() -> None:
    """What makes the tests above mean something."""
    for program, model, capture in pool()[::4]:
        assert not objections(analyse(capture), model, batch_of(5, 9)), str(program)
