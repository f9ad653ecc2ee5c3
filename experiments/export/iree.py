"""The StableHLO files of `smoljax export` in IREE, beside run.py's answers with the same ids: they must be equal.

    pip install iree-base-compiler iree-base-runtime
    python -m experiments.export.iree FOLDER [--new 16]

Compiles the programs of the bucket that is asked for, for this machine's CPU, and asks with and without a picture of
noise. The loop is driven from here by the `step` program.
"""

import argparse
import functools
import json
import runpy
from pathlib import Path

import numpy as np


class InIREE:
    """The programs of an export folder, compiled by IREE, called like those of run.py."""

    def __init__(self, folder, manifest, weights):
        import iree.runtime

        self.folder, self.manifest, self.weights = folder, manifest, weights
        self.config = iree.runtime.Config("local-task")

    @functools.cache  # noqa: B019
    def compiled(self, name):
        import iree.compiler
        import iree.runtime

        module = iree.compiler.compile_file(
            str(self.folder / self.manifest["programs"][name]["files"]["cpu"]["stablehlo"]),
            input_type="stablehlo",
            target_backends=["llvm-cpu"],
            extra_args=["--iree-llvmcpu-target-cpu=host"],
        )
        context = iree.runtime.SystemContext(config=self.config)
        vm = iree.runtime.VmModule.copy_buffer(context.instance, module)
        context.add_vm_module(vm)
        return context.modules[vm.name]["main"]

    def call(self, name, *inputs):
        """A program's results by name; `decode` is the host's loop over `step`."""
        if name.startswith("decode"):
            state, limit, *rest = inputs
            while state["step"] < limit and not state["done"].all():
                state = self.call(name.replace("decode", "step"), state, *rest)
            return state
        said = self.manifest["programs"][name]
        flat = [self.weights[path] for path in said["weights"]]
        for spec, value in zip(said["inputs"].values(), inputs, strict=True):
            flat += [value[key] for key in spec] if isinstance(spec, dict) else [np.asarray(value)]
        found = self.compiled(name)(*flat)
        found = found if isinstance(found, list | tuple) else [found]
        return {name: array.to_host() for name, array in zip(said["outputs"], found, strict=True)}


def compare(folder, new):
    """[(what was asked, ids of jax, ids of IREE)]."""
    exported = runpy.run_path(str(folder / "run.py"))["Exported"]
    model, other = exported(folder), exported(folder)
    weights = {name: np.asarray(array) for name, array in model.weights.items()}
    other.call = InIREE(folder, model.manifest, weights).call
    rng, manifest = np.random.default_rng(0), model.manifest
    words = rng.integers(0, manifest["vocab_size"], 12)
    words = [int(word) for word in words if word != manifest["image_token_id"]]
    asked = {"words": (words, None)}
    if "vision" in manifest["programs"]:
        shape = manifest["programs"]["vision"]["inputs"]["pixel_values"][1]
        places = [manifest["image_token_id"]] * manifest["image_seq_len"]
        asked["a picture"] = (places + words, rng.standard_normal(shape, np.float32))
    return [(what, model.answer(*asked, new), other.answer(*asked, new)) for what, asked in asked.items()]


def main():
    parser = argparse.ArgumentParser(description="Exported programs in IREE.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--new", type=int, default=16)
    args = parser.parse_args()
    for what, jax_ids, iree_ids in compare(args.folder, args.new):
        print(json.dumps({"asked": what, "equal": jax_ids == iree_ids, "jax": jax_ids, "iree": iree_ids}))


if __name__ == "__main__":
    main()
