"""Transfer rules that claim too little are planted; programs that use the op must catch every one.

Each planted error names steps that call the op. Hypothesis draws programs with one of them, in any layout and on any
axis, until the referee objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from backward_steps import CURVED, LINEAR
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample
from judge import captured
from programs import SEEDS, Model, Program, Step, batch_of, build, program_with
from referee import objections

from dpcheck.capture import Capture
from dpcheck.samplesets import analyse, bags, interpreter, linear, moves, norms, writes
from dpcheck.samplesets.lattice import Samples, joined, moved, none
from dpcheck.samplesets.op import RULES, Op, packet_of

TRIES = 60
LOSSES = ("square", "cross_entropy")
Wrong = Callable[[Op], Any]


@cache
def _captured(program: Program) -> tuple[Model, Capture]:
    """A graph does not depend on the rules."""
    model = build(program)
    return model, captured(model, batch_of(5, 1))


def _refuted(program: Program) -> bool:
    """Whether the referee objects to the rules as they are now."""
    model, capture = _captured(program)
    return bool(objections(analyse(capture), model, batch_of(5, 9)))


def _caught(steps: Sequence[str], losses: Sequence[str] = LOSSES, packet: str | None = None) -> Program | None:
    """A program that refutes the rules as they are now."""

    def condition(program: Program) -> bool:
        calls = {packet_of(n.target) for n in _captured(program)[1].graph.graph.nodes}
        return (packet is None or packet in calls) and _refuted(program)

    chosen = settings(
        max_examples=TRIES, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    drawn = SEEDS.map(lambda rng: program_with(rng, steps, losses))
    try:
        return find(drawn, condition, settings=chosen, random=Random(0))
    except NoSuchExample:
        return None


def _fitted(value: Samples, shape: Sequence[int], batch: int) -> Samples:
    """The value in another shape, as a careless rule would: of an axis that does not fit, the first element."""

    def fit(t: torch.Tensor) -> torch.Tensor:
        while t.dim() > len(shape):
            t = t.select(0, 0)
        t = t[(None,) * (len(shape) - t.dim())]
        for axis, n in enumerate(shape):
            t = t if t.shape[axis] == n else t.narrow(axis, 0, 1)
        return t.expand(tuple(shape))

    return joined([moved(value, fit)], shape, batch)


def _only(index: int) -> Wrong:
    """The result depends on one argument's element at the same place."""

    def wrong(op: Op) -> Any:
        value = op.args[index][0] if isinstance(op.args[index], list) else op.args[index]
        return op.each(lambda out: _fitted(value, out.shape, op.batch))

    return wrong


def _nothing(op: Op) -> Any:
    """The result depends on no sample."""
    return op.each(lambda out: none(out.shape, op.batch))


def _reshaped(op: Op) -> Any:
    """A permutation taken for a reshape."""
    return moved(op.args[0], lambda t: t.reshape(op.out.shape))


def _always_additive(packet: str) -> Wrong:
    """The right rule, and every result called a sum over samples."""
    right = RULES[packet]
    return lambda op: _all_additive(right(op))


def _all_additive(result: Any) -> Any:
    if isinstance(result, Samples):
        return result.with_(additive=True)
    return [_all_additive(r) for r in result] if isinstance(result, list | tuple) else result


PLANTED: dict[str, tuple[str, tuple[str, ...], Wrong]] = {
    # movement
    "flip moves nothing": ("flip", ("flip",), _only(0)),
    "roll moves nothing": ("roll", ("roll",), _only(0)),
    "permute is a reshape": ("permute", ("nothing", "tanh"), _reshaped),
    "transpose is a reshape": ("transpose", ("linear", "rms_norm"), _reshaped),
    "slice starts at the first row": ("slice", ("shift", "chunk"), _only(0)),
    "select takes the first row": ("select", ("copied_select_scatter", "wrote_flat"), _only(0)),
    "cat sees its first part": ("cat", ("shift", "chunk", "split"), _only(0)),
    "windows are rows": ("unfold", ("windows",), _only(0)),
    # pointwise
    "mul sees its left side": ("mul", ("times_mean", "half_detached"), _only(0)),
    "where sees its condition": ("where", ("wheres",), _nothing),
    "comparisons have no sample": ("gt", ("wheres", "mask_put"), _nothing),
    "maximum sees its left side": ("maximum", ("less_greatest",), _only(0)),
    "lstm sees its weights": ("dpcheck.lstm", ("lstm",), _nothing),
    "lstm sees one time step": ("dpcheck.lstm", ("lstm",), _only(0)),
    "gru sees its weights": ("dpcheck.gru", ("gru",), _nothing),
    "gru sees one time step": ("dpcheck.gru", ("gru",), _only(0)),
    "rnn sees one time step": ("dpcheck.rnn", ("rnn",), _only(0)),
    # reductions
    "mean keeps one row": ("mean", ("less_mean", "times_squeezed", "less_all_but"), _only(0)),
    "sum keeps one row": ("sum", ("less_sum", "weighted"), _only(0)),
    "amax keeps one row": ("amax", ("less_amax", "times_amax"), _only(0)),
    "var keeps one row": ("var", ("less_var", "times_var"), _only(0)),
    "median keeps one row": ("median", ("less_median",), _only(0)),
    "argmax has no sample": ("argmax", ("less_argmax", "by_max"), _nothing),
    "any has no sample": ("any", ("less_any",), _nothing),
    # along an axis
    "softmax is elementwise": ("_softmax", ("softmax", "attend"), _only(0)),
    "log_softmax is elementwise": ("_log_softmax", ("log_softmax",), _only(0)),
    "cumsum is elementwise": ("cumsum", ("cumsum",), _only(0)),
    "sort is elementwise": ("sort", ("sort", "by_order"), _only(0)),
    "topk takes the first": ("topk", ("topk", "routed"), _only(0)),
    "a Fourier transform is elementwise": ("_fft_r2c", ("fft", "filtered"), _only(0)),
    # matrices
    "mm sees its left side": ("mm", ("gram", "distances"), _only(0)),
    "bmm sees its right side": ("bmm", ("attend", "relative"), _only(1)),
    "addmm sees its bias": ("addmm", ("addmm",), _only(0)),
    "distances see their left side": ("_cdist_forward", ("pairs",), _only(0)),
    "an inverse is elementwise": ("linalg_inv_ex", ("shifted_inverse",), _only(0)),
    # layers
    "layer norm is elementwise": ("native_layer_norm", ("layer_norm", "wide_norm"), _only(0)),
    "group norm is elementwise": ("native_group_norm", ("group_norm",), _only(0)),
    "batch norm is elementwise": ("native_batch_norm", ("batch_norm",), _only(0)),
    "convolution keeps channels apart": ("convolution", ("conv", "conv2d"), _only(0)),
    "pooling is elementwise": ("avg_pool2d", ("image_avg_pool", "pools"), _only(0)),
    "resizing is elementwise": ("upsample_bilinear2d", ("image_bilinear",), _only(0)),
    # indexing
    "gather ignores the index": ("gather", ("gathered_known", "gathered_by_sign"), _only(0)),
    "index ignores the index": ("index", ("advanced", "paired", "by_label"), _only(0)),
    "index_select ignores the index": ("index_select", ("picked", "unknown_rows"), _only(0)),
    "embedding has no sample": ("embedding", ("looked_up",), _nothing),
    "bags have no sample": ("_embedding_bag", ("bag_of_words", "largest_in_bags"), _nothing),
    "a frozen table's bags have no sample": ("_embedding_bag_forward_only", ("largest_in_bags",), _nothing),
    # writes
    "index_put keeps the base": ("index_put", ("index_put", "index_put_add"), _only(0)),
    "scatter keeps the base": ("scatter", ("scatter_set", "scatter_known"), _only(0)),
    "scatter_add keeps the base": ("scatter_add", ("scattered",), _only(0)),
    "index_add keeps the base": ("index_add", ("index_added",), _only(0)),
    "slice_scatter keeps the base": ("slice_scatter", ("wrote_over", "wrote_slice"), _only(0)),
    "select_scatter keeps the base": ("select_scatter", ("filled", "copied_select_scatter"), _only(0)),
    "masked_scatter keeps the base": ("masked_scatter", ("masked_scattered",), _only(0)),
    # losses
    "nll forgets the target": ("nll_loss_forward", ("tanh",), _only(0)),
    # the backward
    "softmax backward is elementwise": ("_softmax_backward_data", ("soft_scale",), _only(0)),
    "layer norm backward is elementwise": ("native_layer_norm_backward", ("layer_norm",), _only(0)),
    "tanh backward forgets the output": ("tanh_backward", ("tanh",), _nothing),
    "batch norm backward sums samples": ("native_batch_norm_backward", ("batch_norm",), _only(0)),
    "convolution backward keeps channels apart": ("convolution_backward", ("conv", "depthwise"), _only(0)),
    "weights of bags have no sample in the backward": (
        "_embedding_bag_per_sample_weights_backward",
        ("weighted_bags",),
        _nothing,
    ),
    "nll backward has no sample": ("nll_loss_backward", ("tanh",), _nothing),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_rule_is_caught(name: str) -> None:
    packet, steps, wrong = PLANTED[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, packet, wrong)
        program = _caught(steps, ("shifted_labels",) if packet.startswith("nll") else LOSSES, packet)
    assert program is not None
    assert not _refuted(program), "refutes the right rules, too"


def _proven(step: str) -> bool:
    return analyse(_captured(Program((Step(step, "btd", 2),), "square"))[1]).proven


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_what_is_linear_in_the_gradient_of_a_weight_stays_a_sum(name: str) -> None:
    assert _proven(f"weight_linear_{name}")


@pytest.mark.parametrize("name", sorted(CURVED))
def test_what_is_not_linear_in_the_gradient_of_a_weight_is_not_proven(name: str) -> None:
    """Constants that are added are among them: no sample owns them, and the referee cannot see them."""
    assert not _proven(f"weight_curved_{name}")


# An op wrongly listed as linear makes values sums over samples that are none.
MISLISTED = {
    "tanh": "tanh", "sort": "sorted", "_softmax": "softmax", "amax": "peak", "cumprod": "product", "clamp": "clipped",
    "pow": "powered", "native_layer_norm": "layered", "round": "rounded",
}  # fmt: skip


@pytest.mark.parametrize("packet", MISLISTED)
def test_a_sum_that_is_none_is_caught(packet: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_FIRST", linear._FIRST | {packet})
        program = _caught([f"weight_curved_{MISLISTED[packet]}"], packet=packet)
    assert program is not None
    assert not _refuted(program), "refutes the right rules, too"


def _products_linear(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(linear, "_JOINT", linear._JOINT | linear._BILINEAR)
    patch.setattr(linear, "_BILINEAR", frozenset())


def _frequency_scaling_linear(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, "embedding_dense_backward", _always_additive("embedding_dense_backward"))


def _bags_end_early(patch: pytest.MonkeyPatch) -> None:
    right = bags.bags_of
    patch.setattr(bags, "bags_of", lambda offsets, *sizes: right((offsets - offsets.sign()).clamp(min=0), *sizes))


def _bag_of_a_lookup_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, "_embedding_bag_backward", lambda op: op.none())


def _scan_additive(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, "cumprod", _always_additive("cumprod"))


def _chance_constant(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(interpreter, "_CHANCE", torch.Tag.pointwise)


def _unknown_index_zero(patch: pytest.MonkeyPatch) -> None:
    right = writes._written
    patch.setattr(
        writes, "_written", lambda op, base, slots, places, doubtful, *rest: right(op, base, slots, places, [], *rest)
    )


def _masks_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(writes, "_masked_put", lambda op, base, mask, source: op.join(base))


def _strides_of_views_trusted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(interpreter, "_dense", lambda source: True)


def _batch_norm_frozen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(norms, "_training", lambda op: False)


def _indices_known(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moves, "_placed", lambda op, value, picks: op.none())


MISTAKES: dict[Callable[[pytest.MonkeyPatch], None], tuple[str, ...]] = {
    _products_linear: ("weight_curved_multiplied", "weight_curved_squared"),
    _frequency_scaling_linear: ("counted",),
    _bags_end_early: ("bag_of_words", "weighted_bags"),
    _bag_of_a_lookup_forgotten: ("bag_of_words", "weighted_bags"),
    _scan_additive: ("cumprod",),
    _chance_constant: ("copied_permuted",),
    _unknown_index_zero: ("scattered", "scatter_set"),
    _masks_ignored: ("shifted_mask",),
    _strides_of_views_trusted: ("strided", "diagonal"),
    _batch_norm_frozen: ("batch_norm",),
    _indices_known: ("paired", "by_label"),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__.strip("_"))
def test_a_mistake_behind_the_rules_is_caught(mistake: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        program = _caught(MISTAKES[mistake])
    assert program is not None
    assert not _refuted(program), "refutes the right rules, too"
