"""Random models of torchvision: one for each classification, video and segmentation family, on small images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo_models.entry import SAMPLES, Case, Entry, classify, images, per_sample
from zoo_models.operators import declare

declare()

import torchvision  # noqa: E402

# The family's smallest member: (side of the image, arguments).
IMAGES: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (64, {}),
    "convnext_tiny": (32, {}),
    "densenet121": (32, {}),
    "efficientnet_b0": (32, {}),
    "efficientnet_v2_s": (32, {}),
    "googlenet": (64, {"init_weights": False}),
    "inception_v3": (96, {"init_weights": False, "aux_logits": False}),
    "mnasnet0_5": (32, {}),
    "mobilenet_v2": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "regnet_x_400mf": (32, {}),
    "regnet_y_400mf": (32, {}),
    "resnet18": (32, {}),
    "resnet50": (32, {}),
    "resnext50_32x4d": (32, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "squeezenet1_0": (64, {}),
    "swin_t": (32, {}),
    "swin_v2_t": (32, {}),
    "vgg11": (32, {}),
    "vgg11_bn": (32, {}),
    "vit_b_32": (32, {"image_size": 32}),
    "wide_resnet50_2": (32, {}),
}
# (side, frames)
VIDEO = {"mc3_18": (32, 4), "r2plus1d_18": (32, 4), "r3d_18": (32, 4), "swin3d_t": (32, 4)}
MASKS = ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")


def _image(name: str) -> Case:
    side, arguments = IMAGES[name]
    model = torchvision.models.get_model(name, num_classes=5, **arguments)
    return model.train(), classify, images(side, 5)


def _maxvit(name: str) -> Case:
    model = torchvision.models.MaxVit(
        input_size=(64, 64),
        stem_channels=16,
        partition_size=2,
        block_channels=[16, 32],
        block_layers=[1, 2],
        head_dim=16,
        stochastic_depth_prob=0.2,
        num_classes=5,
    )
    return model.train(), classify, images(64, 5)


def _video(name: str) -> Case:
    side, frames = VIDEO[name]
    model = torchvision.models.get_model(name, num_classes=5)
    return model.train(), classify, (torch.randn(SAMPLES, 3, frames, side, side), torch.randint(0, 5, (SAMPLES,)))


def segmented(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    pixels, labels = batch
    return per_sample(nn.functional.cross_entropy(model(pixels)["out"], labels, reduction="none"))


def _mask(name: str) -> Case:
    model = torchvision.models.get_model(name, num_classes=5, weights_backbone=None)
    return model.train(), segmented, (torch.randn(SAMPLES, 3, 64, 64), torch.randint(0, 5, (SAMPLES, 64, 64)))


def entries() -> list[Entry]:
    """Every family that the benchmark runs."""
    kinds = (
        ("vision", IMAGES, _image),
        ("vision", ("maxvit",), _maxvit),
        ("video", VIDEO, _video),
        ("segmentation", MASKS, _mask),
    )
    return [
        Entry(name, kind, lambda name=name, make=make: make(name))  # type: ignore[misc]
        for kind, names, make in kinds
        for name in names
    ]
