"""A strategy for every layer of ``torch.nn`` that has parameters; together they are ``modules()``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hypothesis import strategies as st

from dpcheck.cases import Case
from dpcheck.sequences import attentions, cells, recurrents
from dpcheck.strategies import (
    Draw,
    activations,
    bags,
    call,
    classifiers,
    compositions,
    convolutions,
    embeddings,
    floats,
    frozen_batch_norms,
    linears,
    make,
    norms,
    parametrized,
    transposed_convolutions,
)

Strategy = Callable[..., st.SearchStrategy[Case]]
_SIZES = st.integers(1, 4)
# Lazy instance norm keeps running statistics by default, which are data.
_INSTANCE = {"affine": True, "track_running_stats": False}


@st.composite
def lazies(draw: Draw, dtype: str = "torch.float64", kind: str = "LazyLinear") -> Case:
    """Layers that learn their sizes from the first input, after it."""
    axes = int(kind[-2]) if kind[-1] == "d" else 0
    batch, width, sizes = draw(_SIZES), draw(st.integers(1, 3)), [draw(st.integers(2, 4)) for _ in range(axes)]
    norm, options = "Norm" in kind, {"bias": draw(st.booleans())}
    if norm:
        given: list[int] = []
        options |= {"eps": draw(st.none() | st.just(1e-2)), **(_INSTANCE if "Instance" in kind else {})}
    else:
        given = [draw(st.integers(1, 3)), *([draw(st.integers(1, 2))] if axes else [])]
    layer = f"materialised({call(f'nn.{kind}', *given, **options)}, 2, {', '.join(map(str, [width, *sizes]))})"
    if "Batch" in kind:
        layer += ".eval()"
    return make(draw, layer, floats(batch, width, *sizes, dtype=dtype), dtype=dtype)


def _layers() -> dict[str, Strategy]:
    found: dict[str, Strategy] = {
        "Embedding": embeddings, "EmbeddingBag": bags, "PReLU": activations,
        **{name: partial(classifiers, kind=name) for name in ("LinearCrossEntropyLoss", "AdaptiveLogSoftmaxWithLoss")},
        **{name: partial(linears, kind=name) for name in ("Linear", "Bilinear")},
        **{name: partial(norms, kind=name) for name in ("LayerNorm", "RMSNorm", "GroupNorm")},
        **{name: partial(recurrents, kind=name) for name in ("RNN", "LSTM", "GRU")},
        **{name: partial(cells, kind=name) for name in ("RNNCell", "LSTMCell", "GRUCell")},
        "MultiheadAttention": partial(attentions, kind="MultiheadAttention"),
        "SyncBatchNorm": partial(frozen_batch_norms, kind="SyncBatchNorm"),
        "LazyLinear": partial(lazies, kind="LazyLinear"), "Transformer": partial(attentions, kind="Transformer"),
    }  # fmt: skip
    for part in ("Encoder", "Decoder", "EncoderLayer", "DecoderLayer"):
        found[f"Transformer{part}"] = partial(attentions, kind=f"Transformer{part}")
    for name in ("weight_norm", "spectral_norm", "orthogonal"):
        found[f"utils.parametrizations.{name}"] = partial(parametrized, kind=name)
    for axes in (1, 2, 3):
        found[f"Conv{axes}d"] = partial(convolutions, axes=axes)
        found[f"ConvTranspose{axes}d"] = partial(transposed_convolutions, axes=axes)
        found[f"InstanceNorm{axes}d"] = partial(norms, kind=f"InstanceNorm{axes}d")
        found[f"BatchNorm{axes}d"] = partial(frozen_batch_norms, kind=f"BatchNorm{axes}d")
        for name in ("Conv", "ConvTranspose", "InstanceNorm", "BatchNorm"):
            found[f"Lazy{name}{axes}d"] = partial(lazies, kind=f"Lazy{name}{axes}d")
    return found


LAYERS: dict[str, Strategy] = _layers()
"""By the name of the class or parametrization in ``torch.nn``."""


def layers(name: str, dtype: str = "torch.float64") -> st.SearchStrategy[Case]:
    """One layer of ``torch.nn`` over its options, such as ``layers("Conv2d")``."""
    return LAYERS[name](dtype=dtype)


def modules(dtype: str = "torch.float64") -> st.SearchStrategy[Case]:
    """All of them, and compositions. ``dtype`` is source, such as ``torch.float32``."""
    return st.one_of(*(strategy(dtype=dtype) for strategy in (linears, embeddings, *LAYERS.values(), compositions)))
