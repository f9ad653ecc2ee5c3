"""The embedding space shared by word tokens and image patches: table, merge, logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoljax.ops.image_tokens import merge_image_features


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
        init = nn.initializers.normal(self.features**-0.5)
        shape = (self.vocab_size, self.features)
        self.table = self.param("table", init, shape, jnp.float32)
        if not self.tie:
            self.head = self.param("head", init, shape, jnp.float32)
        if self.own_rows is not None:
            shape = (self.vocab_size - self.own_rows, self.features)
            self.rows = self.param("rows", init, shape, jnp.float32)
            if not self.tie:
                self.head_rows = self.param("head_rows", init, shape, jnp.float32)

    def words(self) -> Float[Array, "V D"]:
        """The rows that ids are looked up in, float32."""
        table = self.table
        if self.own_rows is not None:
            table = jnp.concatenate([table[: self.own_rows], self.rows])
        if self.input_gradient != 1:
            fixed = jax.lax.stop_gradient(table)
            table = fixed + self.input_gradient * (table - fixed)
        return table

    def output_table(self) -> Float[Array, "V D"]:
        """The rows that logits are products with, float32."""
        head = self.table if self.tie else self.head
        if self.own_rows is None:
            return head
        return jnp.concatenate([head[: self.own_rows], self.rows if self.tie else self.head_rows])

    def __call__(
        self,
        input_ids: Int[Array, "B T"],
        image_features: Float[Array, "B I Q D"] | None = None,
        tile_mask: Bool[Array, "B I"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Embeds words, then lays the image features over the `<image>` positions.

        Without `image_features` an `<image>` id is an ordinary word: decoding never merges.
        """
        x = self.words()[input_ids].astype(self.dtype)
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
        head = self.output_table().astype(x.dtype)
        return jnp.einsum("...d,vd->...v", x, head, preferred_element_type=jnp.float32)
