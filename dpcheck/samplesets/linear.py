"""What keeps a sum over samples a sum: the ops that are linear in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dpcheck.samplesets.lattice import Samples, several
from dpcheck.samplesets.moves import move
from dpcheck.samplesets.op import RULES, Op, is_pointwise

# Linear in the first argument, whatever the others are, as long as these depend on no sample.
_FIRST = frozenset(
    {
        "sum", "mean", "neg", "div", "true_divide", "_to_copy", "to", "cumsum", "constant_pad_nd", "index", "gather",
        "index_select", "embedding_dense_backward", "real", "imag", "view_as_real", "view_as_complex", "_fft_r2c",
        "_fft_c2r", "_fft_c2c", "masked_fill", "convolution", "im2col", "col2im", "avg_pool2d", "_unsafe_index",
        "native_dropout_backward", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d",
        "upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "upsample_nearest2d_backward",
        "upsample_linear1d", "upsample_linear1d_backward", "_upsample_bicubic2d_aa", "_upsample_bicubic2d_aa_backward",
        "_upsample_bilinear2d_aa", "_upsample_bilinear2d_aa_backward", "_fused_rms_norm_backward_input", "trace",
        "reflection_pad1d_backward", "reflection_pad2d_backward", "replication_pad1d_backward",
        "replication_pad2d_backward", "threshold_backward", "tanh_backward", "sigmoid_backward", "gelu_backward",
        "silu_backward", "_softmax_backward_data", "_log_softmax_backward_data", "native_layer_norm_backward",
        "native_group_norm_backward", "native_batch_norm_backward", "convolution_backward", "leaky_relu_backward",
        "elu_backward", "softplus_backward", "hardtanh_backward", "hardswish_backward", "logit_backward",
        "glu_backward", "unfold_backward", "_conj", "_neg_view", "conj_physical", "nll_loss_backward",
        "nll_loss2d_backward", "mse_loss_backward", "huber_loss_backward", "smooth_l1_loss_backward",
        "binary_cross_entropy_backward", "hardsigmoid_backward", "mish_backward", "log_sigmoid_backward",
        "_prelu_kernel_backward", "_scaled_dot_product_flash_attention_for_cpu_backward",
        "max_pool2d_with_indices_backward", "avg_pool2d_backward", "_adaptive_avg_pool2d_backward",
    }
)  # fmt: skip
# Linear in either factor, not in both.
_BILINEAR = frozenset({"mul", "mm", "bmm", "dot"})
# Linear in all arguments together: a constant that is not zero would belong to no sample.
_JOINT = frozenset({"add", "sub", "rsub", "cat", "stack", "slice_scatter", "select_scatter", "addmm", "baddbmm"})


def of_a_sum(op: Op, values: list[Samples]) -> Any:
    """The result of an op one of whose arguments already is a sum over samples."""
    if op.packet in ("copy", "fill"):
        return _overwritten(op)
    sums = [v for v in values if v.mixed()]
    others = [v for v in values if not v.mixed()]
    sums_only = all(v.additive for v in sums)
    additive = sums_only and ((all(v.empty() for v in others) and _linear(op, sums, others)) or adds_terms(op, others))
    # Not in the tables below: it may be linear all the same, which nobody has proven or refuted.
    unlisted = not additive and not is_pointwise(op.target) and sums_only
    inexact = unlisted or any(v.inexact for v in values)
    return op.each(lambda out: several(out.shape, op.batch, additive=additive, inexact=inexact))


def adds_terms(op: Op, terms: list[Samples]) -> bool:
    """Whether values that each are one sample's are added: the gradient of a loop over samples is collected so."""
    # A term of no sample would be a constant that stays when every sample is gone.
    owned = all(v.zero or _one_owner(v) for v in terms)
    floating = isinstance(op.out, Tensor) and op.out.is_floating_point()
    return op.backward and op.packet in ("add", "sub") and floating and len(op.values()) == 2 and owned


def _one_owner(value: Samples) -> bool:
    owners = value.owners().unique().tolist()
    return not value.inexact and len(owners) == 1 and owners[0] >= 0


def _overwritten(op: Op) -> Samples:
    """Nothing is left of what was there before."""
    source = op.args[1]
    if not isinstance(source, Samples):
        return op.none().with_(zero=source == 0)
    result = op.join(source).with_(zero=source.zero)
    if source.mixed():
        return result.with_(additive=source.additive and source.shape == op.out.shape and op.out.is_floating_point())
    return result


def _linear(op: Op, sums: list[Samples], others: list[Samples]) -> bool:
    first = op.args[0] if op.args else None
    if op.name == "aten.view.dtype":
        return False
    if RULES.get(op.packet) is move or op.packet in _FIRST:
        return isinstance(first, Samples) and first.mixed() and len(sums) == 1 and not _constant_added(op)
    if op.packet in _BILINEAR:
        return len(sums) == 1
    if op.packet in _JOINT:
        if op.packet in ("addmm", "baddbmm"):
            return False
        # `add(sum, 3)` has a constant that no sample owns.
        numbers = [a for a in op.args[:2] if isinstance(a, int | float)] if op.packet in ("add", "sub", "rsub") else []
        return not numbers and all(v.zero for v in others)
    if op.packet == "where":
        chosen = op.args[1:3]
        return all(isinstance(v, Samples) and (v.mixed() or v.zero) for v in chosen)
    if op.packet in ("index_put", "_unsafe_index_put", "scatter_add", "index_add"):
        data = (op.args[0], op.args[3 if op.packet in ("scatter_add", "index_add") else 2])
        known = all(v.zero or v.const is not None for v in others)
        return known and all(isinstance(v, Samples) and (v.mixed() or v.zero) for v in data)
    return False


def _constant_added(op: Op) -> bool:
    if op.packet in ("_to_copy", "to"):
        return not (op.out.is_floating_point() or op.out.is_complex())
    if op.packet == "convolution":
        return op.args[2] is not None
    if op.packet == "constant_pad_nd":
        return bool(op.arg(2, "value", 0) != 0)
    if op.packet == "masked_fill":
        fill = op.arg(2, "value", 0)
        return not (isinstance(fill, int | float) and fill == 0)
    return False
