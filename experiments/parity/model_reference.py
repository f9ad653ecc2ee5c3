"""smoljax against `transformers` with the same random weights: logits, greedy ids, bfloat16 files.

    python -m experiments.parity.model_reference            # every case, one row each
    python -m experiments.parity.model_reference tiny-gqa   # one case
    python -m experiments.parity.model_reference --json

The reference model is made in PyTorch, saved as a Hugging Face folder and read by smoljax's own converter, so a
row covers converter, parameter layout and network. Needs `make reference` (torch, transformers).
"""

import argparse
import contextlib
import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from smoljax import presets
from smoljax.config import SmolVLMConfig, VisionConfig
from smoljax.convert.hf import load_hf
from smoljax.convert.hf_config import to_hf_config
from smoljax.generation.generator import Generator
from smoljax.nn.smolvlm import forward

NEW_TOKENS = 64
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      config: the network.
      prompts: per row: (number of tiles, text tokens before the picture, text tokens after it).
      bf16: store the weights in bfloat16, compute in float32 on both sides.
      partial: real pixels (rows, columns) of each tile; None: all.
    """

    config: SmolVLMConfig
    prompts: tuple[tuple[int, int, int], ...]
    bf16: bool = False
    partial: tuple[int, int] | None = None


def _with_vision(config: SmolVLMConfig, vision: VisionConfig, scale: int) -> SmolVLMConfig:
    return dataclasses.replace(config, vision=vision, scale_factor=scale)


def _text(config: SmolVLMConfig, **changes: Any) -> SmolVLMConfig:
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **changes))


def cases() -> dict[str, Case]:
    """Every comparison by name; the tiny ones take seconds, the full geometry minutes."""
    tiny = presets.tiny()
    assert tiny.vision is not None
    so400m_tiles = dataclasses.replace(tiny.vision, image_size=384, patch_size=14)
    bucket = dataclasses.replace(tiny.vision, position_ids="bucket")
    grid26 = dataclasses.replace(tiny.vision, image_size=26 * 8)
    grid32 = dataclasses.replace(tiny.vision, image_size=32 * 8)
    full = presets.smolvlm_256m()
    return {
        "tiny-gqa": Case(tiny, ((1, 5, 20),)),
        "tiny-mha": Case(_text(tiny, num_kv_heads=4), ((1, 5, 20),)),
        "tiny-tied": Case(presets.tiny(tie_embeddings=True), ((1, 5, 20),)),
        "tiny-idefics3": Case(dataclasses.replace(tiny, model_type="idefics3"), ((1, 5, 20),)),
        "tiny-384/14": Case(_with_vision(tiny, so400m_tiles, 3), ((2, 5, 20),)),
        "tiny-26-grid": Case(_with_vision(tiny, grid26, 2), ((1, 5, 20),)),
        "tiny-32-grid": Case(_with_vision(tiny, grid32, 4), ((1, 5, 20),)),
        "tiny-masked-patches": Case(_with_vision(tiny, bucket, 2), ((3, 5, 20),), partial=(19, 26)),
        "tiny-two-pictures": Case(tiny, ((5, 5, 7),)),
        "tiny-padded-batch": Case(tiny, ((1, 2, 9), (3, 5, 30), (2, 1, 1))),
        "tiny-text-500": Case(tiny, ((0, 250, 250),)),
        "tiny-text-only": Case(
            dataclasses.replace(
                tiny,
                vision=None,
                scale_factor=None,
                image_token_id=None,
                tie_embeddings=True,
                model_type="llama",
            ),
            ((0, 30, 30),),
        ),
        "tiny-bf16-file": Case(tiny, ((2, 5, 20),), bf16=True),
        "256m-1-tile": Case(full, ((1, 5, 95),)),
        "256m-17-tiles": Case(full, ((17, 5, 48),)),
        "256m-17-tiles-bf16-file": Case(full, ((17, 5, 48),), bf16=True),
        "256m-text-500": Case(full, ((0, 250, 250),)),
    }


def reference_model(config: SmolVLMConfig, seed: int = 0) -> Any:
    """A PyTorch model with random weights; norms and biases are perturbed so that a swap would show."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(to_hf_config(config)))
        hf_config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(seed)
    name = {
        "smolvlm": "SmolVLMForConditionalGeneration",
        "idefics3": "Idefics3ForConditionalGeneration",
        "llama": "LlamaForCausalLM",
    }[config.model_type]
    model = getattr(transformers, name)(hf_config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif config.text.hidden_size < 100:  # tiny: give every layer something to say
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def random_batch(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Left-padded rows of random text around image tokens, and random tiles."""
    config, rng = case.config, np.random.default_rng(seed)
    rows, tiles = [], max(count for count, _, _ in case.prompts)
    image = config.image_token_id
    words = np.setdiff1d(np.arange(min(config.text.vocab_size, 49000)), [image if image is not None else -1])
    for count, before, after in case.prompts:
        middle = [image] * (count * config.image_seq_len) if count else []
        rows.append([*rng.choice(words, before), *middle, *rng.choice(words, after)])
    length = max(map(len, rows))
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :], mask[i, length - len(row) :] = row, True
    batch = {"input_ids": ids, "attention_mask": mask}
    if tiles:
        assert config.vision is not None
        side = config.vision.image_size
        pixels = rng.standard_normal((len(rows), tiles, 3, side, side)).astype(np.float32)
        tile_mask = np.arange(tiles) < np.array([[count] for count, _, _ in case.prompts])
        pixels[~tile_mask] = 0  # how the reference recognises padding tiles
        batch |= {"pixel_values": pixels, "tile_mask": tile_mask}
        if case.partial is not None:
            seen = np.zeros((len(rows), tiles, side, side), bool)
            seen[:, :, : case.partial[0], : case.partial[1]] = True
            batch["pixel_attention_mask"] = seen
    return batch


def reference_outputs(
    model: Any, batch: dict[str, np.ndarray], new_tokens: int
) -> tuple[np.ndarray, list[list[int]]]:
    """The reference's logits [B, T, V] and greedy ids, stop ids ignored."""
    import torch

    inputs = {
        "input_ids": torch.tensor(batch["input_ids"], dtype=torch.long),
        "attention_mask": torch.tensor(batch["attention_mask"], dtype=torch.long),
    }
    if "pixel_values" in batch:
        inputs["pixel_values"] = torch.tensor(batch["pixel_values"])
        if "pixel_attention_mask" in batch:
            inputs["pixel_attention_mask"] = torch.tensor(batch["pixel_attention_mask"])
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    with torch.inference_mode():
        logits = model(**inputs).logits.float().numpy()
        ids = model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, use_cache=True
        )
    return logits, ids[:, batch["input_ids"].shape[1] :].tolist()


def our_outputs(
    config: SmolVLMConfig, params: Any, batch: dict[str, np.ndarray], new_tokens: int
) -> tuple[np.ndarray, list[list[int]]]:
    """smoljax's logits [B, T, V] (one plain `apply`) and greedy ids (the generation engine)."""
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda p, b: forward(config, p, b).logits)(params, batch)
        answers = Generator(config, params, stop_ids=(), pad_id=0).generate(batch, new_tokens)
    return np.asarray(logits), [answer.token_ids for answer in answers]


def compare(name: str, new_tokens: int = NEW_TOKENS) -> dict[str, Any]:
    """Runs one case; the row of the table."""
    import torch
    import transformers

    case = cases()[name]
    model = reference_model(case.config)
    batch = random_batch(case)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            if case.bf16:
                model.to(torch.bfloat16).save_pretrained(folder)
                model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
            else:
                model.save_pretrained(folder)
        checkpoint = load_hf(folder, dtype="float32")
        # The position-id variant is no part of config.json: it is what a user chooses.
        config = dataclasses.replace(checkpoint.config, vision=case.config.vision)
        assert config.text == case.config.text, (config.text, case.config.text)
        params = jax.tree.map(jax.numpy.asarray, checkpoint.params)
    started = time.perf_counter()
    theirs, their_ids = reference_outputs(model, batch, new_tokens)
    reference_s = time.perf_counter() - started
    started = time.perf_counter()
    ours, our_ids = our_outputs(config, params, batch, new_tokens)
    real = batch["attention_mask"]
    return {
        "case": name,
        "tokens": int(real.sum(axis=-1).max()),
        "tiles": int(batch["tile_mask"].sum()) if "tile_mask" in batch else 0,
        "largest_logit": float(np.abs(theirs[real]).max()),
        "largest_error": float(np.abs(ours - theirs)[real].max()),
        "greedy_tokens": new_tokens * len(our_ids),
        "greedy_equal": our_ids == their_ids,
        "passed": our_ids == their_ids and bool(np.abs(ours - theirs)[real].max() <= TOLERANCE),
        "reference_s": round(reference_s, 1),
        "smoljax_s": round(time.perf_counter() - started, 1),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, jax {jax.__version__}",
    }


def markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as a Markdown table."""
    yield "| case | tokens | tiles | largest logit | largest absolute error | greedy ids equal |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        equal = f"{row['greedy_tokens']} of {row['greedy_tokens']}" if row["greedy_equal"] else "**no**"
        yield (
            f"| {row['case']} | {row['tokens']} | {row['tiles']} | {row['largest_logit']:.2f} "
            f"| {row['largest_error']:.1e} | {equal} |"
        )


def main() -> int:
    """Prints the table; status 1 where a case misses the tolerance."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="cases to run; default: all")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of Markdown")
    args = parser.parse_args()
    rows = [compare(name) for name in args.names or cases()]
    if args.json:
        print(json.dumps({"rows": rows}))
    else:
        print("\n".join(markdown(rows)))
        print(f"\n{rows[0]['versions']}; float32, matmul precision `highest`")
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
