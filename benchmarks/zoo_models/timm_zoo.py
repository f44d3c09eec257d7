"""Small random models of timm: one for each model family (a file of timm's), shallow, on small images."""

from __future__ import annotations

from typing import Any

from zoo_models.entry import Case, Entry, classify, images
from zoo_models.operators import declare

declare()

import timm  # noqa: E402

# Model: (side of the image, arguments that make it shallow).
FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (32, {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 4}),
    "botnet26t_256": (64, {"img_size": 64}),
    "caformer_s18": (32, {}),
    "cait_xxs24_224": (32, {"img_size": 32, "depth": 2}),
    "coat_lite_tiny": (64, {"img_size": 64}),
    "coatnet_0_224": (64, {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": (16, 24, 32, 64)}),
    "convit_tiny": (32, {"img_size": 32, "depth": 3}),
    "convmixer_768_32": (32, {}),
    "convnext_atto": (32, {"depths": (1, 1, 1, 1)}),
    "crossvit_9_240": (240, {"depth": ((1, 1, 0), (1, 1, 0), (1, 1, 0))}),
    "cs3darknet_focus_s": (64, {}),
    "cspnext_tiny": (64, {}),
    "davit_tiny": (32, {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 64), "num_heads": (2, 2, 2, 2)}),
    "deit_tiny_distilled_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "densenet121": (32, {"block_config": (2, 2, 2, 2)}),
    "dla46_c": (32, {}),
    "dm_nfnet_f0": (32, {}),
    "dpn48b": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (64, {"img_size": 64}),
    "efficientnet_b0": (32, {}),
    "efficientvim_m1": (64, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (224, {}),
    "eva02_tiny_patch14_224": (28, {"img_size": 28, "depth": 2}),
    "fasternet_t0": (32, {}),
    "fastvit_t8": (64, {}),
    "focalnet_tiny_srf": (32, {}),
    "gcvit_xxtiny": (224, {}),
    "gernet_s": (32, {}),
    "ghostnet_050": (32, {}),
    "gmlp_ti16_224": (32, {"img_size": 32}),
    "hardcorenas_a": (32, {}),
    "hgnetv2_b0": (64, {}),
    "hiera_tiny_224": (64, {"img_size": 64, "stages": (1, 1, 1, 1)}),
    "hrnet_w18_small": (64, {}),
    "iformer_t": (64, {}),
    "inception_next_atto": (64, {}),
    "inception_resnet_v2": (96, {}),
    "inception_v3": (96, {}),
    "inception_v4": (96, {}),
    "lambda_resnet26t": (64, {"img_size": 64}),
    "lcnet_050": (32, {}),
    "lcnetv2_small": (64, {}),
    "legacy_seresnet18": (64, {}),
    "legacy_xception": (64, {}),
    "levit_128s": (64, {"img_size": 64}),
    "lowformer_b0": (64, {}),
    "mambaout_femto": (32, {}),
    "maxvit_pico_rw_256": (64, {"img_size": 64}),
    "mixer_s16_224": (32, {"img_size": 32}),
    "mobilenetv3_small_050": (32, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "mvitv2_tiny": (64, {"img_size": 64}),
    "naflexvit_base_patch16_gap": (32, {"depth": 2, "embed_dim": 48, "num_heads": 4}),
    "nasnetalarge": (96, {}),
    "nest_tiny": (64, {"img_size": 64}),
    "nextvit_small": (64, {}),
    "nf_resnet26": (32, {}),
    "pit_ti_224": (64, {"img_size": 64}),
    "poolformer_s12": (32, {}),
    "pvt_v2_b0": (64, {}),
    "rdnet_tiny": (64, {}),
    "regnetx_002": (32, {}),
    "repghostnet_050": (32, {}),
    "repvit_m0_9": (64, {}),
    "res2net50_48w_2s": (32, {}),
    "resmlp_12_224": (32, {"img_size": 32}),
    "resnest14d": (64, {}),
    "resnet18": (32, {}),
    "resnetv2_50": (32, {}),
    "rexnet_100": (32, {}),
    "samvit_base_patch16": (64, {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 4}),
    "selecsls42": (64, {}),
    "sequencer2d_s": (32, {"img_size": 32, "layers": (1, 1, 1, 1)}),
    "shvit_s1": (128, {}),
    "skresnet18": (32, {}),
    "starnet_s050": (64, {}),
    "swiftformer_xs": (64, {}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}),
    "swinv2_cr_tiny_224": (56, {"img_size": 56, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}),
    "tiny_vit_5m_224": (64, {}),
    "tnt_s_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "tresnet_m": (64, {}),
    "twins_svt_small": (64, {}),
    "visformer_tiny": (64, {"img_size": 64}),
    "vit_relpos_small_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "vit_tiny_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "vit_tiny_r_s16_p8_224": (64, {"img_size": 64, "depth": 2}),
    "vitamin_small_224": (64, {"img_size": 64}),
    "volo_d1_224": (64, {"img_size": 64}),
    "vovnet39a": (64, {}),
    "xception41": (64, {}),
    "xcit_nano_12_p16_224": (32, {"img_size": 32, "depth": 2}),
}


def _make(name: str) -> Case:
    side, arguments = FAMILIES[name]
    model = timm.create_model(name, num_classes=5, **arguments)
    return model.train(), classify, images(side, 5)


def entries() -> list[Entry]:
    """Every family that the benchmark runs."""
    return [Entry(name, "vision", lambda name=name: _make(name)) for name in FAMILIES]  # type: ignore[misc]
