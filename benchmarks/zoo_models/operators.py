"""Declares torchvision's operators, so that it imports beside a torch that its compiled library was not built for.

Only their schemas: classification models call none of them.
"""

from __future__ import annotations

import importlib

import torch

_BOXES = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZES = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_BACK = "Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_BACK_AT = "Tensor grad, Tensor rois, Tensor {}, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_CONVOLUTION = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask"
)
_DEFORMED = "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"qroi_align({_BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_BOXES}) -> (Tensor, Tensor)",
    f"ps_roi_align({_BOXES}, int sampling_ratio) -> (Tensor, Tensor)",
    f"ps_roi_pool({_BOXES}) -> (Tensor, Tensor)",
    f"deform_conv2d({_DEFORMED}, {_CONVOLUTION}) -> Tensor",
    f"_roi_align_backward({_BACK}, {_SIZES}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_pool_backward({_BACK_AT.format('argmax')}, {_SIZES}) -> Tensor",
    f"_ps_roi_align_backward({_BACK_AT.format('channel_mapping')}, int sampling_ratio, {_SIZES}) -> Tensor",
    f"_ps_roi_pool_backward({_BACK_AT.format('channel_mapping')}, {_SIZES}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORMED}, {_CONVOLUTION}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)

_library: torch.library.Library | None = None


def declare() -> None:
    """Import torchvision, declaring its operators first if its own library does not load."""
    global _library
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError:
        pass
    # What the failed import left behind is in sys.modules no more, but its registrations are: declare, import again.
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    importlib.import_module("torchvision")
