"""A small vocabulary of one's own: a byte-level BPE, SmolVLM's special tokens, and location tokens for boxes."""

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as _Backend

from smoljax.errors import UsageError
from smoljax.processing.locations import location_tokens
from smoljax.processing.released import GRID_TOKENS, with_settings
from smoljax.processing.tokenizer import (
    END_OF_UTTERANCE,
    FAKE_TOKEN,
    GLOBAL_TOKEN,
    IM_END,
    IM_START,
    IMAGE_TOKEN,
)

SPECIAL = (
    IM_START,
    IM_END,
    "<|endoftext|>",
    GLOBAL_TOKEN,
    *GRID_TOKENS,
    FAKE_TOKEN,
    IMAGE_TOKEN,
    END_OF_UTTERANCE,
)


def train_vocabulary(texts: Iterable[str], size: int, locations: int = 0) -> bytes:
    """A `tokenizer.json` learned from texts; the same texts give the same bytes.

    Words are split as SmolLM2 splits them, digits apart; letters of a word in capitals are apart too, so that a
    printed word is read letter by letter.

    Args:
      texts: what the merges are learned from.
      size: tokens in all: 256 bytes, the special ones, location tokens, and merges for the rest. `<image>` is
        number size − locations − 2.
      locations: bins of the location tokens, which come last.

    Raises:
      UsageError: the size leaves no room for merges, or the texts do not give as many.
    """
    merged = size - len(SPECIAL) - locations
    if merged < 257:
        raise UsageError(
            f"a vocabulary of {size} has no room for merges: bytes, special and location tokens take "
            f"{size - merged + 256}"
        )
    backend = _Backend(models.BPE())
    capitals = Regex(r"[A-Z](?=[A-Z])|(?<=[A-Z])[A-Z](?![a-z])")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(capitals, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=merged, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < merged:
        raise UsageError(
            f"the texts give {backend.get_vocab_size()} tokens, not the {merged} wanted; "
            f"take a size of at most {size - merged + backend.get_vocab_size()}, or more text"
        )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in location_tokens(locations)]
    )
    return backend.to_str(pretty=True).encode()


def vocabulary_files(tokenizer_json: bytes, *, tile_size: int, image_seq_len: int) -> dict[str, bytes]:
    """Every small file of a model with this vocabulary, one tile a picture unless asked for more.

    Args:
      tokenizer_json: of `train_vocabulary`.
      tile_size: pixels of a tile.
      image_seq_len: image tokens of a tile.
    """
    return with_settings(
        tokenizer_json, tile_size=tile_size, longest_edge=tile_size, image_seq_len=image_seq_len, video=False
    )
