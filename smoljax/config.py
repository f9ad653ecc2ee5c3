"""The architecture of a SmolVLM as frozen dataclasses.

Nothing that changes the maths has a default here but `sharing`, which is by default as released: a preset
(`smoljax.presets`) or a checkpoint's own `config.json` (`smoljax.convert.hf_config`) names every value. How the model
is executed, without changing what it computes, is a `ComputeConfig` of its own.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from smoljax.errors import SmoljaxError
from smoljax.sharing import RELEASED, SharingConfig, sharing_from_dict

PositionIds = Literal["arange", "bucket", "hf_4_55"]
Remat = Literal["none", "full", "dots", "projections", "offload"]
ComputeDtype = Literal["float32", "bfloat16"]
AttentionKind = Literal["auto", "plain"]
CacheKind = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class ComputeConfig:
    """How a part is executed. None of these changes the function beyond rounding.

    Attributes:
      dtype: dtype of activations and of the weights at use ("float32", "bfloat16"). Norm statistics,
        softmax, RoPE tables, vision position ids and logits are float32 whatever this says.
      scan_layers: one `lax.scan` over stacked layer parameters instead of one copy of the code a layer:
        compiles faster; `smoljax.nn.stacking` converts parameters between the two layouts.
      remat: what the backward pass recomputes: "none" keeps all activations, "dots" keeps the results of
        matrix products only, "projections" those of attention (queries, keys, values, output), "full" keeps only each
        layer's input; "offload" is "projections" with all of it in the host's memory (not on a CPU).
      attention: "auto": the platform's own kernel (`smoljax.ops.flash`), in which the scores never exist whole, where
        there is one for dtype, shapes and mask; else, and with "plain" everywhere, products and softmax.
      cache: how keys and values of the tokens so far are kept ("float32", "bfloat16", or rounded to "int8" with a
        scale for each slot and key-value head); None: in `dtype`.
    """

    dtype: ComputeDtype = "float32"
    scan_layers: bool = False
    remat: Remat = "none"
    attention: AttentionKind = "auto"
    cache: CacheKind | None = None

    def __post_init__(self) -> None:
        """Raises SmoljaxError for an unknown dtype, remat policy, kind of attention or of cache."""
        if self.dtype not in get_args(ComputeDtype):
            raise SmoljaxError(
                f"compute dtype is {self.dtype!r}; it must be {' or '.join(get_args(ComputeDtype))}"
            )
        if self.remat not in get_args(Remat):
            raise SmoljaxError(f"remat is {self.remat!r}; it must be one of {', '.join(get_args(Remat))}")
        if self.attention not in get_args(AttentionKind):
            raise SmoljaxError(
                f"attention is {self.attention!r}; it must be one of {', '.join(get_args(AttentionKind))}"
            )
        if self.cache not in (None, *get_args(CacheKind)):
            raise SmoljaxError(f"cache is {self.cache!r}; it must be one of {', '.join(get_args(CacheKind))}")

    @property
    def cache_kind(self) -> CacheKind:
        """How keys and values are kept."""
        return self.cache or self.dtype


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP patch encoder (reference classes: `SmolVLMVisionTransformer`, `Idefics3VisionTransformer`)."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    num_channels: int = 3
    position_ids: PositionIds = "arange"

    def __post_init__(self) -> None:
        """Raises SmoljaxError for a value out of range and where the sizes do not fit together."""
        sizes = ("hidden_size", "intermediate_size", "num_heads", "image_size", "patch_size")
        _check_whole("vision", self, *sizes, "num_channels")
        _check_whole("vision", self, "num_layers", least=0)
        _check_positive("vision", self, "layer_norm_eps")
        if self.hidden_size % self.num_heads:
            raise SmoljaxError(
                f"vision hidden_size {self.hidden_size} is no multiple of {self.num_heads} heads"
            )
        if self.position_ids not in get_args(PositionIds):
            raise SmoljaxError(
                f"position_ids is {self.position_ids!r}; known: {', '.join(get_args(PositionIds))}"
            )

    @property
    def head_dim(self) -> int:
        """H, the width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def grid(self) -> int:
        """Patches along one side of a tile; pixels that do not fill a patch are dropped."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """P, the patches of one tile."""
        return self.grid**2


@dataclass(frozen=True)
class TextConfig:
    """Llama-style decoder (reference class: `LlamaModel`); SmolLM2 in every released SmolVLM."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_positions: int

    def __post_init__(self) -> None:
        """Raises SmoljaxError for a value out of range and where the sizes do not fit together."""
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        _check_whole("text", self, *sizes, "head_dim", "max_positions")
        _check_positive("text", self, "rope_theta", "rms_norm_eps")
        if self.num_heads % self.num_kv_heads:
            raise SmoljaxError(
                f"{self.num_heads} query heads do not share {self.num_kv_heads} key-value heads evenly"
            )
        if self.head_dim % 2:
            raise SmoljaxError(f"head_dim {self.head_dim} is odd; RoPE rotates pairs")


@dataclass(frozen=True)
class SmolVLMConfig:
    """The whole model. `vision is None` is a text-only model (SmolLM2).

    Attributes:
      scale_factor: pixel shuffle: scale_factor² patches become one image token. None for text only.
      image_token_id: the id in `input_ids` that image features replace. None for text only.
      tie_embeddings: logits come from the word table itself instead of a head of its own.
      model_type: the reference's name of the family, written back by the converter.
      compute: how it is executed.
      sharing: how image tokens and words share the embedding space; by default as released.
    """

    vision: VisionConfig | None
    text: TextConfig
    scale_factor: int | None
    image_token_id: int | None
    tie_embeddings: bool
    model_type: Literal["smolvlm", "idefics3", "llama"]
    compute: ComputeConfig = ComputeConfig()
    sharing: SharingConfig = RELEASED

    def __post_init__(self) -> None:
        """Raises SmoljaxError where the parts do not fit together."""
        own = self.sharing.own_rows
        if own is not None and own >= self.text.vocab_size:
            raise SmoljaxError(f"own_rows is {own}, no id of the vocabulary of {self.text.vocab_size}")
        if self.vision is None:
            if self.scale_factor is not None or self.image_token_id is not None:
                raise SmoljaxError(
                    "a text-only model (vision=None) has no scale_factor and no image_token_id"
                )
            return
        if self.scale_factor is None or self.image_token_id is None:
            raise SmoljaxError("a model with a vision part needs scale_factor and image_token_id")
        _check_whole("model", self, "scale_factor")
        _check_whole("model", self, "image_token_id", least=0)
        if self.image_token_id >= self.text.vocab_size:
            raise SmoljaxError(
                f"image_token_id is {self.image_token_id}, no id of the vocabulary of {self.text.vocab_size}"
            )
        if self.vision.grid % self.scale_factor:
            raise SmoljaxError(
                f"pixel shuffle by {self.scale_factor} does not divide {self.vision.grid}×{self.vision.grid} patches"
            )

    @property
    def image_seq_len(self) -> int:
        """Image tokens of one tile (64 for the small models, 81 for 2.2B); 0 for text only."""
        if self.vision is None or self.scale_factor is None:
            return 0
        return self.vision.num_patches // self.scale_factor**2

    def with_compute(self, **changes: Any) -> "SmolVLMConfig":
        """The same model executed otherwise: `config.with_compute(scan_layers=True)`."""
        return dataclasses.replace(self, compute=dataclasses.replace(self.compute, **changes))


def to_dict(config: SmolVLMConfig) -> dict[str, Any]:
    """A JSON-ready nested dict; `from_dict` is its inverse."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any]) -> SmolVLMConfig:
    """The inverse of `to_dict`.

    Raises:
      SmoljaxError: a key is unknown or missing.
    """
    data = dict(data)
    if data.get("vision") is not None:
        data["vision"] = _build(VisionConfig, data["vision"], "vision")
    data["text"] = _build(TextConfig, data.get("text", {}), "text")
    data["compute"] = _build(ComputeConfig, data.get("compute", {}), "compute")
    data["sharing"] = sharing_from_dict(data.get("sharing", {}))
    return _build(SmolVLMConfig, data, "model")


def _check_whole(part: str, config: Any, *names: str, least: int = 1) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SmoljaxError(f"{part} {name} is {value!r}; it must be a whole number, at least {least}")


def _check_positive(part: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known or not 0 < value < math.inf:
            raise SmoljaxError(f"{part} {name} is {value!r}; it must be a finite number above 0")


def _build(cls: type[Any], data: dict[str, Any], where: str) -> Any:
    names = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - names):
        raise SmoljaxError(f"unknown {where} config key(s): {', '.join(unknown)}")
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    if missing := sorted(required - set(data)):
        raise SmoljaxError(f"missing {where} config key(s): {', '.join(missing)}")
    return cls(**data)
