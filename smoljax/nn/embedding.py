"""The embedding space shared by word tokens and image patches: table, merge, logits."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoljax.ops.image_tokens import merge_image_features
from smoljax.ops.products import bfloat16_product, bfloat16_rows, int8_product


class Rows(NamedTuple):
    """Rows of words [V, D], in floating point or in int8 with a `scale` [V] for each."""

    values: Any
    scale: Any = None

    def first(self, count: int) -> "Rows":
        """The first `count` of them."""
        return Rows(self.values[:count], None if self.scale is None else self.scale[:count])

    def take(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """The rows of some ids."""
        if self.values.dtype == jnp.bfloat16:
            return bfloat16_rows(self.values, ids)
        rows = self.values[ids]
        return rows if self.scale is None else rows * self.scale[ids][..., None]

    def whole(self) -> Float[Array, "V D"]:
        """All of them, as numbers."""
        return self.values if self.scale is None else self.values * self.scale[:, None]

    def scores(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Their products with `x`, float32."""
        if self.scale is not None:
            return int8_product(x, self.values, self.scale, transposed=True)
        if self.values.dtype == jnp.bfloat16 and x.dtype == jnp.float32:
            return bfloat16_product(x, self.values, transposed=True)
        return jnp.einsum("...d,vd->...v", x, self.values.astype(x.dtype), preferred_element_type=jnp.float32)


class SharedEmbedding(nn.Module):
    """Word table in, logits out, and the place where image tokens take their seats.

    Attributes:
      vocab_size: V.
      features: D.
      tie: logits from the table itself; otherwise from a head [V, D] of its own.
      image_token_id: the id whose positions image features replace; None for text only.
      dtype: dtype of the embeddings. Logits are float32.
      own_rows, input_gradient: see `smoljax.sharing.SharingConfig`. The table's own rows from `own_rows` on are unused.
    """

    vocab_size: int
    features: int
    tie: bool
    image_token_id: int | None
    dtype: str = "float32"
    own_rows: int | None = None
    input_gradient: float = 1.0

    def setup(self) -> None:
        """Declares `table` and, when untied, `head`, both [V, D]; with `own_rows` also `rows` and `head_rows`."""
        self.table = self._rows("table", self.vocab_size)
        if not self.tie:
            self.head = self._rows("head", self.vocab_size)
        if self.own_rows is not None:
            own = self.vocab_size - self.own_rows
            self.rows = self._rows("rows", own)
            if not self.tie:
                self.head_rows = self._rows("head_rows", own)

    def _rows(self, name: str, count: int) -> "Rows":
        """The parameter `name` [count, D], and its "…_scale" where it is quantised (`smoljax.nn.quantised`)."""
        init = nn.initializers.normal(self.features**-0.5)
        values = self.param(name, init, (count, self.features), jnp.float32)
        scale = f"{name}_scale"
        return Rows(
            values, self.get_variable("params", scale) if self.has_variable("params", scale) else None
        )

    def words(self) -> Float[Array, "V D"]:
        """The rows that ids are looked up in, float32."""
        table = self.table.whole()
        if self.own_rows is not None:
            table = jnp.concatenate([table[: self.own_rows], self.rows.whole()])
        return self._scaled(table)

    def output_table(self) -> Float[Array, "V D"]:
        """The rows that logits are products with, float32."""
        parts = [head.whole() for head in self._heads()]
        return jnp.concatenate(parts) if len(parts) > 1 else parts[0]

    def __call__(
        self,
        input_ids: Int[Array, "B T"],
        image_features: Float[Array, "B I Q D"] | None = None,
        tile_mask: Bool[Array, "B I"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Embeds words, then lays the image features over the `<image>` positions.

        Without `image_features` an `<image>` id is an ordinary word: decoding never merges.
        """
        x = self.table.take(input_ids)
        if self.own_rows is not None:  # two lookups, so that no step of decoding builds a whole table
            own = self.rows.take(jnp.maximum(input_ids - self.own_rows, 0))
            x = jnp.where((input_ids >= self.own_rows)[..., None], own, x)
        x = self._scaled(x).astype(self.dtype)
        if image_features is None:
            return x
        return self.seat(x, input_ids, image_features, tile_mask)

    def seat(
        self,
        x: Float[Array, "B T D"],
        input_ids: Int[Array, "B T"],
        image_features: Float[Array, "B I Q D"],
        tile_mask: Bool[Array, "B I"] | None,
    ) -> Float[Array, "B T D"]:
        """`x` with the image features at the `<image>` positions."""
        if tile_mask is None:
            tile_mask = jnp.ones(image_features.shape[:2], bool)
        return merge_image_features(x, input_ids == self.image_token_id, image_features, tile_mask)

    def logits(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of every word, float32."""
        scores = [head.scores(x) for head in self._heads()]
        return jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0]

    def _heads(self) -> list["Rows"]:
        """The output's rows in one piece, or in two where new tokens have their own."""
        head = self.table if self.tie else self.head
        if self.own_rows is None:
            return [head]
        return [head.first(self.own_rows), self.rows if self.tie else self.head_rows]

    def _scaled(self, rows: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """The same rows, with their gradient scaled."""
        if self.input_gradient == 1:
            return rows
        fixed = jax.lax.stop_gradient(rows)
        return fixed + self.input_gradient * (rows - fixed)
