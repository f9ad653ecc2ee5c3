"""Makes tests/golden/model/logits.npz: the reference's logits for models whose weights a seed gives.

    python -m experiments.parity.make_model_golden

The weights are drawn with NumPy, written as a Hugging Face folder by smoljax, and run by `transformers`. The test
draws the same weights again, so only logits are kept: 48 columns of each position. Needs `make reference`.
"""

import contextlib
import io
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.parity.model_reference import Case, cases, random_batch, reference_outputs
from smoljax.convert.checkpoint import Checkpoint, iterate_leaves, set_leaf
from smoljax.convert.hf import save_hf
from smoljax.nn.smolvlm import abstract_params

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "model" / "logits.npz"
COLUMNS = 48
NEW_TOKENS = 12


def golden_cases() -> dict[str, Case]:
    """The tiny cases; bfloat16 files are the parity suite's business."""
    return {name: case for name, case in cases().items() if name.startswith("tiny") and not case.bf16}


def seeded_params(case: Case) -> dict[str, Any]:
    """Weights by path and seed, independent of jax's random numbers."""
    params: dict[str, Any] = {}
    for path, leaf in iterate_leaves(abstract_params(case.config)):
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        values = rng.standard_normal(leaf.shape) * (0.2 if len(leaf.shape) > 1 else 0.1)
        set_leaf(params, path, (values + (1.0 if path.endswith("scale") else 0.0)).astype(np.float32))
    return params


def main() -> None:
    """Writes the golden file."""
    import transformers

    kept: dict[str, np.ndarray] = {"versions": np.array([f"transformers {transformers.__version__}"])}
    for name, case in golden_cases().items():
        batch = random_batch(case)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            save_hf(Checkpoint(case.config, seeded_params(case)), Path(folder) / "hf")
            auto = "AutoModelForCausalLM" if case.config.vision is None else "AutoModelForImageTextToText"
            model = getattr(transformers, auto).from_pretrained(Path(folder) / "hf").eval()
        logits, ids = reference_outputs(model, batch, NEW_TOKENS)
        kept[f"{name}/logits"] = logits[:, :, :COLUMNS]
        kept[f"{name}/greedy"] = np.array(ids)
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(GOLDEN, **kept)  # type: ignore[arg-type]
    print(f"{GOLDEN.name}: {len(kept) // 2} models, {GOLDEN.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
