"""A whole processor made in memory, for tests here and in other people's code. No download, no files.

It fits `smoljax.presets.tiny()`: tiles of 32 pixels, 4 tokens a tile, fewer than 320 ids, `<image>` is 300.
"""

import json

import numpy as np
from PIL import Image
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as _Backend

from smoljax.processing.processor import Processor
from smoljax.processing.released import GRID_TOKENS, with_settings
from smoljax.processing.tokenizer import (
    END_OF_UTTERANCE,
    FAKE_TOKEN,
    GLOBAL_TOKEN,
    IM_END,
    IM_START,
    IMAGE_TOKEN,
    Tokenizer,
)

_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Ids 256 to 301: after 256 bytes come 4 tokens, 36 grid places, 3 spare ones and <fake_…>; <image> is 300.
_SPARE = ["<unused_0>", "<unused_1>", "<unused_2>"]
_SPECIAL = [IM_START, IM_END, "<|endoftext|>", GLOBAL_TOKEN, *GRID_TOKENS, *_SPARE]
_SPECIAL += [FAKE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE]


def toy_backend() -> _Backend:
    """A byte-level BPE without merges: 256 bytes and the special tokens; pre-tokenised as SmolLM2's is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = _Backend(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return backend


def toy_tokenizer() -> Tokenizer:
    """A tokenizer of 302 ids with every special token of SmolVLM; `<image>` is 300."""
    return Tokenizer(toy_backend())


def tiny_files(
    *,
    tile_size: int = 32,
    longest_edge: int = 128,
    image_seq_len: int = 4,
    video: bool = True,
    vision: bool = True,
) -> dict[str, bytes]:
    """The small files of a checkpoint whose processor is `tiny_processor`."""
    backend = toy_backend()
    tokenizer_json = backend.to_str().encode()
    if vision:
        return with_settings(
            tokenizer_json,
            tile_size=tile_size,
            longest_edge=longest_edge,
            image_seq_len=image_seq_len,
            video=video,
        )
    tokens = {
        "bos_token": IM_START,
        "eos_token": IM_END,
        "pad_token": IM_END,
        "unk_token": "<|endoftext|>",
    }
    files: dict[str, object] = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **tokens},
        "special_tokens_map.json": tokens,
        "generation_config.json": {"eos_token_id": backend.token_to_id(IM_END)},
        "chat_template.json": {"chat_template": _CHATML},
    }
    settings = {name: json.dumps(data, indent=2).encode() for name, data in files.items()}
    return {"tokenizer.json": tokenizer_json, **settings}


def tiny_processor(
    *,
    tile_size: int = 32,
    longest_edge: int = 128,
    image_seq_len: int = 4,
    video: bool = True,
    vision: bool = True,
) -> Processor:
    """A processor that fits `smoljax.presets.tiny()`.

    Args:
      tile_size: pixels of a tile.
      longest_edge: pixels of the first resize; 128 gives at most 4 × 4 + 1 tiles.
      image_seq_len: `<image>` tokens a tile.
      video: with video settings (1 frame a second, at most 64).
      vision: False gives a text-only processor with a ChatML template.
    """
    return Processor.from_files(
        tiny_files(
            tile_size=tile_size,
            longest_edge=longest_edge,
            image_seq_len=image_seq_len,
            video=video,
            vision=vision,
        )
    )


def pattern_picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture with gradients, edges and texture, the same on every machine (integer arithmetic alone)."""
    y, x, channel = np.ogrid[:height, :width, :4]
    wave = (x * (7 + channel) + y * (3 + 5 * channel)) // 2
    board = ((x // 9 + y // 7 + channel) % 2) * 96
    noise = ((x * 73856093) ^ (y * 19349663) ^ (channel * 83492791)) % 31
    values = ((wave % 160) + board + noise).clip(0, 255).astype(np.uint8)
    if mode in ("L", "I", "F", "I;16"):
        dtype = {"L": np.uint8, "I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        return Image.fromarray(np.ascontiguousarray(values[..., 0]).astype(dtype))
    rgba = Image.fromarray(np.ascontiguousarray(values))
    if mode in ("RGBA", "LA", "PA"):
        return rgba if mode == "RGBA" else rgba.convert("LA").convert(mode)
    return rgba.convert("RGB").convert(mode)
