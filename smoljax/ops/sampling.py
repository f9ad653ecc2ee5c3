"""Choosing the next token from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def penalise_repetition(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, ""] | float
) -> Float[Array, "B V"]:
    """Divides positive and multiplies negative scores of seen tokens (Keskar et al. 2019).

    Reference: `RepetitionPenaltyLogitsProcessor`; 1.0 changes nothing.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def filter_top(
    logits: Float[Array, "B V"], top_k: Int[Array, ""] | int, top_p: Float[Array, ""] | float
) -> Float[Array, "B V"]:
    """Keeps the `top_k` best tokens, and of those the fewest that hold `top_p` of the probability.

    Everything else becomes −inf; the best token always stays, and so do ties with the last one kept.
    Reference: `TopKLogitsWarper`, then `TopPLogitsWarper`. `top_k` ≥ V and `top_p` = 1 keep all.
    """
    V = logits.shape[-1]
    ranked = -jnp.sort(-logits, axis=-1)
    kth = jnp.take(ranked, jnp.clip(jnp.asarray(top_k), 1, V) - 1, axis=-1)[:, None]
    ranked = jnp.where(ranked >= kth, ranked, -jnp.inf)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (before < top_p) & jnp.isfinite(ranked)
    kept = kept.at[:, 0].set(True)
    threshold = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def sample(
    logits: Float[Array, "B V"],
    keys: Array,
    temperature: Float[Array, ""] | float,
    top_k: Int[Array, ""] | int,
    top_p: Float[Array, ""] | float,
) -> Int[Array, " B"]:
    """Draws one token a row, each row with its own key, so that a row's draw does not depend on its batch."""
    filtered = filter_top(logits / temperature, top_k, top_p)
    return jax.vmap(jax.random.categorical)(keys, filtered).astype(jnp.int32)
