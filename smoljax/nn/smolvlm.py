"""The whole model: patch encoder → connector → shared embedding space → decoder → logits."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import SmolVLMConfig
from smoljax.nn.cache import KVCache
from smoljax.nn.connectors import CONNECTORS, ON_FORGET, make_connector
from smoljax.nn.decoder import Decoder
from smoljax.nn.embedding import SharedEmbedding
from smoljax.nn.packed import pack, reading_weights
from smoljax.nn.patch_encoder import PatchEncoder
from smoljax.nn.quantised import Quantisation, quantise
from smoljax.nn.stacking import unstack_layers
from smoljax.ops.partition import constrain
from smoljax.ops.patches import patch_mask

#: How weights are kept for answering (`smoljax.load`).
Weights = Literal["float32", "bfloat16", "int8", "int4"]

CAPTURES = (
    "embeddings",
    "image_features",
    "codes",
    "residual",
    "hidden_states",
    "attention",
    "vision_hidden_states",
    "vision_attention",
)


@flax.struct.dataclass
class Output:
    """What a call returns.

    Attributes:
      logits: [B, T, V] float32; [B, 1, V] with logits="last", None with logits="none".
      hidden: [B, T, D], after the final norm.
      cache: the updated key-value cache, None without one.
      captured: the intermediates named in `capture`.
    """

    logits: Any
    hidden: Any
    cache: KVCache | None
    captured: dict[str, Any]


class SmolVLM(nn.Module):
    """SmolVLM and SmolLM2 (reference: `SmolVLMForConditionalGeneration`; arXiv 2504.05299).

    Attributes:
      config: the architecture; `config.vision is None` is a text-only model.
      capture: names of intermediates to return in `Output.captured`:
        "embeddings" [B, T, D] (merged input of the decoder), "image_features" [B, I, Q, D],
        "codes" [B, I, Q, K] and "residual" [B, I, Q] of connectors that mix or choose rows of a table,
        "hidden_states" [L, B, T, D], "attention" [L, B, N, T, S],
        "vision_hidden_states" [Lv, B·I, P, E], "vision_attention" [Lv, B·I, Nv, P, P].
    """

    config: SmolVLMConfig
    capture: tuple[str, ...] = ()

    def setup(self) -> None:
        """Builds the parts; raises ValueError for an unknown name in `capture`."""
        cfg = self.config
        if unknown := sorted(set(self.capture) - set(CAPTURES)):
            raise ValueError(f"cannot capture {', '.join(unknown)}; known: {', '.join(CAPTURES)}")
        own = tuple(name for name in self.capture if name in ("hidden_states", "attention"))
        self.embedding = SharedEmbedding(
            cfg.text.vocab_size,
            cfg.text.hidden_size,
            cfg.tie_embeddings,
            cfg.image_token_id,
            cfg.compute.dtype,
            cfg.sharing.own_rows,
            cfg.sharing.input_gradient,
        )
        self.decoder = Decoder(cfg.text, cfg.compute, own, cfg.sharing.image_attention)
        if cfg.vision is not None and cfg.scale_factor is not None:
            seen = tuple(name.removeprefix("vision_") for name in self.capture if name.startswith("vision_"))
            self.vision = PatchEncoder(cfg.vision, cfg.compute, seen)
            self.connector = make_connector(
                cfg.sharing, cfg.text.hidden_size, cfg.scale_factor, cfg.compute.dtype
            )

    def encode_patches(
        self,
        pixel_values: Float[Array, "*B C h w"],
        pixel_attention_mask: Bool[Array, "*B h w"] | None = None,
    ) -> tuple[Float[Array, "*B P E"], dict[str, Array]]:
        """Tiles → one vector a patch, and the encoder's captured intermediates."""
        if self.config.vision is None:
            raise ValueError("this model is text only: it has no patch encoder")
        *batch, C, h, w = pixel_values.shape
        mask = None
        if pixel_attention_mask is not None:
            mask = patch_mask(pixel_attention_mask.reshape(-1, h, w), self.config.vision.patch_size)
        patches, seen = self.vision(pixel_values.reshape(-1, C, h, w), mask)
        return patches.reshape(*batch, *patches.shape[1:]), seen

    def connect(self, patches: Float[Array, "*B P E"]) -> tuple[Float[Array, "*B Q D"], dict[str, Array]]:
        """Patches → image tokens in the decoder's space, and what the connector shows of them."""
        words = self.embedding.words() if self.connector.reads_words else None
        features, shown = self.connector.connect(patches, words)
        if features.ndim == 4:  # every row's tiles go where the row is
            features = constrain(features, "batch", None, None, None)
        return features, shown

    def encode_images(
        self,
        pixel_values: Float[Array, "*B C h w"],
        pixel_attention_mask: Bool[Array, "*B h w"] | None = None,
    ) -> tuple[Float[Array, "*B Q D"], dict[str, Array]]:
        """Tiles → image tokens in the decoder's space, and the captured intermediates on the way."""
        patches, seen = self.encode_patches(pixel_values, pixel_attention_mask)
        features, shown = self.connect(patches)
        return features, {f"vision_{key}": value for key, value in seen.items()} | shown

    def embed(
        self,
        input_ids: Int[Array, "B T"],
        image_features: Float[Array, "B I Q D"] | None = None,
        tile_mask: Bool[Array, "B I"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Words and image tokens of a row in one sequence of vectors."""
        return self.embedding(input_ids, image_features, tile_mask)

    def decode(
        self,
        batch: Mapping[str, Array],
        image_features: Float[Array, "B I Q D"] | None = None,
        cache: KVCache | None = None,
        noise: Float[Array, "B T D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], KVCache | None, dict[str, Array]]:
        """A row's words and image tokens through the decoder.

        Args:
          batch: as in `__call__`; its pixels are not read.
          image_features: of `encode_images`.
          cache: keys and values of the tokens before these.
          noise: added to the decoder's input.

        Returns:
          Its input, hidden states after the final norm, the updated cache, the captured intermediates.
        """
        ids, tiles = batch["input_ids"], batch.get("tile_mask")
        how: dict[str, Array] = {}
        seated = image_features
        if self.config.sharing.image_attention != "causal" and image_features is not None:
            how["is_image"] = ids == self.config.image_token_id
            if self.config.sharing.image_attention == "cross":
                seated = None
                zeros = jnp.zeros((*ids.shape, image_features.shape[-1]), image_features.dtype)
                how["memory"] = self.embedding.seat(zeros, ids, image_features, tiles)
        x = self.embed(ids, seated, tiles)
        if noise is not None:
            x = x + noise.astype(x.dtype)
        hidden, cache, found = self.decoder(
            x,
            batch.get("attention_mask"),
            batch.get("positions"),
            batch.get("segment_ids"),
            cache,
            batch.get("branch_ids"),
            **how,
        )
        return x, hidden, cache, found

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of every word, float32."""
        return self.embedding.logits(hidden)

    def tables(self) -> tuple[Float[Array, "V D"], Float[Array, "V D"]]:
        """The rows that words are looked up in, and those that logits are products with."""
        return self.embedding.words(), self.embedding.output_table()

    def __call__(
        self,
        batch: Mapping[str, Any],
        cache: KVCache | None = None,
        logits: Literal["all", "last", "none"] = "all",
    ) -> Output:
        """One forward pass.

        Args:
          batch: `input_ids` [B, T]; and where they apply `attention_mask` [B, T], `pixel_values`
            [B, I, C, h, w], `tile_mask` [B, I], `pixel_attention_mask` [B, I, h, w], `image_features`
            [B, I, Q, D] (encoded before, in place of pixels), `positions` [B, T], `segment_ids` [B, T],
            `branch_ids` [B, T].
          cache: keys and values of the tokens before these.
          logits: at every position, at the last one only, or not at all (for a chunked loss).

        Returns:
          See `Output`.
        """
        seen: dict[str, Array] = {}
        batch = {key: jnp.asarray(value) for key, value in batch.items() if value is not None}
        features = batch.get("image_features")
        if features is None and "pixel_values" in batch:
            features, seen = self.encode_images(batch["pixel_values"], batch.get("pixel_attention_mask"))
        x, hidden, cache, found = self.decode(batch, features, cache)
        found |= seen | {"embeddings": x, "image_features": features}
        scores = None
        if logits != "none":
            scores = self.logits(hidden if logits == "all" else hidden[:, -1:])
        return Output(scores, hidden, cache, {key: found[key] for key in self.capture if key in found})


def forward(
    config: SmolVLMConfig,
    params: Mapping[str, Any],
    batch: Mapping[str, Any],
    cache: KVCache | None = None,
    logits: Literal["all", "last", "none"] = "all",
    capture: tuple[str, ...] = (),
) -> Output:
    """`SmolVLM(config, capture).apply` as a plain function of parameters and batch; see `SmolVLM.__call__`."""
    return cast(Output, apply(config, params, batch, cache, logits, capture=capture))


def apply(
    config: SmolVLMConfig,
    params: Mapping[str, Any],
    *args: Any,
    capture: tuple[str, ...] = (),
    method: Callable[..., Any] | None = None,
) -> Any:
    """A method of the model (by default its call) with its parameters, as they are or quantised."""
    with reading_weights():
        return SmolVLM(config, capture).apply({"params": params}, *args, method=method)


def init_params(config: SmolVLMConfig, key: Array) -> dict[str, Any]:
    """Fresh float32 parameters, a plain nested dict (paths: docs/architecture.md)."""
    batch: dict[str, Array] = {"input_ids": jnp.zeros((1, 1), jnp.int32)}
    if config.vision is not None:
        side = config.vision.image_size
        batch["pixel_values"] = jnp.zeros((1, 1, config.vision.num_channels, side, side), jnp.float32)
    return dict(SmolVLM(config).init(key, batch, logits="last")["params"])


def abstract_params(config: SmolVLMConfig) -> dict[str, Any]:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`s, without allocating anything."""
    stacked = _abstract_stacked(config.with_compute(scan_layers=True))
    return jax.tree.map(lambda leaf: leaf, stacked) if config.compute.scan_layers else unstack_layers(stacked)


@functools.cache
def _abstract_stacked(config: SmolVLMConfig) -> dict[str, Any]:
    # One layer is traced instead of thirty: a tenth of the time.
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


ON_FORGET.append(_abstract_stacked.cache_clear)


def stored_params(config: SmolVLMConfig, kept: Weights) -> dict[str, Any]:
    """The tree of `init_params` as it is kept for answering (`smoljax.nn.packed.pack`), in shapes and dtypes."""

    def stored(params: dict[str, Any]) -> dict[str, Any]:
        if kept in get_args(Quantisation):
            return pack(quantise(params, kept))  # type: ignore[arg-type]
        return pack(jax.tree.map(lambda leaf: leaf.astype(kept), params))

    return jax.eval_shape(stored, abstract_params(config))


def shapes_of(tree: Any) -> Any:
    """A tree of arrays, NumPy's or jax's, as `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def picture_params(config: SmolVLMConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the parameters that `encode_images` reads."""
    names = ["vision", "connector"]
    if CONNECTORS[config.sharing.connector].reads_words:
        names.append("embedding")
    return {name: params[name] for name in names}


def count_params(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many tensors and how many numbers a parameter tree holds."""
    leaves = jax.tree.leaves(params)
    return len(leaves), sum(leaf.size for leaf in leaves)
