"""Models of a released size with random weights: for training from nothing and for measuring."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from smoljax import presets
from smoljax.config import SmolVLMConfig
from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.convert import with_dtype
from smoljax.convert.hf import json_bytes
from smoljax.convert.hf_config import to_hf_config
from smoljax.convert.native import save_native
from smoljax.convert.write_aside import check_free
from smoljax.errors import UsageError
from smoljax.models import load_processor
from smoljax.nn.smolvlm import init_params
from smoljax.nn.stacking import unstack_layers
from smoljax.processing.released import processor_files
from smoljax.processing.testing import tiny_processor


def make_untrained(preset: str, folder: Path, *, seed: int, tokenizer: str, dtype: str) -> dict[str, Any]:
    """Writes a native checkpoint of a released size with random weights.

    Args:
      preset: a key of `smoljax.presets.PRESETS`.
      folder: must not exist, or be empty.
      seed: of the weights; the same seed gives the same weights.
      tokenizer: the model whose SmolLM2 tokenizer is taken, and extended for a vision model.
      dtype: what to store.

    Returns:
      Path, tensors and parameters.

    Raises:
      UsageError: no such preset, or a vocabulary that SmolLM2's tokenizer does not serve.
    """
    config = presets.get(preset)
    check_free(folder)
    files = _files(preset, config, tokenizer)
    stacked = config.with_compute(scan_layers=True)  # compiles in a fraction of the time
    params = unstack_layers(jax.jit(lambda key: init_params(stacked, key))(jax.random.key(seed)))
    checkpoint = Checkpoint(
        config,
        jax.tree.map(np.asarray, params),
        {"config.json": json_bytes(to_hf_config(config, dtype=dtype)), **files},
        untrained=True,
        source=f"smoljax init {preset} --seed {seed}",
    )
    checkpoint = with_dtype(checkpoint, dtype)
    save_native(checkpoint, folder)
    return {"path": str(folder), "tensors": checkpoint.num_tensors, "parameters": checkpoint.num_parameters}


def _files(preset: str, config: SmolVLMConfig, tokenizer: str) -> dict[str, bytes]:
    if preset == "tiny":
        return tiny_processor().files
    if preset == "smolvlm-nano":  # has a vocabulary of its own, which comes with the bundled model
        return load_processor(preset).files
    base = load_processor(tokenizer).files
    if config.vision is None:
        return base
    if config.text.vocab_size != 49280:
        raise UsageError(
            f"{preset} has a vocabulary of {config.text.vocab_size}, which SmolLM2's tokenizer does not serve; "
            "take a size with 49280 tokens (smolvlm-256m, smolvlm-500m, smolvlm2-256m, smolvlm2-500m, smolvlm2-2.2b)"
        )
    edges = {512: 2048, 384: 1536}
    size = config.vision.image_size
    return processor_files(
        base["tokenizer.json"],
        tile_size=size,
        longest_edge=edges[size],
        image_seq_len=config.image_seq_len,
        video=config.model_type == "smolvlm",
    )
