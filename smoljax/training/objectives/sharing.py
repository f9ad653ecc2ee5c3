"""Losses on the shared space itself: what image tokens say in words, where they lie, how tables hang together."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from smoljax.training.objectives.next_token import next_token_sums


def bag_of_words_sum(
    x: jax.Array,
    is_image: jax.Array,
    words: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    segment_ids: jax.Array,
    *,
    chunk: int = 1024,
) -> jax.Array:
    """Σ −weight·log p(learned token | mean image token of its sample), p a softmax over products with the word rows.

    The words that are said about a picture, whatever their order, are to be read off its image tokens (the word
    distributions of Peng et al.; 2602.01530 does the same to hidden states).

    Args:
      x: [B, T, D], image tokens where `is_image`.
      is_image: [B, T] bool.
      words: [V, D], the rows of the word table.
      targets, weights: [B, T], learned tokens and their weights.
      segment_ids: [B, T]; only image tokens of a token's own sample count, and a sample without any adds nothing.
      chunk: tokens whose scores exist at a time.
    """
    own = (segment_ids[:, :, None] == segment_ids[:, None, :]) & is_image[:, None, :]
    number = own.sum(axis=-1)
    mean = jnp.einsum("bts,bsd->btd", own.astype(jnp.float32), jnp.where(is_image[..., None], x, 0))
    mean /= jnp.maximum(number, 1)[..., None]
    weights = jnp.where(number > 0, weights, 0.0)
    flat = [item.reshape(-1, *item.shape[2:]) for item in (mean, targets, weights)]
    return next_token_sums(flat[0], words, flat[1], flat[2], chunk=chunk)[0]


def centroid_gap(x: jax.Array, is_image: jax.Array, is_word: jax.Array) -> jax.Array:
    """Squared distance between the centroids of image tokens and words, over the words' mean squared length.

    Args:
      x: [B, T, D], the decoder's input.
      is_image, is_word: [B, T] bool.

    Returns:
      A float32 scalar; 0 where the batch holds no image token.
    """
    x = x.astype(jnp.float32)

    def mean(values: jax.Array, mask: jax.Array) -> jax.Array:
        total = jnp.sum(jnp.where(mask[..., None], values, 0), axis=(0, 1))
        return total / jnp.maximum(mask.sum(), 1)

    gap = jnp.sum(jnp.square(mean(x, is_image) - mean(x, is_word)))
    length = mean(jnp.sum(jnp.square(x), axis=-1, keepdims=True), is_word)[0]
    length = jax.lax.stop_gradient(jnp.maximum(length, 1e-12))  # longer words are no way out
    return jnp.where(is_image.any(), gap / length, 0.0)


def tie_distance(words: ArrayLike, head: ArrayLike) -> jax.Array:
    """‖E − W‖² over the mean of ‖E‖² and ‖W‖² (not differentiated): 2 for tables that know nothing of each other."""
    words, head = jnp.asarray(words), jnp.asarray(head)
    size = 0.5 * (jnp.sum(jnp.square(words)) + jnp.sum(jnp.square(head)))
    return jnp.sum(jnp.square(words - head)) / jax.lax.stop_gradient(jnp.maximum(size, 1e-12))
