"""The released sizes as functions that return a `SmolVLMConfig`.

They serve `smoljax inspect`, training from nothing and tests; a checkpoint is always read by its own
`config.json`. Values: the `config.json` of the named checkpoints.
"""

import dataclasses
from collections.abc import Callable

from smoljax.config import SmolVLMConfig, TextConfig, VisionConfig
from smoljax.errors import UsageError


def siglip_b16_512() -> VisionConfig:
    """SigLIP-B/16 at 512 px: the encoder of the 256M and 500M models."""
    return VisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_layers=12,
        num_heads=12,
        image_size=512,
        patch_size=16,
        layer_norm_eps=1e-6,
    )


def siglip_so400m_14_384() -> VisionConfig:
    """SigLIP-SO400M/14 at 384 px (27×27 patches): the encoder of the 2.2B models."""
    return VisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_layers=27,
        num_heads=16,
        image_size=384,
        patch_size=14,
        layer_norm_eps=1e-6,
    )


def _text_135m(vocab_size: int) -> TextConfig:
    return TextConfig(
        vocab_size=vocab_size,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        max_positions=8192,
    )


def _text_360m(vocab_size: int) -> TextConfig:
    return TextConfig(
        vocab_size=vocab_size,
        hidden_size=960,
        intermediate_size=2560,
        num_layers=32,
        num_heads=15,
        num_kv_heads=5,
        head_dim=64,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        max_positions=8192,
    )


def _text_1_7b(vocab_size: int, rope_theta: float, max_positions: int) -> TextConfig:
    return TextConfig(
        vocab_size=vocab_size,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=24,
        num_heads=32,
        num_kv_heads=32,
        head_dim=64,
        rope_theta=rope_theta,
        rms_norm_eps=1e-5,
        max_positions=max_positions,
    )


def _text_only(text: TextConfig) -> SmolVLMConfig:
    return SmolVLMConfig(
        vision=None,
        text=text,
        scale_factor=None,
        image_token_id=None,
        tie_embeddings=True,
        model_type="llama",
    )


def smolvlm_256m() -> SmolVLMConfig:
    """SmolVLM-256M (-Instruct, -Base): 256,484,928 parameters."""
    return SmolVLMConfig(
        vision=siglip_b16_512(),
        text=_text_135m(49280),
        scale_factor=4,
        image_token_id=49190,
        tie_embeddings=False,
        model_type="idefics3",
    )


def smolvlm_500m() -> SmolVLMConfig:
    """SmolVLM-500M (-Instruct, -Base)."""
    return SmolVLMConfig(
        vision=siglip_b16_512(),
        text=_text_360m(49280),
        scale_factor=4,
        image_token_id=49190,
        tie_embeddings=False,
        model_type="idefics3",
    )


def smolvlm_2_2b() -> SmolVLMConfig:
    """SmolVLM-Instruct (2.2B, first version): 49155 tokens, RoPE base 273768, 16k positions."""
    return SmolVLMConfig(
        vision=siglip_so400m_14_384(),
        text=_text_1_7b(49155, rope_theta=273_768.0, max_positions=16384),
        scale_factor=3,
        image_token_id=49153,
        tie_embeddings=False,
        model_type="idefics3",
    )


def smolvlm2_256m() -> SmolVLMConfig:
    """SmolVLM2-256M-Video-Instruct."""
    return dataclasses.replace(smolvlm_256m(), model_type="smolvlm")


def smolvlm2_500m() -> SmolVLMConfig:
    """SmolVLM2-500M-Video-Instruct."""
    return dataclasses.replace(smolvlm_500m(), model_type="smolvlm")


def smolvlm2_2_2b() -> SmolVLMConfig:
    """SmolVLM2-2.2B-Instruct. The RoPE base is the base LM's; a checkpoint's own config decides."""
    return SmolVLMConfig(
        vision=siglip_so400m_14_384(),
        text=_text_1_7b(49280, rope_theta=130_000.0, max_positions=8192),
        scale_factor=3,
        image_token_id=49190,
        tie_embeddings=False,
        model_type="smolvlm",
    )


def granite_docling_258m() -> SmolVLMConfig:
    """granite-docling-258M geometry: the tied relative with a vocabulary of 100352."""
    return SmolVLMConfig(
        vision=siglip_b16_512(),
        text=_text_135m(100352),
        scale_factor=4,
        image_token_id=100270,
        tie_embeddings=True,
        model_type="idefics3",
    )


def smollm2_135m() -> SmolVLMConfig:
    """SmolLM2-135M, text only."""
    return _text_only(_text_135m(49152))


def smollm2_360m() -> SmolVLMConfig:
    """SmolLM2-360M, text only."""
    return _text_only(_text_360m(49152))


def smollm2_1_7b() -> SmolVLMConfig:
    """SmolLM2-1.7B, text only."""
    return _text_only(_text_1_7b(49152, rope_theta=130_000.0, max_positions=8192))


def smolvlm_nano(
    *, vision_width: int = 192, text_width: int = 192, vision_layers: int = 4, text_layers: int = 5
) -> SmolVLMConfig:
    """The project's own small model: the family's modules at a size that two cores train (4.4 M parameters).

    One tile of 96 pixels, 36 image tokens, a vocabulary of 768 with 32 location tokens, tied word table.

    Args:
      vision_width, text_width: multiples of 64, the width of a head.
      vision_layers, text_layers: depths.
    """
    return SmolVLMConfig(
        vision=VisionConfig(
            hidden_size=vision_width,
            intermediate_size=4 * vision_width,
            num_layers=vision_layers,
            num_heads=vision_width // 64,
            image_size=96,
            patch_size=8,
            layer_norm_eps=1e-6,
        ),
        text=TextConfig(
            vocab_size=768,
            hidden_size=text_width,
            intermediate_size=text_width * 8 // 3,
            num_layers=text_layers,
            num_heads=text_width // 64,
            num_kv_heads=text_width // 64,
            head_dim=64,
            rope_theta=10_000.0,
            rms_norm_eps=1e-5,
            max_positions=2048,
        ),
        scale_factor=2,
        image_token_id=768 - 32 - 2,
        tie_embeddings=True,
        model_type="smolvlm",
    )


def tiny(*, tie_embeddings: bool = False, vocab_size: int = 320, image_token_id: int = 300) -> SmolVLMConfig:
    """A model of 66,232 parameters with every part of the big ones (GQA, pixel shuffle), for tests."""
    return SmolVLMConfig(
        vision=VisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_layers=2,
            num_heads=2,
            image_size=32,
            patch_size=8,
            layer_norm_eps=1e-6,
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            rope_theta=100_000.0,
            rms_norm_eps=1e-5,
            max_positions=1024,
        ),
        scale_factor=2,
        image_token_id=image_token_id,
        tie_embeddings=tie_embeddings,
        model_type="smolvlm",
    )


PRESETS: dict[str, Callable[[], SmolVLMConfig]] = {
    "smolvlm-256m": smolvlm_256m,
    "smolvlm-500m": smolvlm_500m,
    "smolvlm-2.2b": smolvlm_2_2b,
    "smolvlm2-256m": smolvlm2_256m,
    "smolvlm2-500m": smolvlm2_500m,
    "smolvlm2-2.2b": smolvlm2_2_2b,
    "granite-docling-258m": granite_docling_258m,
    "smollm2-135m": smollm2_135m,
    "smollm2-360m": smollm2_360m,
    "smollm2-1.7b": smollm2_1_7b,
    "smolvlm-nano": smolvlm_nano,
    "tiny": tiny,
}


def get(name: str) -> SmolVLMConfig:
    """The preset called `name`; raises UsageError that lists the known names."""
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()
