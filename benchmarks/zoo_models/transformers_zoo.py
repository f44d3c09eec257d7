"""Tiny random models of the transformers library: one for each architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo_models.entry import SAMPLES, Case, Entry, images, token_loss
from zoo_models.operators import declare
from zoo_models.transformers_sizes import EXTRA, SMALL

declare()

import transformers  # noqa: E402
import transformers.modeling_utils  # noqa: E402  (once, before the processes of the models are forked)

from zoo_models.transformers_pairs import entries as pairs  # noqa: E402

TOKENS = 12

DECODERS = (
    "gpt2 gpt_neo gpt_neox gptj gpt_bigcode opt bloom llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 "
    "falcon mpt codegen stablelm starcoder2 olmo olmo2 cohere cohere2 persimmon xglm biogpt ctrl openai-gpt granite "
    "glm nemotron helium smollm3 diffllama bitnet ernie4_5 modernbert-decoder doge xlnet"
)
STATE_SPACE = "mamba mamba2 falcon_mamba rwkv recurrent_gemma jamba zamba zamba2 bamba xlstm lfm2 qwen3_next"
EXPERTS = (
    "mixtral qwen2_moe qwen3_moe olmoe phimoe granitemoe jetmoe dbrx gpt_oss deepseek_v3 flex_olmo ernie4_5_moe minimax"
)
ENCODERS = (
    "albert bert big_bird convbert deberta deberta-v2 distilbert electra esm flaubert fnet funnel ibert layoutlm "
    "longformer luke megatron-bert mobilebert modernbert mpnet mra nystromformer rembert roberta roformer squeezebert "
    "tapas xlm xlm-roberta yoso reformer"
)
SEQUENCE = (
    "bart bigbird_pegasus blenderbot fsmt led longt5 m2m_100 marian mbart mt5 mvp pegasus pegasus_x plbart prophetnet "
    "t5 t5gemma umt5 switch_transformers nllb-moe"
)
VISION = (
    "beit bit convnext convnextv2 cvt data2vec-vision deit dinov2 donut-swin efficientnet focalnet hgnet_v2 hiera "
    "ijepa imagegpt levit mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pvt pvt_v2 regnet resnet "
    "segformer siglip swiftformer swin swinv2 textnet vit vit_msn"
)
AUDIO = (
    "audio-spectrogram-transformer data2vec-audio hubert sew sew-d unispeech unispeech-sat wav2vec2 wav2vec2-bert "
    "wav2vec2-conformer wavlm"
)
SPEECH = "whisper speech_to_text moonshine"


def small_config(name: str) -> Any:
    """The architecture's default configuration with every size that it has made tiny."""
    base = transformers.AutoConfig.for_model(name)
    known = {key: value for key, value in SMALL.items() if _fits(base, key, value)}
    sizes = {key: value for key, value in {**known, **EXTRA.get(name, {})}.items() if value is not None}
    config = transformers.AutoConfig.for_model(name, **sizes)
    config.use_cache = False
    return config


def _fits(config: Any, key: str, value: Any) -> bool:
    """Whether the size can be set and is of the kind of ``value`` (a number, or several); unset ids stay unset."""
    computed = getattr(type(config), key, None)
    if isinstance(computed, property) and computed.fset is None:
        return False
    default = getattr(config, key, None)
    return isinstance(default, tuple | list) if isinstance(value, tuple) else isinstance(default, int)


def _model(mapping: str, name: str) -> nn.Module:
    auto = getattr(transformers, mapping)
    model: nn.Module = auto.from_config(small_config(name))
    return model.train()


def tokens(vocabulary: int = 90) -> Tensor:
    # 0 to 4 are special tokens somewhere: a padding token would make samples of different length.
    return torch.randint(5, vocabulary, (SAMPLES, TOKENS))


def next_token(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits
    return token_loss(logits[:, :-1], ids[:, 1:])


def masked_token(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, labels = batch
    return token_loss(model(input_ids=ids).logits, labels)


def translation(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, target = batch
    logits = model(input_ids=ids, decoder_input_ids=target).logits
    return token_loss(logits[:, :-1], target[:, 1:])


def image_class(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    pixels, labels = batch
    # Image GPT reads colours as words.
    name = "pixel_values" if pixels.is_floating_point() else "input_ids"
    return nn.functional.cross_entropy(model(**{name: pixels}).logits, labels, reduction="none")


def audio_class(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    waves, labels = batch
    return nn.functional.cross_entropy(model(waves).logits, labels, reduction="none")


def dictation(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    waves, target = batch
    logits = model(waves, decoder_input_ids=target).logits
    return token_loss(logits[:, :-1], target[:, 1:])


def _decoder(name: str) -> Case:
    return _model("AutoModelForCausalLM", name), next_token, tokens()


def _encoder(name: str) -> Case:
    return _model("AutoModelForMaskedLM", name), masked_token, (tokens(), tokens())


def _sequence(name: str) -> Case:
    return _model("AutoModelForSeq2SeqLM", name), translation, (tokens(), tokens())


def _vision(name: str) -> Case:
    side = EXTRA.get(name, {}).get("image_size", 32)
    side = side if isinstance(side, int) else side[0]
    if name == "imagegpt":
        batch = (torch.randint(0, 60, (SAMPLES, 16)), torch.randint(0, 3, (SAMPLES,)))
    else:
        batch = images(side, 3)
    return _model("AutoModelForImageClassification", name), image_class, batch


def _audio(name: str) -> Case:
    shape = {"audio-spectrogram-transformer": (64, 32), "wav2vec2-bert": (24, 16)}.get(name, (1200,))
    return (
        _model("AutoModelForAudioClassification", name),
        audio_class,
        (torch.randn(SAMPLES, *shape), torch.randint(0, 3, (SAMPLES,))),
    )


def _speech(name: str) -> Case:
    shape = {"whisper": (16, 128), "speech_to_text": (48, 16)}.get(name, (3000,))
    return _model("AutoModelForSpeechSeq2Seq", name), dictation, (torch.randn(SAMPLES, *shape), tokens())


def entries() -> list[Entry]:
    """Every architecture that the benchmark runs."""
    kinds: tuple[tuple[str, str, Callable[[str], Case]], ...] = (
        ("decoder", DECODERS, _decoder),
        ("state space", STATE_SPACE, _decoder),
        ("experts", EXPERTS, _decoder),
        ("encoder", ENCODERS, _encoder),
        ("encoder-decoder", SEQUENCE, _sequence),
        ("vision", VISION, _vision),
        ("audio", AUDIO, _audio),
        ("speech", SPEECH, _speech),
    )
    found = [
        Entry(name, kind, lambda name=name, make=make: make(name))  # type: ignore[misc]
        for kind, names, make in kinds
        for name in names.split()
    ]
    return found + pairs()
