"""Where the image tokens of a batch's tiles are seated: host arrays in, [B, I, Q, D] out."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from smoljax.config import SmolVLMConfig
from smoljax.errors import UsageError


def check_places(config: SmolVLMConfig, batch: Mapping[str, np.ndarray]) -> None:
    """UsageError for a row that has not as many `<image>` tokens as its tiles need."""
    Q = config.image_seq_len
    counts = (np.asarray(batch["input_ids"]) == config.image_token_id).sum(axis=-1)
    for row, (places, tiles) in enumerate(zip(counts, batch["tile_mask"].sum(axis=-1), strict=True)):
        if places != tiles * Q:
            raise UsageError(
                f"row {row} has {places} <image> tokens for {tiles} tiles of {Q}: the numbers must match"
            )


def feature_shape(config: SmolVLMConfig, rows: int, tiles: int) -> tuple[int, int, int, int]:
    """[B, I, Q, D] of so many rows and tiles."""
    return (rows, tiles, config.image_seq_len, config.text.hidden_size)


def room_for_tiles(config: SmolVLMConfig, length: int, batch: Mapping[str, np.ndarray]) -> int:
    """Tiles that a prompt of `length` tokens can hold: so the prompt's bucket alone decides the shapes."""
    return max(-(-length // config.image_seq_len), np.shape(batch["tile_mask"])[1])


def seat(shape: tuple[int, ...], dtype: str, places: np.ndarray, found: list[jax.Array]) -> jax.Array:
    """Lays encoded tiles, in batches [X, Q, D], into `shape` [B, I, Q, D] at `places` [X, 2]; zero elsewhere."""
    if jax.default_backend() == "cpu":  # host memory is device memory: plain copies, nothing to compile
        features = np.zeros(shape, jnp.dtype(dtype))
        if found:
            features[places[:, 0], places[:, 1]] = np.concatenate([np.asarray(x) for x in found])[
                : len(places)
            ]
        return jnp.asarray(features)
    features = jnp.zeros(shape, dtype)
    if not found:
        return features
    return features.at[places[:, 0], places[:, 1]].set(jnp.concatenate(found)[: len(places)])
