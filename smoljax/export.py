"""The programs of answering, exported beside the weights: they run with jax alone, or as StableHLO elsewhere.

The functions of `smoljax.generation.programs` become files of `jax.export.Exported` that take and give plain dicts of
arrays, the weights among them, and name no class of this package. docs/export.md has the calling convention.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import smoljax
from smoljax.config import SmolVLMConfig
from smoljax.convert.safetensors_file import write_safetensors
from smoljax.convert.write_aside import check_free, write_aside
from smoljax.errors import SmoljaxError, UsageError
from smoljax.generation import programs
from smoljax.nn.smolvlm import picture_params
from smoljax.ops.partition import traced_for
from smoljax.processing.processor import Processor
from smoljax.vlm import VLM

FORMAT_VERSION = 1
#: As jax.export names them.
PLATFORMS = ("cpu", "cuda", "tpu")
RUN_SCRIPT = Path(__file__).parent / "assets" / "run_exported.py"


@dataclass(frozen=True)
class Program:
    """One program before it is traced.

    Attributes:
      name: of its files.
      kind: "vision", "prefill", "decode" or "step".
      prompt_tokens: its bucket; None for the patch encoder.
      function: of the weights it reads, by path, and `inputs`; gives a dict of arrays.
      weights: shapes of those weights, by path.
      inputs: shapes of its other arguments, each an array or a dict of arrays, by name.
      donated: which of `inputs` may be written over.
    """

    name: str
    kind: str
    prompt_tokens: int | None
    function: Callable[..., dict[str, Any]]
    weights: dict[str, Any]
    inputs: dict[str, Any]
    donated: tuple[str, ...] = ()

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments' shapes, in the order of the call."""
        return (self.weights, *self.inputs.values())

    @property
    def donate_argnums(self) -> tuple[int, ...]:
        """Places of the donated arguments in the call."""
        return tuple(1 + list(self.inputs).index(name) for name in self.donated)


def export(
    vlm: VLM,
    folder: str | Path,
    prompts: Sequence[int] = (128, 384),
    new_tokens: int = 128,
    platforms: Sequence[str] = ("cpu",),
) -> dict[str, Any]:
    """Writes the programs of a model's greedy answers, its weights and what calls them, whole or not at all.

    The patch encoder takes one tile; a prompt of one row is padded on the left to its bucket. Each platform gets
    programs traced for it; none of these machines need be here. On "cuda" attention is plain, since which card will run
    it is not known.

    Args:
      vlm: of `smoljax.load`; its weights are written as it keeps them.
      folder: must not exist, or be empty.
      prompts: buckets, in tokens; each costs a prefill, a decode and a step program.
      new_tokens: the longest answer.
      platforms: of "cpu", "cuda", "tpu".

    Returns:
      The manifest.

    Raises:
      UsageError: an unknown platform, or a bucket that does not fit the model's positions.
      SmoljaxError: `folder` is not empty, the model has no tokenizer, or the package flatbuffers is missing.
    """
    buckets = _checked(vlm.config, prompts, new_tokens, platforms)
    check_free(Path(folder))
    processor = vlm.require_processor()
    weights = flat(vlm.packed)
    stops = processor.stop_ids or (-1,)
    with write_aside(Path(folder)) as scratch:
        entries: dict[str, Any] = {}
        versions: set[int] = set()
        for platform in platforms:
            # Which card will run it is not known, so no kernel of one.
            config = vlm.config.with_compute(attention="plain") if platform == "cuda" else vlm.config
            for program in programs_of(config, shapes_of(weights), buckets, new_tokens, len(stops)):
                exported = export_program(program, platform)
                versions.add(exported.calling_convention_version)
                entry = entries.setdefault(program.name, _entry(program, exported))
                entry["files"][platform] = _write_program(scratch, platform, program.name, exported)
        write_safetensors(scratch / "weights.safetensors", {k: np.asarray(v) for k, v in weights.items()}, {})
        processor.save(scratch / "processor")
        shutil.copyfile(RUN_SCRIPT, scratch / "run.py")
        manifest = {
            "format_version": FORMAT_VERSION,
            "smoljax_version": smoljax.__version__,
            "jax_version": jax.__version__,
            "calling_convention_versions": sorted(versions),
            "model": {"type": vlm.config.model_type, "kept": vlm.kept, "dtype": vlm.config.compute.dtype},
            "untrained": vlm.untrained,
            "platforms": list(platforms),
            "prompt_tokens": list(buckets),
            "new_tokens": new_tokens,
            "max_positions": vlm.config.text.max_positions,
            "vocab_size": vlm.config.text.vocab_size,
            "image_seq_len": vlm.config.image_seq_len if vlm.config.vision else None,
            "image_token_id": vlm.config.image_token_id,
            "pad_id": processor.pad_id,
            "stop_ids": list(stops),
            "chat": chat_texts(processor),
            "programs": entries,
            "weights": {name: _said(leaf) for name, leaf in shapes_of(weights).items()},
        }
        (scratch / "manifest.json").write_text(_json(manifest) + "\n", encoding="utf-8")
    return manifest


def programs_of(
    config: SmolVLMConfig, weights: Mapping[str, Any], buckets: Sequence[int], new_tokens: int, stops: int
) -> list[Program]:
    """The patch encoder of a model that has one; for each bucket prefill, decode and a single step of it.

    Args:
      config: the model.
      weights: shapes by path, as `flat` gives them.
      buckets: prompt tokens.
      new_tokens: the longest answer.
      stops: how many stop ids are given.
    """
    found = [] if config.vision is None else [_vision(config, weights)]
    words = {name: leaf for name, leaf in weights.items() if name.split("/")[0] in ("embedding", "decoder")}
    for bucket in buckets:
        found += _decoding(config, words, bucket, new_tokens, {"stop_ids": _int32(stops), "pad_id": _int32()})
    return found


def _decoding(
    config: SmolVLMConfig, weights: dict[str, Any], bucket: int, new_tokens: int, ends: dict[str, Any]
) -> list[Program]:
    """The programs of one bucket; `ends` are the shapes of stop and pad ids."""
    batch: dict[str, Any] = {
        "input_ids": _int32(1, bucket),
        "attention_mask": jax.ShapeDtypeStruct((1, bucket), jnp.bool_),
    }
    if config.vision is not None:
        room = -(-bucket // config.image_seq_len)  # tiles that a prompt can hold
        shape = (1, room, config.image_seq_len, config.text.hidden_size)
        batch["image_features"] = jax.ShapeDtypeStruct(shape, config.compute.dtype)
        batch["tile_mask"] = jax.ShapeDtypeStruct((1, room), jnp.bool_)
    greedy = (config, False, False)

    def read(weights: Any, *inputs: Any) -> programs.DecodeState:
        *arrays, stop_ids, pad_id = inputs
        given = dict(zip(batch, arrays, strict=True))
        return programs.prefill(*greedy, new_tokens, 0, nested(weights), given, _controls(stop_ids, pad_id))

    # The state's structure, of which a dict of arrays knows nothing.
    like = jax.eval_shape(read, weights, *batch.values(), *ends.values())

    def prefill(weights: Any, *inputs: Any) -> dict[str, Any]:
        return without_empty(flat(read(weights, *inputs)))

    def decode(weights: Any, state: Any, limit: Any, *ends: Any) -> dict[str, Any]:
        before = refilled(like, state)
        return without_empty(flat(programs.decode(*greedy, nested(weights), before, limit, _controls(*ends))))

    def step(weights: Any, state: Any, *ends: Any) -> dict[str, Any]:
        before = refilled(like, state)
        return without_empty(flat(programs.step(*greedy, nested(weights), before, _controls(*ends))))

    state = {"state": without_empty(flat(like))}
    limit = {"limit": _int32()}
    made = (("prefill", prefill, batch | ends), ("decode", decode, state | limit | ends))
    return [
        Program(
            f"{kind}-{bucket}",
            kind,
            bucket,
            function,
            weights,
            inputs,
            ("state",) if "state" in inputs else (),
        )
        for kind, function, inputs in (*made, ("step", step, state | ends))
    ]


def _vision(config: SmolVLMConfig, weights: Mapping[str, Any]) -> Program:
    assert config.vision is not None
    side = config.vision.image_size

    def encode(weights: Any, pixel_values: Any) -> dict[str, Any]:
        return {"image_features": programs.encode_tiles(config, nested(weights), pixel_values, None)}

    pixels = jax.ShapeDtypeStruct((1, config.vision.num_channels, side, side), jnp.float32)
    parts = flat(picture_params(config, nested(weights)))
    return Program("vision", "vision", None, encode, parts, {"pixel_values": pixels})


def export_program(program: Program, platform: str) -> jax.export.Exported:
    """Traces and lowers one program for a platform of `PLATFORMS`."""

    def own(*args: Any) -> Any:  # jax would take the trace of another platform for this one's
        return program.function(*args)

    own.__name__ = program.name.replace("-", "_")
    # Arguments that nothing reads stay, so that the order is that of the manifest.
    function = jax.jit(own, donate_argnums=program.donate_argnums, keep_unused=True)
    with traced_for("gpu" if platform == "cuda" else platform), _no_source_lines():
        return jax.export.export(function, platforms=[platform])(*program.args)


def chat_texts(processor: Processor) -> dict[str, str]:
    """Prompts as they are tokenised, with {prompt} where the question goes: without a picture, and with one tile."""
    found = {"text": processor(prompt="{prompt}").text[0]}
    if processor.config.image is not None:
        side = processor.config.image.tile_size
        grey = np.zeros((side, side, 3), np.uint8)
        found["picture"] = processor(prompt="{prompt}", images=[grey], split=False).text[0]
    return found


def flat(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their path, "decoder/layers_0/…"; None's are left out."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose `flat` is this."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        part = tree
        for parent in parents:
            part = part.setdefault(parent, {})
        part[name] = leaf
    return tree


def without_empty(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Those that hold numbers: other runtimes are not asked to take arrays of none."""
    return {name: leaf for name, leaf in leaves.items() if leaf.size}


def refilled(like: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree of the structure of `like` whose `without_empty(flat(…))` is `leaves`."""
    whole = [
        leaves[name] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in flat(like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), whole)


def shapes_of(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes of arrays."""
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}


def _checked(
    config: SmolVLMConfig, prompts: Sequence[int], new_tokens: int, platforms: Sequence[str]
) -> tuple[int, ...]:
    """The buckets in order; UsageError for what cannot be exported."""
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        named = ", ".join(map(repr, unknown)) or "none"
        raise UsageError(f"platforms: {named}; they must be of {', '.join(PLATFORMS)}")
    if not prompts or min(prompts) < 1 or new_tokens < 1:
        raise UsageError("prompt tokens and new tokens must be 1 or more")
    limit = config.text.max_positions
    if max(prompts) + new_tokens > limit:
        raise UsageError(
            f"a prompt of {max(prompts)} tokens and {new_tokens} new ones are more than the model's {limit} positions: "
            "take a smaller bucket or fewer new tokens"
        )
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise SmoljaxError(
            'jax.export writes by the package flatbuffers: pip install "smoljax[export]"'
        ) from error
    return tuple(sorted(set(prompts)))


def _controls(stop_ids: Any, pad_id: Any) -> programs.Controls:
    """Controls of greedy answers: what draws is not there."""
    return programs.Controls(
        temperature=None,
        top_k=None,
        top_p=None,
        repetition_penalty=None,
        stop_ids=stop_ids,
        pad_id=pad_id,
        key=None,
    )


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@contextlib.contextmanager
def _no_source_lines() -> Iterator[None]:
    """Keeps the paths of this machine's source files out of what is lowered."""
    before = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _write_program(root: Path, platform: str, name: str, exported: jax.export.Exported) -> dict[str, str]:
    """Writes one program in both forms and says where, relative to `root`."""
    (root / "programs" / platform).mkdir(parents=True, exist_ok=True)
    stem = f"programs/{platform}/{name}"
    (root / f"{stem}.jaxexport").write_bytes(exported.serialize())
    (root / f"{stem}.mlir").write_text(exported.mlir_module(), encoding="utf-8")
    return {"jaxexport": f"{stem}.jaxexport", "stablehlo": f"{stem}.mlir"}


def _entry(program: Program, exported: jax.export.Exported) -> dict[str, Any]:
    """What the manifest says of a program; names are in the order of the flattened arguments and results."""
    inputs = {
        name: {key: _said(part) for key, part in sorted(leaf.items())}
        if isinstance(leaf, dict)
        else _said(leaf)
        for name, leaf in program.inputs.items()
    }
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "kind": program.kind,
        "prompt_tokens": program.prompt_tokens,
        "files": {},
        "weights": sorted(program.weights),
        "inputs": inputs,
        "outputs": {name: _said(leaf) for name, leaf in sorted(outputs.items())},
        "donate_argnums": list(program.donate_argnums),
    }


def _said(leaf: Any) -> list[Any]:
    return [str(jnp.dtype(leaf.dtype)), list(leaf.shape)]


def _json(value: Any, indent: str = "") -> str:
    """JSON with a line for each key, and lists on one line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = f"{indent} "
    lines = [f"{inner}{json.dumps(key)}: {_json(item, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
