"""The processor files of the released small models, made from SmolLM2's tokenizer.

SmolVLM-256M, SmolVLM-500M and their SmolVLM2 successors share one vocabulary: SmolLM2's 49152 tokens and 128
special ones. So whoever has SmolLM2's `tokenizer.json` can have theirs, without a download.
"""

import json

from tokenizers import AddedToken, Tokenizer

from smoljax.errors import SmoljaxError
from smoljax.processing.tokenizer import (
    END_OF_UTTERANCE,
    FAKE_TOKEN,
    GLOBAL_TOKEN,
    IM_END,
    IM_START,
    IMAGE_TOKEN,
)

#: The chat template of the released checkpoints, as data: the prompt format is theirs.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

BASE_SIZE = 49152
NUM_RESERVED = 88
GRID_TOKENS = tuple(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7))


def vlm_tokens() -> list[str]:
    """The 128 tokens behind SmolLM2's, in id order: 49152 `<global-img>` … 49279 `<end_of_utterance>`."""
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(NUM_RESERVED)]
    return [GLOBAL_TOKEN, *GRID_TOKENS, FAKE_TOKEN, IMAGE_TOKEN, *reserved, END_OF_UTTERANCE]


def extend_tokenizer(tokenizer_json: bytes) -> bytes:
    """SmolLM2's `tokenizer.json` → SmolVLM's.

    Raises:
      SmoljaxError: the tokenizer is not SmolLM2's (another number of tokens).
    """
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    if tokenizer.get_vocab_size(with_added_tokens=True) != BASE_SIZE:
        raise SmoljaxError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens; SmolLM2's, which SmolVLM extends, has {BASE_SIZE}"
        )
    tokens = vlm_tokens()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    return tokenizer.to_str().encode()


def processor_files(
    tokenizer_json: bytes, *, tile_size: int, longest_edge: int, image_seq_len: int, video: bool
) -> dict[str, bytes]:
    """Every small file of a released checkpoint's processor.

    Args:
      tokenizer_json: SmolLM2's.
      tile_size: pixels of a tile (512 for the small models, 384 for 2.2B).
      longest_edge: what pictures are resized to (2048, or 1536).
      image_seq_len: image tokens of a tile (64, or 81).
      video: SmolVLM2's files, which know video, instead of SmolVLM's.
    """
    return with_settings(
        extend_tokenizer(tokenizer_json),
        tile_size=tile_size,
        longest_edge=longest_edge,
        image_seq_len=image_seq_len,
        video=video,
        bos_id=0,  # as released, though bos_token is number 1
    )


def with_settings(
    tokenizer_json: bytes,
    *,
    tile_size: int,
    longest_edge: int,
    image_seq_len: int,
    video: bool,
    bos_id: int | None = None,
) -> dict[str, bytes]:
    """A tokenizer that has SmolVLM's special tokens, and the files beside it.

    Arguments as for `processor_files`; `bos_id` goes into generation_config.json, by default that of bos_token.
    """
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    family = "SmolVLM" if video else "Idefics3"
    image: dict[str, object] = {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": f"{family}ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": tile_size},
        "processor_class": f"{family}Processor",
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": longest_edge},
    }
    if video:
        image["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": tile_size}}
    special = {
        "bos_token": IM_START,
        "eos_token": END_OF_UTTERANCE,
        "pad_token": IM_END,
        "unk_token": "<|endoftext|>",
    }
    data = {
        "preprocessor_config.json": image,
        "processor_config.json": {"image_seq_len": image_seq_len, "processor_class": f"{family}Processor"},
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "generation_config.json": {
            "bos_token_id": tokenizer.token_to_id(IM_START) if bos_id is None else bos_id,
            "eos_token_id": tokenizer.token_to_id(END_OF_UTTERANCE),
            "pad_token_id": tokenizer.token_to_id(IM_END),
        },
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            **special,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            "processor_class": f"{family}Processor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }
    settings = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in data.items()}
    return {"tokenizer.json": tokenizer_json, **settings}
