"""Writes tests/convert/golden: tiny checkpoints exactly as transformers saves them.

    python experiments/parity/make_convert_golden.py

`smolvlm`, `idefics3_tied` and `llama_tied` are folders of `save_pretrained`; `layout.npz` has what the
reference computes from the weights of `smolvlm` where the layout of an array matters: the patch convolution
and three linear layers. Random weights, seed 0; under 200 KB together.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

GOLDEN = Path(__file__).parents[2] / "tests" / "convert" / "golden"
TEXT = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "rope_theta": 100_000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
}
VISION = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
TOP = {"text_config": TEXT, "vision_config": VISION, "scale_factor": 2, "image_token_id": 39}


def randomise(model: Any) -> Any:
    """Every weight random, the ones and zeros of norms and biases included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    smolvlm = randomise(transformers.SmolVLMForConditionalGeneration(transformers.SmolVLMConfig(**TOP)))
    smolvlm.save_pretrained(GOLDEN / "smolvlm")
    idefics3 = transformers.Idefics3ForConditionalGeneration(
        transformers.Idefics3Config(**TOP, tie_word_embeddings=True)
    )
    randomise(idefics3).to(torch.bfloat16).save_pretrained(GOLDEN / "idefics3_tied")
    text = {key: value for key, value in TEXT.items() if key != "model_type"}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text, tie_word_embeddings=True))
    randomise(llama).to(torch.float16).save_pretrained(GOLDEN / "llama_tied")

    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, 16, 16, generator=generator)
    layers = {
        "vision/layers_1/attention/out": smolvlm.model.vision_model.encoder.layers[1].self_attn.out_proj,
        "connector/proj": smolvlm.model.connector.modality_projection.proj,
        "decoder/layers_0/mlp/down": smolvlm.model.text_model.layers[0].mlp.down_proj,
    }
    arrays = {"pixels": pixels.numpy()}
    with torch.no_grad():
        patches = smolvlm.model.vision_model.embeddings.patch_embedding(pixels)
        arrays["patches"] = patches.flatten(2).transpose(1, 2).numpy()
        for path, layer in layers.items():
            x = torch.randn(3, layer.in_features, generator=generator)
            arrays[f"in:{path}"], arrays[f"out:{path}"] = x.numpy(), layer(x).numpy()
    np.savez(GOLDEN / "layout.npz", **arrays)  # pyright: ignore[reportArgumentType]
    total = sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file())
    print(f"{GOLDEN}: {total} bytes, transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
