"""Distillation from a larger model of the same vocabulary."""

import jax
import jax.numpy as jnp

from smoljax.training.objectives.chunked import sum_over_tokens


def kl_sum(
    student: jax.Array,
    student_head: jax.Array,
    teacher: jax.Array,
    teacher_head: jax.Array,
    mask: jax.Array,
    *,
    temperature: float,
    chunk: int = 1024,
) -> jax.Array:
    """Σ T²·KL(teacher ‖ student) at temperature T over masked tokens (Hinton et al. 2015).

    Args:
      student, teacher: hidden states [N, Ds] and [N, Dt].
      student_head, teacher_head: [V, Ds] and [V, Dt].
      mask: [N] bool.
      temperature: T.
      chunk: tokens whose scores exist at a time.
    """

    def one(s: jax.Array, t: jax.Array, weight: jax.Array) -> jax.Array:
        taught = jax.nn.log_softmax(_scores(t, teacher_head) / temperature)
        learned = jax.nn.log_softmax(_scores(s, student_head) / temperature)
        return jnp.sum(weight * jnp.sum(jnp.exp(taught) * (taught - learned), axis=-1))

    total = sum_over_tokens(one, chunk, student, teacher, mask.astype(jnp.float32))
    return temperature**2 * total


def hidden_sum(student: jax.Array, teacher: jax.Array, projection: jax.Array, mask: jax.Array) -> jax.Array:
    """Σ over masked tokens of the mean squared error between projection(student) and teacher, both [N, ·]."""
    error = student.astype(jnp.float32) @ projection - teacher.astype(jnp.float32)
    return jnp.sum(mask * jnp.mean(jnp.square(error), axis=-1))


def _scores(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.einsum("nd,vd->nv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
