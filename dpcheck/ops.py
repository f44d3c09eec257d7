"""What kind of ATen op a node calls."""

from __future__ import annotations

from typing import Any

import torch

# Elementwise with broadcasting, without torch's tag for it.
_ELEMENTWISE = frozenset(
    {
        "_to_copy", "to", "threshold_backward", "leaky_relu_backward", "elu_backward", "softplus_backward", "where",
        "hardtanh_backward", "hardswish_backward", "hardsigmoid_backward", "mish_backward", "masked_fill", "prelu",
        "_prelu_kernel", "_prelu_kernel_backward", "rrelu_with_noise", "rrelu_with_noise_backward",
        "log_sigmoid_forward", "log_sigmoid_backward",
        "softshrink_backward", "hardshrink_backward", "fake_quantize_per_tensor_affine_cachemask", "complex", "polar",
        "real", "imag", "rsub", "binary_cross_entropy_with_logits", "logit_backward", "hardtanh", "hardswish",
        "hardshrink", "softshrink", "heaviside", "nan_to_num", "floor_divide",
    }
)  # fmt: skip

# Namespaces of ops that the tables of this package speak of.
TORCH = ("aten", "prims")


def is_pointwise(target: Any) -> bool:
    """Whether each element of the result depends on the elements of the arguments at its own (broadcast) place."""
    # A tag on an op of somebody's own is a claim that nobody has looked at.
    tagged = torch.Tag.pointwise in getattr(target, "tags", ()) and namespace_of(target) in TORCH
    return tagged or packet_of(target) in _ELEMENTWISE


def namespace_of(target: Any) -> str:
    """Such as ``aten``, also for what is no op (``operator.getitem``)."""
    return str(getattr(target, "namespace", "aten"))


def packet_of(target: Any) -> str:
    """Such as ``mean`` for ``aten.mean.dim``, and ``mine.mean`` for an op of another library with the same name."""
    name = str(getattr(target, "overloadpacket", target))
    return name if namespace_of(target) not in TORCH else name.rpartition(".")[2]
