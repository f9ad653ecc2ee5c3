"""Other ways into the shared space than the released projection, by name.

Each is a `Connector` that maps patches, and where it reads them the words' own rows, to image tokens. The fields after
`dtype` are its options (`SharingConfig.options`). A new one:

    @register("gated")
    class Gated(Connector):
        power: float = 1.0

        @nn.compact
        def connect(self, patches, table):
            x = self.projected(patches)
            ...
            return x, {}
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoljax.errors import SmoljaxError
from smoljax.nn.connector import Connector
from smoljax.nn.linear import LayerNorm, Linear
from smoljax.ops.image_tokens import pixel_shuffle
from smoljax.ops.mixing import match_norm, mix_rows, nearest_rows, unit
from smoljax.sharing import SharingConfig

CONNECTORS: dict[str, type[Connector]] = {"linear": Connector}
#: Called where a connector is replaced: caches of shapes.
ON_FORGET: list[Callable[[], None]] = []
Kind = TypeVar("Kind", bound=type[Connector])
NORM_EPS = 1e-5
Start = Literal["random", "words"]


def register(name: str) -> Callable[[Kind], Kind]:
    """Makes a `Connector` known by a name; a class of the same name (an edited notebook cell) takes its place.

    Raises:
      SmoljaxError: another class of another module has it already.
    """

    def put(kind: Kind) -> Kind:
        old = CONNECTORS.get(name)
        if old is not None and old.__qualname__ != kind.__qualname__:
            raise SmoljaxError(f"there is a connector {name!r} already: {old.__module__}.{old.__qualname__}")
        if old is not None and old is not kind:
            forget()
        CONNECTORS[name] = kind
        return kind

    return put


def forget() -> None:
    """Lets go of what was traced with a class that another has replaced."""
    for clear in ON_FORGET:
        clear()
    jax.clear_caches()


def make_connector(sharing: SharingConfig, features: int, scale_factor: int, dtype: str) -> Connector:
    """The connector that a config names.

    Raises:
      SmoljaxError: no such connector, or an option that it does not have.
    """
    kind = CONNECTORS.get(sharing.connector)
    if kind is None:
        raise SmoljaxError(
            f"no connector {sharing.connector!r}; known: {', '.join(CONNECTORS)}. One of your own is known once the "
            "file that registers it is imported"
        )
    common = {"features", "scale_factor", "dtype", "parent", "name"}
    known = [item.name for item in dataclasses.fields(kind) if item.name not in common]
    options: dict[str, Any] = dict(sharing.options)
    defaults = {item.name: item.default for item in dataclasses.fields(kind)}
    if unknown := sorted(set(options) - set(known)):
        raise SmoljaxError(
            f"connector {sharing.connector!r} has no option {', '.join(unknown)}; it has: "
            f"{', '.join(known) or 'none'}"
        )
    for name, value in options.items():
        _check_option(kind, sharing.connector, name, value, defaults[name])
    return kind(features=features, scale_factor=scale_factor, dtype=dtype, **options)


def _check_option(kind: type[Connector], connector: str, name: str, value: Any, default: Any) -> None:
    """SmoljaxError for an option of another type than its default, or a number that its connector cannot have."""
    where = f"connector {connector!r}: {name} is {value!r}"
    kinds = (int, float) if type(default) is float else (type(default),)
    told = default not in (None, dataclasses.MISSING)  # a default says what type an option has
    if told and type(value) not in kinds:
        raise SmoljaxError(f"{where}; it must be a {type(default).__name__}, as {default!r} is")
    if name in kind.above_zero and not value > 0:
        raise SmoljaxError(f"{where}; it must be above 0")
    if name in kind.from_zero and value < 0:
        raise SmoljaxError(f"{where}; it must be 0 or more")


def _words(table: Any) -> Any:
    if table is None:
        raise ValueError("this connector reads the word table: call it with `table`")
    return table


@register("mlp")
class MLPConnector(Connector):
    """Two products with a GELU between (LLaVA-1.5, Liu et al. 2023), and a LayerNorm where asked for.

    Attributes:
      hidden: width between; 0 takes D.
      norm: LayerNorm on the image tokens.
    """

    from_zero: ClassVar[tuple[str, ...]] = ("hidden",)
    hidden: int = 0
    norm: bool = False

    @nn.compact
    def connect(
        self, patches: Float[Array, "*B P E"], table: Float[Array, "V D"] | None
    ) -> tuple[Float[Array, "*B Q D"], dict[str, Any]]:
        """As `Connector.connect`."""
        x = Linear(self.hidden or self.features, True, self.dtype, name="fc1")(
            pixel_shuffle(patches, self.scale_factor)
        )
        x = Linear(self.features, True, self.dtype, name="fc2")(jax.nn.gelu(x, approximate=True))
        return (LayerNorm(NORM_EPS, name="norm")(x) if self.norm else x), {}


@register("norm")
class NormConnector(Connector):
    """The projection and a LayerNorm after it."""

    @nn.compact
    def connect(
        self, patches: Float[Array, "*B P E"], table: Float[Array, "V D"] | None
    ) -> tuple[Float[Array, "*B Q D"], dict[str, Any]]:
        """As `Connector.connect`."""
        return LayerNorm(NORM_EPS, name="norm")(self.projected(patches)), {}


@register("norm_matched")
class NormMatched(Connector):
    """The projection, scaled token by token to the words' root-mean-square length (norm mismatch: 2512.08374).

    Attributes:
      bias: add a learned vector: the shift between the modalities' centroids.
    """

    reads_words: ClassVar[bool] = True
    bias: bool = False

    @nn.compact
    def connect(
        self, patches: Float[Array, "*B P E"], table: Float[Array, "V D"] | None
    ) -> tuple[Float[Array, "*B Q D"], dict[str, Any]]:
        """As `Connector.connect`."""
        x = match_norm(self.projected(patches), _words(table))
        if self.bias:
            x += self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(x.dtype)
        return x, {}


@register("word_mixture")
class WordMixture(Connector):
    """A convex mixture of word rows, softmax(LayerNorm(projection)·Eᵀ/τ)·E.

    After AlignVLM (Masry et al. 2025), whose scores come from a matrix of its own that starts as the output head.

    Attributes:
      temperature: τ.
      top_k: mix the k best rows only; 0 mixes all.
      live: the word table learns from being mixed; else it is read only.
    """

    reads_words: ClassVar[bool] = True
    above_zero: ClassVar[tuple[str, ...]] = ("temperature",)
    from_zero: ClassVar[tuple[str, ...]] = ("top_k",)
    temperature: float = 1.0
    top_k: int = 0
    live: bool = True

    @nn.compact
    def connect(
        self, patches: Float[Array, "*B P E"], table: Float[Array, "V D"] | None
    ) -> tuple[Float[Array, "*B Q D"], dict[str, Any]]:
        """As `Connector.connect`."""
        words = _words(table) if self.live else jax.lax.stop_gradient(_words(table))
        x = LayerNorm(NORM_EPS, name="norm")(self.projected(patches))
        scores = jnp.einsum("...d,vd->...v", x.astype(jnp.float32), words)
        mixed, codes = mix_rows(scores / self.temperature, words, self.top_k)
        return mixed.astype(self.dtype), {"codes": codes}


@register("visual_table")
class VisualTable(Connector):
    """A softmax over rows of a table of its own, softmax(linear(patches)/τ)·rows (Ovis, Lu et al. 2024).

    Attributes:
      rows: K, how many there are.
      start: "random" as the words were, or "words": rows taken evenly from the word table.
      temperature: τ.
    """

    reads_words: ClassVar[bool] = True
    above_zero: ClassVar[tuple[str, ...]] = ("rows", "temperature")
    rows: int = 512
    start: Start = "random"
    temperature: float = 1.0

    @nn.compact
    def connect(
        self, patches: Float[Array, "*B P E"], table: Float[Array, "V D"] | None
    ) -> tuple[Float[Array, "*B Q D"], dict[str, Any]]:
        """As `Connector.connect`; raises SmoljaxError for an unknown `start`."""
        if self.start not in get_args(Start):
            raise SmoljaxError(f"visual_table start is {self.start!r}; it must be random or words")

        def first(key: Array) -> Array:
            if self.start == "words":
                words = _words(table)
                return words[jnp.linspace(0, len(words) - 1, self.rows).round().astype(int)]
            return jax.random.normal(key, (self.rows, self.features)) * self.features**-0.5

        own = self.param("rows", first)
        scores = Linear(self.rows, False, self.dtype, name="proj")(pixel_shuffle(patches, self.scale_factor))
        mixed, codes = mix_rows(scores.astype(jnp.float32) / self.temperature, own, 0)
        return mixed.astype(self.dtype), {"codes": codes}


@register("nearest_word")
class NearestWord(Connector):
    """Each image token is the word row nearest to its projection; gradients pass straight through (VQ-VAE).

    The residual [*B, Q] is what the objective `Commitment` makes small: the squared distance of the two, with
    `cosine` of their directions.

    Attributes:
      cosine: nearest by angle; else by distance.
    """

    reads_words: ClassVar[bool] = True
    cosine: bool = True

    @nn.compact
    def connect(
        self, patches: Float[Array, "*B P E"], table: Float[Array, "V D"] | None
    ) -> tuple[Float[Array, "*B Q D"], dict[str, Any]]:
        """As `Connector.connect`."""
        words = jax.lax.stop_gradient(_words(table))
        x = self.projected(patches).astype(jnp.float32)
        index = nearest_rows(x, words, cosine=self.cosine)
        rows = words[index]
        apart = unit(x) - unit(rows) if self.cosine else x - rows
        residual = jnp.sum(jnp.square(apart), axis=-1)
        straight = x + jax.lax.stop_gradient(rows - x)
        return straight.astype(self.dtype), {
            "codes": jax.nn.one_hot(index, len(words)),
            "residual": residual,
        }
