"""smoljax as a contender: `python -m smoljax.bench.ours '{"model": FOLDER, "weights": "int8"}'`."""

import json
import sys
import time
from functools import cached_property
from typing import Any

import jax

from smoljax.bench.contender import serve
from smoljax.bench.limits import matrix_gflops, memory_gb_s
from smoljax.bench.memory import peak_bytes
from smoljax.bench.prompts import PASSAGE, picture_prompt, text_prompt
from smoljax.generation.generator import Generator
from smoljax.generation.options import Draft, Lookup, Timings
from smoljax.generation.serving import Engine
from smoljax.models import enable_compilation_cache, load
from smoljax.training.flops import forward_flops
from smoljax.vlm import VLM


class Ours:
    """The actions; every first call of a shape compiles and is not timed by the parent."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    @cached_property
    def vlm(self) -> VLM:
        """The loaded model; programs are kept in the compilation cache, as the commands do."""
        enable_compilation_cache()
        return load(
            self.spec["model"],
            dtype=self.spec.get("dtype"),
            weights=self.spec.get("weights"),
            background=True,
            lean=self.spec.get("lean", False),
        )

    @cached_property
    def generator(self) -> Generator:
        """The model without stop tokens: every contender makes as many."""
        vlm = self.vlm
        laid = {"kept": vlm.kept, "shapes": vlm.shapes, "at_work": vlm.at_work}
        return Generator(vlm.config, vlm.weights, (), 0, **laid)

    def weights(self) -> dict[str, Any]:
        """Bytes of all weights, and of those that a step of decoding reads."""

        def size(tree: Any) -> int:
            return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

        params = self.generator.weights
        tables = dict(params["embedding"])
        if not self.generator.config.tie_embeddings:  # a row is looked up, the head is read
            tables = {name: leaf for name, leaf in tables.items() if name.startswith("head")}
        return {"bytes": size(params), "decode_bytes": size(params["decoder"]) + size(tables)}

    def decode(self, prompt: int, new: int, rows: int = 1) -> dict[str, Any]:
        """Seconds a step of `rows` rows behind `prompt` tokens."""
        timings, batch = Timings(), text_prompt(prompt, rows)
        found = self.generator.generate(batch, new + 1, timings=timings)
        return {"seconds": timings.decode_s / timings.decode_steps, "ids": found[0].token_ids}

    def prefill(self, prompt: int) -> dict[str, Any]:
        """Seconds to read `prompt` tokens and score the next one."""
        timings = Timings()
        found = self.generator.generate(text_prompt(prompt, 1), 1, timings=timings)
        return {"seconds": timings.prefill_s, "ids": found[0].token_ids}

    def first_token(self, words: int) -> dict[str, Any]:
        """Seconds from a picture of one tile and `words` words to the first token; the encoder's, and its work."""
        timings = Timings()
        config = self.generator.config
        assert config.vision is not None
        batch = picture_prompt(words, config.image_seq_len, config.image_token_id, config.vision.image_size)
        found = self.generator.generate(batch, 1, timings=timings)
        return {
            "seconds": timings.vision_s + timings.prefill_s,
            "vision_s": timings.vision_s,
            "vision_gflop": forward_flops(config, rows=1, tokens=0, tiles=1) / 1e9,
            "ids": found[0].token_ids,
        }

    def answer(self, words: int, new: int) -> dict[str, Any]:
        """`new` tokens about a picture of one tile: what memory is measured of."""
        config = self.generator.config
        assert config.vision is not None
        batch = picture_prompt(words, config.image_seq_len, config.image_token_id, config.vision.image_size)
        return {"ids": self.generator.generate(batch, new)[0].token_ids}

    def repeat(self, new: int, lookup: bool) -> dict[str, Any]:
        """Seconds for `new` tokens that repeat a text of the prompt, with or without guessing ahead."""
        batch = self.vlm.prepare(prompt=f"Repeat this text word for word: {PASSAGE}").arrays()
        timings = Timings()
        found = self.generator.generate(batch, new, timings=timings, ahead=Lookup() if lookup else None)
        return {"seconds": timings.decode_s, "ids": found[0].token_ids, "passes": timings.passes}

    @cached_property
    def draft(self) -> Draft:
        """The model's own int8 weights: of what can be had without another model, they guess best."""
        return Draft(model=load(self.spec["model"], dtype=self.spec.get("dtype"), weights="int8"))

    def free(self, new: int, draft: bool) -> dict[str, Any]:
        """Seconds for `new` tokens of free text, with or without a draft."""
        batch = self.vlm.prepare(prompt="Tell me a short story about a lighthouse keeper.").arrays()
        timings, ahead = Timings(), self.draft if draft else None
        found = self.generator.generate(batch, new, timings=timings, ahead=ahead)
        return {
            "seconds": timings.decode_s,
            "ids": found[0].token_ids,
            "passes": timings.passes,
            "drafted": timings.drafted,
            "accepted": timings.accepted,
        }

    def again(self, words: int, kept: bool) -> dict[str, Any]:
        """Seconds to the first token of a second question about a picture, beginnings of prompts kept or not."""
        config = self.generator.config
        assert config.vision is not None
        asked = (words, config.image_seq_len, config.image_token_id, config.vision.image_size)
        first, second = picture_prompt(*asked), picture_prompt(*asked)
        behind = second["input_ids"][:, 1 - words :]  # the words that follow the picture
        behind[:] = behind[:, ::-1].copy()
        engine = Engine(self.generator, rows=1, prefix_bytes=2**28 if kept else 0)
        engine.submit(first, 1)
        list(engine.run())
        started = time.perf_counter()
        engine.submit(second, 1)
        (answer,) = engine.run()
        return {
            "seconds": time.perf_counter() - started,
            "ids": answer.generation.token_ids,
            "cached": answer.cached_tokens,
        }

    def limits(self) -> dict[str, Any]:
        """The machine's own: GFLOP/s of a large product, GB/s of reading memory."""
        return {"gflops": matrix_gflops(), "gb_s": memory_gb_s()}

    def peak(self) -> dict[str, Any]:
        """Most memory so far."""
        return {"bytes": peak_bytes()}


def main() -> None:
    """Serves until the parent closes the pipe."""
    ours = Ours(json.loads(sys.argv[1]))
    names = (
        "weights",
        "decode",
        "prefill",
        "first_token",
        "answer",
        "repeat",
        "free",
        "again",
        "limits",
        "peak",
    )
    serve({name: getattr(ours, name) for name in names})


if __name__ == "__main__":
    main()
