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
