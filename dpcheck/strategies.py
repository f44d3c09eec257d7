"""Hypothesis strategies of layers over their option space, with inputs; small sizes, so that axes often coincide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from dpcheck import inputs
from dpcheck.cases import Case
from dpcheck.unit import Unit

Draw = Callable[[st.SearchStrategy[Any]], Any]
_SIZES = st.integers(1, 4)
_FLAG = st.booleans()
_FORMATS = {2: "torch.channels_last", 3: "torch.channels_last_3d"}


def call(name: str, *arguments: Any, **options: Any) -> str:
    """The source of a call; options that are ``None`` are left out."""
    given = [str(a) for a in arguments] + [f"{k}={v}" for k, v in options.items() if v is not None]
    return f"{name}({', '.join(given)})"


def floats(*shape: int, dtype: str = "torch.float64") -> str:
    """The source of a normal tensor."""
    return f"torch.randn({', '.join(map(str, shape))}, dtype={dtype})"


def make(draw: Draw, layer: str, *tensors: str, dtype: str) -> Case:
    """The case of a layer in ``dtype`` and of the sources of its arguments."""
    batch = f"({', '.join(tensors)},)"
    return Case(f"{layer}.to({dtype})", batch, draw(st.integers(0, 3)))


@st.composite
def batches(draw: Draw, like: Any, max_size: int = 5, unit: Unit | None = None) -> Any:
    """Batches of 1 to ``max_size`` samples made from those of ``like`` (any pytree of tensors, samples on axis 0).

    With ``unit``, ``like`` and the batches are in the layout that it declares.

    Samples repeat and change order; floating-point ones are also scaled, down to zeros and up by 30.
    """
    unit = unit or Unit()
    like = unit.canonical(like)
    have = inputs.batch_size(like)
    picks = draw(st.lists(st.integers(0, have - 1), min_size=1, max_size=max_size))
    scales = draw(st.lists(st.sampled_from([1.0, 0.0, 1e-3, -2.0, 30.0]), min_size=len(picks), max_size=len(picks)))

    def scaled(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        return t * torch.tensor(scales, dtype=t.dtype, device=t.device).view(-1, *[1] * (t.dim() - 1))

    return unit.original(pytree.tree_map_only(Tensor, scaled, inputs.take(like, picks)))


@st.composite
def arguments(draw: Draw, *given: Any, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """Arguments of an op: a shape such as ``("n", "d", 3)`` is a normal tensor, names are sizes that they share.

    A strategy is drawn from; anything else is taken as it is.
    """
    sizes: dict[str, int] = {}
    for name in (axis for shape in given if isinstance(shape, tuple) for axis in shape if isinstance(axis, str)):
        sizes[name] = sizes.get(name) or draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def one(item: Any) -> Any:
        if isinstance(item, tuple):
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in item]
            return torch.randn(shape, generator=generator, dtype=dtype)
        return draw(item) if isinstance(item, st.SearchStrategy) else item

    return tuple(one(item) for item in given)


@st.composite
def linears(draw: Draw, dtype: str = "torch.float64", kind: str | None = None) -> Case:
    """``nn.Linear`` on up to three axes between samples and features, and ``nn.Bilinear``; or one ``kind``."""
    batch, lead = draw(_SIZES), draw(st.lists(_SIZES, max_size=3))
    features, out, bias = draw(_SIZES), draw(_SIZES), draw(_FLAG)
    if (kind or draw(st.sampled_from(["Bilinear", "Linear"]))) == "Linear":
        layer = call("nn.Linear", features, out, bias=bias)
        return make(draw, layer, floats(batch, *lead, features, dtype=dtype), dtype=dtype)
    other = draw(_SIZES)
    layer = call("nn.Bilinear", features, other, out, bias=bias)
    tensors = floats(batch, *lead, features, dtype=dtype), floats(batch, *lead, other, dtype=dtype)
    return make(draw, layer, *tensors, dtype=dtype)


@st.composite
def embeddings(draw: Draw, dtype: str = "torch.float64") -> Case:
    """``nn.Embedding`` with zero to three axes of indices per sample, padding of either sign, dense or sparse."""
    rows, width = draw(st.integers(1, 6)), draw(_SIZES)
    shape = [draw(_SIZES), *draw(st.lists(_SIZES, max_size=3))]
    padding = draw(st.none() | st.integers(-rows, rows - 1))
    layer = call("nn.Embedding", rows, width, padding_idx=padding, sparse=draw(st.none() | st.just(True)))
    count = 1
    for size in shape:
        count *= size
    ids = draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count))
    return make(draw, layer, f"torch.tensor({ids}).view({', '.join(map(str, shape))})", dtype=dtype)


@st.composite
def bags(draw: Draw, dtype: str = "torch.float64", mode: str | None = None) -> Case:
    """``nn.EmbeddingBag`` on rows of indices: sum, mean and maximum (or one ``mode``), padding, repeated indices."""
    rows, shape = draw(st.integers(1, 6)), [draw(_SIZES), draw(_SIZES)]
    layer = call(
        "nn.EmbeddingBag", rows, draw(_SIZES), mode=repr(mode or draw(st.sampled_from(["mean", "sum", "max"]))),
        padding_idx=draw(st.none() | st.integers(-rows, rows - 1)),
    )  # fmt: skip
    count = shape[0] * shape[1]
    ids = draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count))
    return make(draw, layer, f"torch.tensor({ids}).view({shape[0]}, {shape[1]})", dtype=dtype)


@st.composite
def convolutions(draw: Draw, dtype: str = "torch.float64", axes: int | None = None) -> Case:
    """Convolutions over one to three axes (or ``axes``): groups, stride, dilation, paddings, channels last."""
    axes = axes or draw(st.integers(1, 3))
    groups, batch = draw(st.integers(1, 2)), draw(_SIZES)
    channels, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    span = dilation * (kernel - 1) + 1
    size = [span + draw(st.integers(0, 3)) for _ in range(axes)]
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    same = draw(_FLAG) and axes < 3 and span % 2 == 1
    padding = "'same'" if same and span // 2 < span else draw(st.integers(0, min(2, min(size) - 1)))
    stride = 1 if same else draw(st.integers(1, 3))
    layer = call(
        f"nn.Conv{axes}d", channels, out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
        bias=draw(_FLAG), padding_mode=repr(mode),
    )  # fmt: skip
    return _with_format(draw, layer, axes, floats(batch, channels, *size, dtype=dtype), dtype)


@st.composite
def transposed_convolutions(draw: Draw, dtype: str = "torch.float64", axes: int | None = None) -> Case:
    """Transposed convolutions over one to three axes (or ``axes``), with output padding."""
    axes = axes or draw(st.integers(1, 3))
    groups, batch = draw(st.integers(1, 2)), draw(_SIZES)
    channels, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, dilation, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    extra = draw(st.integers(0, max(stride, dilation) - 1))
    size = [draw(st.integers(2, 4)) for _ in range(axes)]
    padding = draw(st.integers(0, (min(size) - 1) * stride // 2))
    layer = call(
        f"nn.ConvTranspose{axes}d", channels, out, kernel, stride=stride, padding=padding, output_padding=extra,
        groups=groups, bias=draw(_FLAG), dilation=dilation,
    )  # fmt: skip
    return _with_format(draw, layer, axes, floats(batch, channels, *size, dtype=dtype), dtype)


def _with_format(draw: Draw, layer: str, axes: int, tensor: str, dtype: str) -> Case:
    if axes in _FORMATS and draw(_FLAG):
        layer = f"{layer}.to(memory_format={_FORMATS[axes]})"
        tensor = f"{tensor}.to(memory_format={_FORMATS[axes]})"
    return make(draw, layer, tensor, dtype=dtype)


_NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")


@st.composite
def norms(draw: Draw, dtype: str = "torch.float64", kind: str | None = None) -> Case:
    """Layer, RMS, group and instance norm (or one ``kind``) with their affine parameters."""
    kind = kind or draw(st.sampled_from(_NORMS))
    batch, lead, eps = draw(_SIZES), draw(st.lists(_SIZES, max_size=2)), draw(st.none() | st.just(1e-2))
    if kind in ("LayerNorm", "RMSNorm"):
        shape = [draw(st.integers(2, 4)), *draw(st.lists(_SIZES, max_size=1))]
        options = {"bias": draw(_FLAG)} if kind == "LayerNorm" else {}
        layer = call(f"nn.{kind}", shape, eps=eps, **options)
        return make(draw, layer, floats(batch, *lead, *shape, dtype=dtype), dtype=dtype)
    groups, length = draw(st.integers(1, 2)), draw(st.integers(2, 4))
    channels, bias = groups * draw(st.integers(1, 2)), draw(_FLAG)
    if kind == "GroupNorm":
        tensor = floats(batch, channels, *lead, length, dtype=dtype)
        return make(draw, call("nn.GroupNorm", groups, channels, eps=eps, bias=bias), tensor, dtype=dtype)
    layer = call(f"nn.{kind}", channels, eps=eps, affine=True, bias=bias)
    # One or two axes of length 1 at the end: a mean over a line is one over a plane.
    spatial = [length, *[draw(st.integers(1, 2)) for _ in range(int(kind[-2]) - 1)]]
    return make(draw, layer, floats(batch, channels, *spatial, dtype=dtype), dtype=dtype)


@st.composite
def frozen_batch_norms(draw: Draw, dtype: str = "torch.float64", kind: str = "BatchNorm2d") -> Case:
    """Batch norm in evaluation mode: statistics are constants, scale and shift are trained."""
    axes = 2 if kind == "SyncBatchNorm" else int(kind[-2])
    channels, spatial = draw(_SIZES), [draw(st.integers(1, 3)) for _ in range(axes)]
    layer = call(f"nn.{kind}", channels, eps=draw(st.none() | st.just(1e-2)), bias=draw(_FLAG))
    tensor = floats(draw(_SIZES), channels, *spatial, dtype=dtype)
    return make(draw, f"{layer}.eval()", tensor, dtype=dtype)


@st.composite
def activations(draw: Draw, dtype: str = "torch.float64") -> Case:
    """``nn.PReLU`` with one slope or one for each channel."""
    channels = draw(_SIZES)
    slopes = draw(st.sampled_from([None, channels]))
    layer = call("nn.PReLU", num_parameters=slopes, init=draw(st.none() | st.just(0.5)))
    return make(
        draw, layer, floats(draw(_SIZES), channels, *draw(st.lists(_SIZES, max_size=2)), dtype=dtype), dtype=dtype
    )


@st.composite
def classifiers(draw: Draw, dtype: str = "torch.float64", kind: str = "LinearCrossEntropyLoss") -> Case:
    """Losses that hold a classifier: with labels, one loss for each sample."""
    batch, classes = draw(_SIZES), draw(st.integers(3, 5))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch))
    if kind == "LinearCrossEntropyLoss":
        width = draw(st.integers(2, 5))
        layer = call(
            "nn.LinearCrossEntropyLoss", width, classes, reduction="'none'", bias=draw(_FLAG),
            label_smoothing=draw(st.none() | st.just(0.2)), ignore_index=draw(st.none() | st.just(1)),
            weight=draw(st.none() | st.just(f"torch.linspace(0.5, 2, {classes}, dtype={dtype})")),
        )  # fmt: skip
    else:
        # The width of a cluster is that of the input divided by div_value and its powers.
        width, cutoffs = draw(st.integers(16, 18)), draw(st.sampled_from([[1], [2], [1, 2]]))
        layer = call(
            "nn.AdaptiveLogSoftmaxWithLoss", width, classes, cutoffs, div_value=draw(st.none() | st.just(2.0)),
            head_bias=draw(_FLAG),
        )  # fmt: skip
    return make(draw, layer, floats(batch, width, dtype=dtype), f"torch.tensor({labels})", dtype=dtype)


_MAPS = ("'matrix_exp'", "'cayley'", "'householder'")


@st.composite
def parametrized(draw: Draw, dtype: str = "torch.float64", kind: str | None = None) -> Case:
    """A linear layer or convolution whose weight is normalised or orthogonal (by ``nn.utils.parametrizations``)."""
    kind = kind or draw(st.sampled_from(["weight_norm", "spectral_norm", "orthogonal"]))
    batch, width, out = draw(_SIZES), draw(st.integers(2, 4)), draw(st.integers(2, 4))
    convolved = draw(_FLAG)
    layer = call("nn.Conv1d", width, out, draw(st.integers(1, 2))) if convolved else call("nn.Linear", width, out)
    options: dict[str, Any] = {"dim": draw(st.sampled_from([None, 1]))}
    if kind == "spectral_norm":
        options |= {"n_power_iterations": draw(st.none() | st.just(2)), "eps": draw(st.none() | st.just(1e-6))}
    if kind == "orthogonal":
        options = {"orthogonal_map": draw(st.none() | st.sampled_from(_MAPS)), "use_trivialization": draw(_FLAG)}
    shape = (width, draw(st.integers(2, 4))) if convolved else (draw(_SIZES), width)
    layer = call(f"nn.utils.parametrizations.{kind}", layer, **options)
    return make(draw, layer, floats(batch, *shape, dtype=dtype), dtype=dtype)


@st.composite
def compositions(draw: Draw, dtype: str = "torch.float64") -> Case:
    """Layers used in ways that hooks on modules get wrong: twice, on frames, before an in-place op."""
    batch, width, frames = draw(_SIZES), draw(st.integers(2, 4)), draw(_SIZES)
    layer = call("nn.Linear", width, width, bias=draw(_FLAG))
    kind = draw(st.sampled_from(["twice", "frames", "inplace", "prelu", "low-rank"]))
    if kind == "twice":
        layer = f"(lambda layer: nn.Sequential(layer, nn.Tanh(), layer))({layer})"
    elif kind == "frames":
        layer = f"nn.Sequential(nn.Flatten(0, 1), {layer}, nn.Unflatten(0, (-1, {frames})))"
    elif kind == "inplace":
        layer = f"nn.Sequential({layer}, nn.ReLU(inplace=True), {layer})"
    elif kind == "prelu":
        layer = f"nn.Sequential({layer}, nn.PReLU({draw(st.sampled_from([1, frames]))}))"
    else:
        layer = f"nn.Sequential(nn.Linear({width}, 1, bias=False), nn.Linear(1, {width}, bias=False))"
    return make(draw, layer, floats(batch, frames, width, dtype=dtype), dtype=dtype)
