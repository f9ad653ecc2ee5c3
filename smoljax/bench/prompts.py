"""The same inputs for every contender: token ids and pixels from a seed."""

import numpy as np

#: Ids drawn lie below it: no special token of SmolLM2's vocabulary and no place of a picture.
WORDS = 40000
#: A text to repeat; written for this benchmark.
PASSAGE = (
    "The lighthouse keeper wrote in his log every evening. On the third of March the wind came from the north and the "
    "sea was grey. He lit the lamp at six, counted four ships, and noted that the gulls had gone inland. On the fourth "
    "the wind turned west and the rain began. He lit the lamp at five, counted one ship, and noted that the boat from "
    "the village had not come."
)


def text_prompt(tokens: int, rows: int = 1) -> dict[str, np.ndarray]:
    """`rows` rows of `tokens` random words: input_ids [rows, tokens] int32 and attention_mask."""
    ids = np.random.default_rng(0).integers(100, WORDS, (rows, tokens), dtype=np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids, bool)}


def picture_prompt(words: int, seats: int, image_id: int | None, side: int) -> dict[str, np.ndarray]:
    """One tile's places, then random words; with `pixel_values` [1, 1, 3, side, side] float32."""
    assert image_id is not None
    batch = text_prompt(seats + words)
    batch["input_ids"][:, 1 : 1 + seats] = image_id
    pixels = np.random.default_rng(1).standard_normal((1, 1, 3, side, side)).astype(np.float32)
    return {**batch, "pixel_values": pixels, "tile_mask": np.ones((1, 1), bool)}


def training_batch(
    rows: int, words: int, seats: int, image_id: int | None, side: int
) -> dict[str, np.ndarray]:
    """Rows of one tile and `words` random words, of which everything but the picture's places is learned.

    Returns:
      What `smoljax.data` makes of such rows: `input_ids` and `positions` [rows, seats + words] int32, `loss_mask` bool,
      `segment_ids`, `branch_ids`, `pixel_values` [rows, 1, 3, side, side] float32, `tile_mask`.
    """
    assert image_id is not None
    draw = np.random.default_rng(0)
    # Below every special token, so that no word is taken for a picture; in small vocabularies too.
    ids = draw.integers(10, image_id - 100, (rows, seats + words), dtype=np.int32)
    ids[:, 1 : 1 + seats] = image_id
    return {
        "input_ids": ids,
        "loss_mask": ids != image_id,
        "segment_ids": np.ones_like(ids),
        "branch_ids": np.zeros_like(ids),
        "positions": np.tile(np.arange(ids.shape[1], dtype=np.int32), (rows, 1)),
        "pixel_values": draw.standard_normal((rows, 1, 3, side, side)).astype(np.float32),
        "tile_mask": np.ones((rows, 1), bool),
    }
