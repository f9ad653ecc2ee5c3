"""transformers as a contender: `python -m smoljax.bench.theirs SPEC`, SPEC as JSON: model, dtype, threads."""

import json
import sys
import time
from functools import cached_property
from typing import Any

from smoljax.bench.contender import serve
from smoljax.bench.memory import peak_bytes
from smoljax.bench.prompts import picture_prompt, text_prompt


class Theirs:
    """The actions, by the calls that a user of transformers makes."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    @cached_property
    def model(self) -> Any:
        """The model in evaluation mode."""
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        torch.set_num_threads(self.spec["threads"])
        kind = AutoModelForCausalLM if self.spec.get("text_only") else AutoModelForImageTextToText
        dtype = getattr(torch, self.spec.get("dtype") or "float32")
        return kind.from_pretrained(self.spec["model"], dtype=dtype).eval()

    def decode(self, prompt: int, new: int, rows: int = 1) -> dict[str, Any]:
        """Seconds a step: the difference between generating `new` + 1 tokens and one."""
        import torch

        arrays = text_prompt(prompt, rows)
        inputs = {
            "input_ids": torch.from_numpy(arrays["input_ids"]).long(),
            "attention_mask": torch.from_numpy(arrays["attention_mask"]).long(),
        }

        def generate(count: int) -> tuple[float, list[int]]:
            started = time.perf_counter()
            with torch.inference_mode():
                out = self.model.generate(
                    **inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
                )
            return time.perf_counter() - started, out[0, prompt:].tolist()

        one, _ = generate(1)
        all_, ids = generate(new + 1)
        return {"seconds": (all_ - one) / new, "ids": ids}

    def prefill(self, prompt: int) -> dict[str, Any]:
        """Seconds to read `prompt` tokens and score the next one."""
        import torch

        ids = torch.from_numpy(text_prompt(prompt)["input_ids"]).long()
        started = time.perf_counter()
        with torch.inference_mode():
            out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return {"seconds": time.perf_counter() - started, "ids": [int(out.logits[0, -1].argmax())]}

    def first_token(self, words: int) -> dict[str, Any]:
        """Seconds from a picture of one tile and `words` words to the first token."""
        import torch

        ids, pixels = self._picture(words)
        started = time.perf_counter()
        with torch.inference_mode():
            out = self.model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
        return {"seconds": time.perf_counter() - started, "ids": [int(out.logits[0, -1].argmax())]}

    def answer(self, words: int, new: int) -> dict[str, Any]:
        """`new` tokens about a picture of one tile: what memory is measured of."""
        import torch

        ids, pixels = self._picture(words)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
            )
        return {"ids": out[0, ids.shape[1] :].tolist()}

    def _picture(self, words: int) -> tuple[Any, Any]:
        import torch

        config = self.model.config
        vision = config.vision_config
        seats = (vision.image_size // vision.patch_size // config.scale_factor) ** 2
        arrays = picture_prompt(words, seats, config.image_token_id, vision.image_size)
        pixels = torch.from_numpy(arrays["pixel_values"]).to(self.model.dtype)
        return torch.from_numpy(arrays["input_ids"]).long(), pixels

    def peak(self) -> dict[str, Any]:
        """Most memory so far."""
        return {"bytes": peak_bytes()}


def main() -> None:
    """Serves until the parent closes the pipe."""
    theirs = Theirs(json.loads(sys.argv[1]))
    serve({name: getattr(theirs, name) for name in ("decode", "prefill", "first_token", "answer", "peak")})


if __name__ == "__main__":
    main()
