"""Answers with the exported programs beside this file. Needs jax, numpy and flatbuffers; words also tokenizers.

    python run.py --ids 1,2,3 [--tile tile.npy] [--new 32]
    python run.py --prompt "What is it?" [--tile tile.npy]

A tile is float32 [3, h, w], normalised as the model's processor does it; several are [tiles, 3, h, w]. manifest.json
says what every program takes and gives. JAX_COMPILATION_CACHE_DIR=FOLDER keeps what was compiled for the next start.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

STORED = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I8": np.int8, "U8": np.uint8}


def read_safetensors(path):
    """The arrays of a safetensors file by name: eight bytes of length, a JSON header, then the numbers."""
    raw = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    arrays = {}
    for name, said in header.items():
        if name != "__metadata__":
            first, end = said["data_offsets"]
            numbers = raw[start + first : start + end].view(STORED[said["dtype"]])
            arrays[name] = jnp.asarray(numbers.reshape(said["shape"]))
    return arrays


class Exported:
    """An export folder: its manifest, its weights, its programs, each read at first use."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        backend = jax.default_backend()
        self.platform = "cuda" if backend == "gpu" else backend
        if self.platform not in self.manifest["platforms"]:
            known = ", ".join(self.manifest["platforms"])
            raise SystemExit(f"exported for {known}, but jax runs on {self.platform} here")
        self.weights = read_safetensors(self.folder / "weights.safetensors")
        self.programs = {}

    def call(self, name, *inputs):
        """Runs a program on its inputs, in the manifest's order; gives a dict of arrays."""
        said = self.manifest["programs"][name]
        if name not in self.programs:
            path = self.folder / said["files"][self.platform]["jaxexport"]
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
            # What may be written over is said once more: an exported program does not tell it to its caller.
            self.programs[name] = jax.jit(exported.call, donate_argnums=tuple(said["donate_argnums"]))
        return self.programs[name]({path: self.weights[path] for path in said["weights"]}, *inputs)

    def answer(self, ids, tiles=None, new=None):
        """The ids that follow `ids` greedily, at most `new`, up to a stop id.

        Args:
          ids: the prompt, with `image_seq_len` image tokens for each tile.
          tiles: float32 [tiles, 3, h, w], in the order of the prompt.
          new: by default as many as the programs have room for.
        """
        told = self.manifest
        new = told["new_tokens"] if new is None else new
        bucket = min((size for size in told["prompt_tokens"] if size >= len(ids)), default=None)
        if bucket is None or not ids:
            raise SystemExit(f"{len(ids)} prompt tokens: exported for 1 to {max(told['prompt_tokens'])}")
        if not 1 <= new <= told["new_tokens"]:
            raise SystemExit(f"{new} new tokens: exported for 1 to {told['new_tokens']}")
        stop_ids, pad_id = np.array(told["stop_ids"], np.int32), np.int32(told["pad_id"])
        input_ids = np.full((1, bucket), pad_id, np.int32)
        input_ids[0, bucket - len(ids) :] = ids
        batch = [input_ids, np.arange(bucket)[None] >= bucket - len(ids)]
        if "vision" in told["programs"]:
            batch += self.seats(f"prefill-{bucket}", ids, tiles)
        elif tiles is not None:
            raise SystemExit("this model is text only: it takes no tiles")
        state = self.call(f"prefill-{bucket}", *batch, stop_ids, pad_id)
        state = self.call(f"decode-{bucket}", state, np.int32(new), stop_ids, pad_id)
        if not state["finite"]:
            raise SystemExit("the scores are not finite numbers: weights or tiles hold NaN or infinity")
        return np.asarray(state["tokens"])[0, : int(state["step"])].tolist()

    def seats(self, prefill, ids, tiles):
        """Image features of the tiles, with room for as many as a prompt holds, and which of them are real."""
        dtype, shape = self.manifest["programs"][prefill]["inputs"]["image_features"]
        tiles = [] if tiles is None else np.asarray(tiles, np.float32)
        places, each = list(ids).count(self.manifest["image_token_id"]), self.manifest["image_seq_len"]
        if places != len(tiles) * each:
            raise SystemExit(f"{places} image tokens for {len(tiles)} tiles of {each}: they must match")
        features = np.zeros(shape, jnp.dtype(dtype))
        for place, tile in enumerate(tiles):
            features[0, place] = np.asarray(self.call("vision", tile[None])["image_features"])[0]
        return [features, np.arange(shape[1])[None] < len(tiles)]


def main():
    """Reads the command line, answers, prints ids for ids and words for words."""
    parser = argparse.ArgumentParser(description="Answers with the exported programs beside this file.")
    parser.add_argument("--ids", help="the prompt as token ids: 1,2,3")
    parser.add_argument("--prompt", help="the prompt in words (needs the package tokenizers)")
    parser.add_argument("--tile", help=".npy file of one tile [3, h, w] or several [tiles, 3, h, w]")
    parser.add_argument("--new", type=int, help="tokens of the answer, at most")
    args = parser.parse_args()
    if (args.ids is None) == (args.prompt is None):
        parser.error("give one of --ids and --prompt")
    model = Exported(Path(__file__).parent)
    tiles = None
    if args.tile:
        tiles = np.load(args.tile)
        tiles = tiles.reshape(-1, *tiles.shape[-3:])
    if args.ids is not None:
        ids = [int(word) for word in args.ids.split(",")]
        print(",".join(map(str, model.answer(ids, tiles, args.new))))
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.folder / "processor" / "tokenizer.json"))
    chat = model.manifest["chat"]["text" if tiles is None else "picture"]
    text = chat.replace("{prompt}", args.prompt)
    ids = model.answer(tokenizer.encode(text, add_special_tokens=False).ids, tiles, args.new)
    print(tokenizer.decode(ids, skip_special_tokens=True).strip())


if __name__ == "__main__":
    main()
