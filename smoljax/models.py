"""From a name or a path to a loaded model."""

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from smoljax import hub
from smoljax.config import CacheKind, PositionIds, SmolVLMConfig
from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.convert import kind_of, open_checkpoint
from smoljax.convert.weights import StoredWeights
from smoljax.errors import SmoljaxError, UsageError
from smoljax.nn.smolvlm import Weights
from smoljax.paths import compilation_cache
from smoljax.processing.processor import Processor
from smoljax.vlm import VLM

COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Entry:
    """A model that has a name: where it is, or how to get it."""

    name: str
    kind: Literal["bundled", "fetched", "fetchable"]
    path: Path | None
    about: str


def list_models() -> list[Entry]:
    """Bundled models, fetched ones, and those that `smoljax fetch` can get."""
    entries = [Entry(path.name, "bundled", path, "comes with smoljax") for path in _bundled()]
    fetched = hub.fetched()
    for name, path in fetched.items():
        about = hub.WHEEL_MODELS[name].about if name in hub.WHEEL_MODELS else "from the hub"
        entries.append(Entry(name, "fetched", path, about))
    for name, model in hub.WHEEL_MODELS.items():
        if name not in fetched:
            entries.append(Entry(name, "fetchable", None, f"{model.about}; smoljax fetch {name}"))
    return entries


def resolve(model: str | Path) -> Path:
    """The folder or file of a model given by path or by name.

    Raises:
      UsageError: there is no such path and no such name, or the model has yet to be fetched.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    for entry in list_models():
        if entry.name == str(model):
            if entry.path is None:
                raise UsageError(f"{model} is not on this machine yet; get it with: smoljax fetch {model}")
            return entry.path
    known = ", ".join(entry.name for entry in list_models())
    raise UsageError(f"{model}: no such folder or file, and no model of that name (known: {known})")


def default_dtype() -> str:
    """float32 on a CPU, bfloat16 on an accelerator."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load(
    model: str | Path,
    dtype: str | None = None,
    scan_layers: bool = False,
    tile_batch: int | None = None,
    background: bool = False,
    position_ids: PositionIds | None = None,
    weights: Weights | None = None,
    cache: CacheKind | None = None,
    lean: bool = False,
) -> VLM:
    """Loads a model ready to use.

    Args:
      model: a folder in Hugging Face layout, a native or LoRA folder, a `.gguf` file, or a name of
        `smoljax models`.
      dtype: of activations, "float32" or "bfloat16"; None: `default_dtype`.
      weights: how they are kept: "float32" or "bfloat16", or rounded to "int8" or "int4"
        (`smoljax.nn.quantised`); None: quantised ones as they are stored, others in `dtype`.
      scan_layers: keep layers stacked and run them with `lax.scan`; compiles faster, decodes slower on CPU.
      tile_batch: tiles that go through the patch encoder at a time (see `Generator`).
      background: return before the weights of a native folder are read; whoever needs them waits, and compiling
        does not. A damaged weight is then an error at first use. Other kinds are read at once.
      position_ids: which vision position each patch takes (`smoljax.ops.patches.position_ids`); None: "arange", as in
        training. "hf_4_55" reproduces what transformers 4.55–4.56 computed.
      cache: how keys and values are kept while an answer is made: "float32", "bfloat16" or "int8"; None: in `dtype`.
      lean: of a native folder's mapped weights hold only those of the part that is at work, the patch encoder or the
        decoder, in memory: for machines with little of it. Every picture maps the encoder anew.

    Raises:
      UsageError: no such model; an unknown kind of dtype, weights or cache.
      SmoljaxError: the checkpoint is not sound; the message names file and key.
    """
    started = time.perf_counter()
    dtype = dtype or default_dtype()
    if dtype not in COMPUTE_DTYPES:
        raise UsageError(f"dtype is {dtype!r}; it must be {' or '.join(COMPUTE_DTYPES)}")
    path = resolve(model)

    if weights not in (None, *get_args(Weights)):
        raise UsageError(f"weights are {weights!r}; they must be one of {', '.join(get_args(Weights))}")
    if cache not in (None, *get_args(CacheKind)):
        raise UsageError(f"cache is {cache!r}; it must be one of {', '.join(get_args(CacheKind))}")

    stored = StoredWeights(path, dtype, weights, scan_layers, resolve)
    checkpoint = stored.checkpoint
    processor = processor_of(checkpoint, path) if "tokenizer.json" in checkpoint.files else None
    config = checkpoint.config.with_compute(dtype=dtype, scan_layers=scan_layers, remat="none", cache=cache)
    if position_ids is not None and config.vision is not None:
        config = dataclasses.replace(
            config, vision=dataclasses.replace(config.vision, position_ids=position_ids)
        )
    vlm = VLM(
        config=config,
        weights={},
        processor=processor,
        name=str(model),
        # A native folder's notes were said when it was made.
        notes=() if stored.native else checkpoint.notes,
        untrained=checkpoint.untrained,
        tile_batch=tile_batch,
        kept=stored.kept,
        shapes=stored.shapes,
        at_work=stored.pages.only if lean else None,
    )

    def place() -> dict[str, Any]:
        if not lean:
            stored.pages.all()
        found = stored.place()
        vlm.load_s = time.perf_counter() - started
        return found

    if background and stored.native:
        pool = ThreadPoolExecutor(1, "smoljax-load")
        vlm.weights = pool.submit(place)
        pool.shutdown(wait=False)
    else:
        vlm.weights = place()
    return vlm


def load_processor(model: str | Path) -> Processor:
    """The processor of a model; no weights are read.

    Raises:
      UsageError: no such model.
      SmoljaxError: the model has no tokenizer, or its processor files are broken.
    """
    path = resolve(model)
    if kind_of(path) == "hf":  # only the processor's files need be there
        return Processor.from_folder(path)
    return processor_of(open_checkpoint(path, resolve=resolve), path)


def processor_of(checkpoint: Checkpoint, path: Path) -> Processor:
    """The processor in the files of a checkpoint, known to fit its model; SmoljaxError where it does not."""
    try:
        processor = Processor.from_files(checkpoint.files, vision=checkpoint.config.vision is not None)
    except SmoljaxError as error:
        raise type(error)(f"{path}: {error}") from error
    check_processor(checkpoint.config, processor, path)
    return processor


def check_processor(config: SmolVLMConfig, processor: Processor, path: str | Path) -> None:
    """SmoljaxError, naming `path`, for a processor that is not this architecture's."""
    facts = [("tokens in tokenizer.json", len(processor.tokenizer), config.text.vocab_size)]
    wrong = [facts[0]] if len(processor.tokenizer) > config.text.vocab_size else []
    if config.vision is not None:
        image = processor.config.image
        facts = [
            (
                "pixels a tile (preprocessor_config.json)",
                None if image is None else image.tile_size,
                config.vision.image_size,
            ),
            (
                "image tokens a tile (processor_config.json)",
                processor.config.image_seq_len,
                config.image_seq_len,
            ),
            ("the id of <image> (tokenizer.json)", processor.tokenizer.image_id, config.image_token_id),
        ]
        wrong += [fact for fact in facts if fact[1] != fact[2]]
    if wrong:
        listed = "; ".join(f"{name}: {have}, the model has {need}" for name, have, need in wrong)
        raise SmoljaxError(f"{path}: the processor's files are another model's: {listed}")


def enable_compilation_cache() -> Path | None:
    """Keeps compiled programs in `compilation/` of the cache folder, so that the next process need not compile.

    The commands do this; a library user decides alone. `JAX_COMPILATION_CACHE_DIR` wins where it is set. None where
    the folder cannot be made.
    """
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or compilation_cache())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # nowhere to keep them: every process compiles for itself
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _bundled() -> list[Path]:
    folder = Path(__file__).resolve().parent.parent / "checkpoints"
    found = {path.parent for name in ("smoljax.json", "config.json") for path in folder.glob(f"*/{name}")}
    return sorted(found)
