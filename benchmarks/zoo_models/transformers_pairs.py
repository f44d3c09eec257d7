"""Architectures of several inputs or with losses of their own: text beside images, video, contrastive losses."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from zoo_models.entry import SAMPLES, Case, Entry, per_sample

_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def _ids(length: int = 10) -> Tensor:
    return torch.randint(5, 90, (SAMPLES, length))


def _pixels(side: int = 32) -> Tensor:
    return torch.randn(SAMPLES, 3, side, side)


def _pair(model: str) -> nn.Module:
    text = {**_TEXT, "vocab_size": 99, "max_position_embeddings": 32, "projection_dim": 16}
    image = {**_TEXT, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = getattr(transformers, f"{model}Config")(text_config=text, vision_config=image, projection_dim=16)
    built: nn.Module = getattr(transformers, f"{model}Model")(config)
    return built.train()


def matched(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The distance of each image from its own text: clean."""
    ids, pixels = batch
    out = model(input_ids=ids, pixel_values=pixels)
    return 1 - (out.text_embeds * out.image_embeds).sum(-1)


def contrasted(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Each image against all texts of the batch: samples mix."""
    ids, pixels = batch
    logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
    return nn.functional.cross_entropy(logits, torch.arange(len(ids)), reduction="none")


def _clip() -> Case:
    return _pair("CLIP"), matched, (_ids(), _pixels())


def _clip_contrasted() -> Case:
    return _pair("CLIP"), contrasted, (_ids(), _pixels())


def _siglip_contrasted() -> Case:
    return _pair("Siglip"), contrasted, (_ids(), _pixels())


def answered(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    ids, pixels, labels = batch
    logits = model(input_ids=ids, pixel_values=pixels).logits
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _vilt() -> Case:
    config = transformers.ViltConfig(
        **_TEXT,
        vocab_size=99,
        max_position_embeddings=40,
        image_size=32,
        patch_size=8,
        num_labels=3,
        max_image_length=-1,
    )
    batch = (_ids(), _pixels(), torch.randint(0, 3, (SAMPLES,)))
    return transformers.ViltForQuestionAnswering(config).train(), answered, batch


def film(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    frames, labels = batch
    return nn.functional.cross_entropy(model(pixel_values=frames).logits, labels, reduction="none")


def _video(name: str, **more: Any) -> Case:
    sizes = {**_TEXT, "image_size": 16, "num_frames": 4, "num_labels": 3, **more}
    config = getattr(transformers, f"{name}Config")(**sizes)
    model: nn.Module = getattr(transformers, f"{name}ForVideoClassification")(config)
    return model.train(), film, (torch.randn(SAMPLES, 4, 3, 16, 16), torch.randint(0, 3, (SAMPLES,)))


def forecast(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    past, future = batch
    return per_sample((model(past_values=past).prediction_outputs - future).square())


def _series(name: str, **more: Any) -> Case:
    config = getattr(transformers, f"{name}Config")(
        num_input_channels=2, context_length=16, prediction_length=4, patch_length=4, patch_stride=4, d_model=16,
        num_hidden_layers=2, num_layers=2, num_attention_heads=2, ffn_dim=32, **more,
    )  # fmt: skip
    model: nn.Module = getattr(transformers, f"{name}ForPrediction")(config)
    return model.train(), forecast, (torch.randn(SAMPLES, 16, 2), torch.randn(SAMPLES, 4, 2))


def actions(model: Any, batch: tuple[Tensor, ...]) -> Tensor:
    states, taken, returns, steps = batch
    mask = torch.ones(steps.shape, dtype=torch.long)
    out = model(
        states=states, actions=taken, rewards=returns, returns_to_go=returns, timesteps=steps, attention_mask=mask
    )
    return per_sample((out.action_preds - taken).square())


def _decision() -> Case:
    config = transformers.DecisionTransformerConfig(
        state_dim=5, act_dim=3, hidden_size=32, max_ep_len=20, n_layer=2, n_head=4, n_positions=64
    )
    steps = torch.arange(6).repeat(SAMPLES, 1)
    batch = (torch.randn(SAMPLES, 6, 5), torch.randn(SAMPLES, 6, 3), torch.randn(SAMPLES, 6, 1), steps)
    return transformers.DecisionTransformerModel(config).train(), actions, batch


def segmented(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    pixels, labels = batch
    logits = model(pixel_values=pixels).logits
    return per_sample(nn.functional.cross_entropy(logits, labels, reduction="none"))


def _segformer() -> Case:
    config = transformers.SegformerConfig(
        hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], decoder_hidden_size=16, num_labels=3
    )
    labels = torch.randint(0, 3, (SAMPLES, 8, 8))
    return transformers.SegformerForSemanticSegmentation(config).train(), segmented, (_pixels(), labels)


def reconstructed(model: Any, pixels: Tensor) -> Tensor:
    return per_sample(model(pixel_values=pixels).logits.square())


def _masked_autoencoder() -> Case:
    config = transformers.ViTMAEConfig(
        **_TEXT, image_size=32, patch_size=8, decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
    return transformers.ViTMAEForPreTraining(config).train(), reconstructed, _pixels()


def entries() -> list[Entry]:
    return [
        Entry("clip", "pairs", _clip),
        Entry("clip-contrastive", "pairs", _clip_contrasted),
        Entry("siglip-contrastive", "pairs", _siglip_contrasted),
        Entry("vilt", "pairs", _vilt),
        Entry("videomae", "video", lambda: _video("VideoMAE", patch_size=8, tubelet_size=2)),
        Entry("vivit", "video", lambda: _video("Vivit", tubelet_size=[2, 8, 8])),
        Entry("timesformer", "video", lambda: _video("Timesformer", patch_size=8)),
        Entry("patchtst", "series", lambda: _series("PatchTST")),
        Entry("patchtsmixer", "series", lambda: _series("PatchTSMixer")),
        Entry("decision_transformer", "series", _decision),
        Entry("segformer-semantic", "vision", _segformer),
        Entry("vit_mae", "vision", _masked_autoencoder),
    ]
