"""Hypothesis strategies of layers over sequences: recurrent layers and their cells, attention, Transformers."""

from __future__ import annotations

from hypothesis import strategies as st

from dpcheck.cases import Case
from dpcheck.strategies import Draw, call, floats, make

_SIZES = st.integers(1, 4)
_FLAG = st.booleans()
_DROPOUT = st.sampled_from([0.0, 0.0, 0.3])


@st.composite
def recurrents(draw: Draw, dtype: str = "torch.float64", kind: str | None = None) -> Case:
    """LSTM, GRU and RNN (or one ``kind``): layers, both directions, projections, time first, packed sequences."""
    kind = kind or draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    width, hidden, layers = draw(_SIZES), draw(st.integers(2, 4)), draw(st.integers(1, 2))
    projected = draw(st.none() | st.integers(1, hidden - 1)) if kind == "LSTM" else None
    form = draw(st.sampled_from(["batch first", "time first", "packed"]))
    layer = call(
        f"nn.{kind}", width, hidden, num_layers=layers, bias=draw(_FLAG), batch_first=form != "time first",
        bidirectional=draw(_FLAG), proj_size=projected, dropout=draw(_DROPOUT) if layers > 1 else None,
        nonlinearity="'relu'" if kind == "RNN" and draw(_FLAG) else None,
    )  # fmt: skip
    batch, length = draw(_SIZES), draw(st.integers(1, 3))
    tensors = [floats(batch, length, width, dtype=dtype)]
    if form == "packed":
        lengths = draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch))
        tensors.append(f"torch.tensor({lengths})")
    wrapper = {"batch first": "", "time first": "TimeFirst", "packed": "Packed"}[form]
    return make(draw, f"{wrapper}({layer})" if wrapper else layer, *tensors, dtype=dtype)


@st.composite
def cells(draw: Draw, dtype: str = "torch.float64", kind: str | None = None) -> Case:
    """One step of a recurrent layer, from a state of its own or from zeros."""
    kind = kind or draw(st.sampled_from(["LSTMCell", "GRUCell", "RNNCell"]))
    width, hidden, batch = draw(_SIZES), draw(st.integers(2, 4)), draw(_SIZES)
    nonlinearity = draw(st.none() | st.just("'relu'")) if kind == "RNNCell" else None
    layer = call(f"nn.{kind}", width, hidden, bias=draw(_FLAG), nonlinearity=nonlinearity)
    state = floats(batch, hidden, dtype=dtype)
    given = [f"({state}, {state})" if kind == "LSTMCell" else state] if draw(_FLAG) else []
    return make(draw, layer, floats(batch, width, dtype=dtype), *given, dtype=dtype)


@st.composite
def attentions(draw: Draw, dtype: str = "torch.float64", kind: str | None = None) -> Case:
    """``nn.MultiheadAttention`` with queries, keys and values of their own, and Transformers; or one ``kind``."""
    kind = kind or draw(st.sampled_from(["TransformerEncoderLayer", "MultiheadAttention"]))
    batch, length, heads = draw(_SIZES), draw(_SIZES), draw(st.integers(1, 2))
    # Layer norm of one feature is constant: gradients would be nothing but rounding.
    width, first = heads * draw(st.integers(2, 3)), draw(_FLAG)
    if kind == "MultiheadAttention":
        kdim, vdim, keys = draw(st.none() | _SIZES), draw(st.none() | _SIZES), draw(_SIZES)
        layer = call(
            "nn.MultiheadAttention", width, heads, bias=draw(_FLAG), add_bias_kv=draw(_FLAG),
            add_zero_attn=draw(_FLAG), dropout=draw(_DROPOUT), kdim=kdim, vdim=vdim, batch_first=first,
        )  # fmt: skip
        shapes = [(length, width), (keys, kdim or width), (keys, vdim or width)]
        # Keys that are left out, never all of them.
        masks = [f"torch.arange({keys}) > torch.arange({batch})[:, None]"] if first and draw(_FLAG) else []
    else:
        layer = _transformer(draw, kind, width, heads, first)
        memory = draw(_SIZES), width
        shapes = [(length, width)] if "Encoder" in kind else [(length, width), memory]
        masks = []
    tensors = [floats(batch, *shape, dtype=dtype) for shape in shapes]
    return make(draw, layer if first else f"TimeFirst({layer})", *tensors, *masks, dtype=dtype)


def _transformer(draw: Draw, kind: str, width: int, heads: int, first: bool) -> str:
    common = {
        "dim_feedforward": draw(_SIZES), "dropout": draw(_DROPOUT), "batch_first": first, "norm_first": draw(_FLAG),
        "bias": draw(_FLAG), "activation": draw(st.none() | st.just("'gelu'")),
        "layer_norm_eps": draw(st.none() | st.just(1e-2)),
    }  # fmt: skip
    if kind == "Transformer":
        depth = {"num_encoder_layers": draw(st.integers(1, 2)), "num_decoder_layers": draw(st.integers(1, 2))}
        return call("nn.Transformer", width, heads, **depth, **common)
    if kind.endswith("Layer"):
        return call(f"nn.{kind}", width, heads, **common)
    norm = draw(st.none() | st.just(f"nn.LayerNorm({width})"))
    options = {"norm": norm, "num_layers": draw(st.integers(1, 2))}
    if kind == "TransformerEncoder":
        # The fast path wants padding masks and evaluation without gradients; here it must not change anything.
        options |= {"enable_nested_tensor": draw(_FLAG), "mask_check": draw(_FLAG)}
    stack = call(f"nn.{kind}", call(f"nn.{kind}Layer", width, heads, **common), **options)
    return f"{stack}.eval()" if draw(_FLAG) else stack
