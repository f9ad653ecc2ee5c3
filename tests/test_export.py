"""Exported programs: the same ids as the model's own, from jax alone; what is written is what the manifest says."""

import dataclasses
import json
import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import ml_dtypes
import numpy as np
import pytest
from cli_calls import call
from jax.interpreters import mlir
from jaxlib.mlir import ir

import smoljax
from smoljax import export as exporting
from smoljax.convert.safetensors_file import write_safetensors
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.processor import Processor

ROOT = Path(__file__).parent.parent
NEW = 12
# In a process where none of these can be imported.
ASK = """
import json, sys
for name in ("smoljax", "flax", "orbax", "safetensors", "tokenizers", "jaxtyping"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
import run
model = run.Exported(sys.argv[1])
for ids, tiles, new in json.loads(sys.stdin.read()):
    print(json.dumps(model.answer(ids, None if tiles is None else np.load(tiles), new)))
"""


def export_of(vlm, folder, *options):
    """The folder that a model was exported to, moved since."""
    exporting.export(vlm, folder / "made", *options)
    return shutil.move(folder / "made", folder / "moved")


def reader(folder):
    """What run.py calls an export folder, in this process."""
    return runpy.run_path(str(folder / "run.py"))["Exported"](folder)


@pytest.fixture(scope="module")
def exported(tiny_folder, tmp_path_factory):
    """(a model, the folder of its programs, those in this process)"""
    vlm = smoljax.load(tiny_folder)
    folder = export_of(vlm, tmp_path_factory.mktemp("exported"), (64, 32), NEW)
    return vlm, folder, reader(folder)


@pytest.fixture(scope="module")
def rounded(tiny_folder, tmp_path_factory):
    """The same in int8, for every platform."""
    vlm = smoljax.load(tiny_folder, weights="int8")
    folder = export_of(vlm, tmp_path_factory.mktemp("rounded"), (64,), NEW, ("cpu", "tpu", "cuda"))
    return vlm, folder, reader(folder)


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("which", ["exported", pytest.param("rounded", marks=pytest.mark.slow)])
def test_ids_are_those_of_the_generator_with_jax_alone(which, request, tmp_path):
    vlm, folder, _ = request.getfixturevalue(which)
    picture = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    seen = vlm.prepare(prompt="And these?", images=[picture, picture[::-1]], split=False)
    told, wanted = [], []
    for batch in (vlm.prepare(prompt="What?"), seen):
        tiles = None
        if batch.pixel_values is not None:
            tiles = str(tmp_path / "tiles.npy")
            np.save(tiles, batch.pixel_values[0])
        for new in (1, NEW):
            told.append((batch.input_ids[0].tolist(), tiles, new))
            wanted.append(vlm.generator.generate(batch.arrays(), new)[0].token_ids)
    assert [len(ids) > 32 for ids, *_ in told] == [False, False, True, True]
    assert wanted[1] != wanted[3]
    found = subprocess.run(
        [sys.executable, "-c", ASK, str(folder)],
        input=json.dumps(told),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert [json.loads(line) for line in found.stdout.splitlines()] == wanted


def test_a_stop_id_ends_an_answer(exported, monkeypatch):
    vlm, _, model = exported
    ids = vlm.prepare(prompt="What?").input_ids[0].tolist()
    whole = model.answer(ids)
    monkeypatch.setitem(model.manifest, "stop_ids", [whole[4]] * len(model.manifest["stop_ids"]))
    assert model.answer(ids) == whole[: whole.index(whole[4]) + 1]


def test_steps_add_up_to_decode(exported, monkeypatch):
    vlm, _, model = exported
    ids = vlm.prepare(prompt="What?").input_ids[0].tolist()
    whole, plain, steps = model.answer(ids), model.call, []

    def stepwise(name, *inputs):
        if not name.startswith("decode"):
            return plain(name, *inputs)
        state, limit, *rest = inputs
        while state["step"] < limit and not state["done"].all():
            state = plain(name.replace("decode", "step"), state, *rest)
            steps.append(int(state["token"][0]))
        return state

    monkeypatch.setattr(model, "call", stepwise)
    assert model.answer(ids) == whole
    assert steps == whole[1:]


def test_the_manifest_says_what_the_files_hold(exported):
    _, folder, model = exported
    told = manifest_of(folder)
    assert told["format_version"] == 1
    sizes = told["prompt_tokens"]
    assert sizes == sorted(sizes)
    assert set(told["programs"]) == {
        "vision",
        *(f"{kind}-{size}" for kind in ("prefill", "decode", "step") for size in sizes),
    }
    weights = model.weights.items()
    stored = {name: [str(array.dtype), list(array.shape)] for name, array in weights}
    assert stored == told["weights"]
    assert {name for said in told["programs"].values() for name in said["weights"]} == set(stored)
    for name, said in told["programs"].items():
        files = said["files"]["cpu"]
        program = jax.export.deserialize(bytearray((folder / files["jaxexport"]).read_bytes()))
        assert program.platforms == ("cpu",)
        assert [program.calling_convention_version] == told["calling_convention_versions"]
        inputs = [told["weights"][path] for path in said["weights"]]
        for spec in said["inputs"].values():
            inputs += spec.values() if isinstance(spec, dict) else [spec]
        assert [[str(aval.dtype), list(aval.shape)] for aval in program.in_avals] == inputs
        outputs = list(said["outputs"].values())
        assert [[str(aval.dtype), list(aval.shape)] for aval in program.out_avals] == outputs
        # The module takes them all, in this order, each by the name that its place has.
        assert program.module_kept_var_idx == tuple(range(len(inputs)))
        text = (folder / files["stablehlo"]).read_text()
        with mlir.make_ir_context():
            module = ir.Module.parse(text)
            main = next(op for op in module.body.operations if op.sym_name.value == "main")
            assert len(main.type.inputs) == len(inputs), name
            assert len(main.type.results) == len(outputs), name
    for size in sizes:
        state = told["programs"][f"prefill-{size}"]["outputs"]
        for kind in ("decode", "step"):
            said = told["programs"][f"{kind}-{size}"]
            assert said["inputs"]["state"] == state == said["outputs"]
            assert said["donate_argnums"] == [1]
    kept = {path.name: path.read_bytes() for path in (folder / "processor").iterdir()}
    assert kept == Processor.from_files(kept).files


def test_the_script_reads_every_kind_of_number(exported, tmp_path):
    read = runpy.run_path(str(exported[1] / "run.py"))["read_safetensors"]
    rng = np.random.default_rng(0)
    kinds = (np.float32, ml_dtypes.bfloat16, np.float16, np.int8, np.uint8)
    arrays = {
        np.dtype(kind).name: (rng.standard_normal((3, 5)) * 50).astype(np.int8).astype(kind) for kind in kinds
    }
    write_safetensors(tmp_path / "a.safetensors", arrays, {"said": "nothing"})
    for name, array in read(tmp_path / "a.safetensors").items():
        assert array.dtype.name == name
        np.testing.assert_array_equal(np.asarray(array), arrays.pop(name))
    assert not arrays


def test_no_path_of_this_machine_is_written(exported):
    _, folder, _ = exported
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(ROOT).encode() not in path.read_bytes(), path
            assert sys.prefix.encode() not in path.read_bytes(), path


def test_the_state_is_written_in_place(exported):
    _, folder, _ = exported
    said = manifest_of(folder)["programs"]["decode-64"]
    program = jax.export.deserialize(bytearray((folder / said["files"]["cpu"]["jaxexport"]).read_bytes()))
    args, _ = jax.tree.unflatten(
        program.in_tree, [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
    )
    compiled = jax.jit(program.call, donate_argnums=tuple(said["donate_argnums"])).lower(*args).compile()
    state = said["inputs"]["state"]
    cache = sum(math.prod(shape) * 4 for name, (_, shape) in state.items() if name.startswith("cache/k/"))
    assert cache > 0
    assert compiled.memory_analysis().alias_size_in_bytes >= 2 * cache


def test_each_platform_has_programs_of_its_own(rounded):
    _, folder, _ = rounded
    texts = {}
    for name, said in manifest_of(folder)["programs"].items():
        for platform, files in said["files"].items():
            data = (folder / files["jaxexport"]).read_bytes()
            assert jax.export.deserialize(bytearray(data)).platforms == (platform,)
            texts[name, platform] = (folder / files["stablehlo"]).read_text()
    # A CPU multiplies int8 with int8, the others convert; a TPU's encoder has the kernel of its attention.
    for platform, split in (("cpu", True), ("tpu", False), ("cuda", False)):
        assert ("xi8>) -> tensor<2x" in texts["decode-64", platform]) == split
        assert ("tpu_custom_call" in texts["vision", platform]) == (platform == "tpu")


def text_only(vlm):
    """The same words without eyes."""
    config = dataclasses.replace(
        vlm.config, vision=None, scale_factor=None, image_token_id=None, model_type="llama"
    )
    return dataclasses.replace(
        vlm,
        config=config,
        weights={name: vlm.packed[name] for name in ("embedding", "decoder")},
        shapes=None,
        processor=Processor.from_files(vlm.require_processor().files, vision=False),
    )


def test_a_text_model_has_no_encoder_and_takes_no_tiles(tiny_folder, tmp_path):
    vlm = text_only(smoljax.load(tiny_folder))
    told = exporting.export(vlm, tmp_path / "out", (32,), NEW)
    assert set(told["programs"]) == {"prefill-32", "decode-32", "step-32"}
    assert set(told["chat"]) == {"text"}
    model = reader(tmp_path / "out")
    batch = vlm.prepare(prompt="What?")
    ids = batch.input_ids[0].tolist()
    assert model.answer(ids) == vlm.generator.generate(batch.arrays(), NEW)[0].token_ids
    with pytest.raises(SystemExit, match="text only"):
        model.answer(ids, np.zeros((1, 3, 32, 32), np.float32))


def test_the_script_answers_in_words(exported, tmp_path):
    vlm, folder, _ = exported
    args = [sys.executable, folder / "run.py", "--prompt", "What?", "--new", str(NEW)]
    found = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.strip() == vlm.generate("What?", max_new_tokens=NEW).strip(), found.stderr


def test_the_script_refuses_what_does_not_fit(exported, monkeypatch):
    vlm, folder, model = exported
    tile = np.zeros((1, 3, 32, 32), np.float32)
    for args, said in (
        (([1] * 65,), "65 prompt tokens: exported for 1 to 64"),
        (([],), "0 prompt tokens"),
        (([1], None, NEW + 1), f"{NEW + 1} new tokens: exported for 1 to {NEW}"),
        (([1], tile), "0 image tokens for 1 tiles of 4"),
        (([vlm.config.image_token_id] * 4, None), "4 image tokens for 0 tiles of 4"),
    ):
        with pytest.raises(SystemExit, match=said):
            model.answer(*args)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(SystemExit, match="exported for cpu, but jax runs on tpu"):
        reader(folder)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"platforms": ("cpu", "npu")}, UsageError, "'npu'"),
        ({"platforms": ()}, UsageError, "none"),
        ({"prompts": (10**6,)}, UsageError, "positions"),
        ({"prompts": (0,)}, UsageError, "1 or more"),
        ({"prompts": ()}, UsageError, "1 or more"),
        ({"new_tokens": 0}, UsageError, "1 or more"),
    ],
)
def test_what_cannot_be_exported_is_said_before_anything_is_written(
    tiny_folder, tmp_path, options, kind, said
):
    with pytest.raises(kind, match=said):
        exporting.export(smoljax.load(tiny_folder), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(tiny_folder, tmp_path, monkeypatch):
    vlm = smoljax.load(tiny_folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(SmoljaxError, match="is not empty"):
        exporting.export(vlm, tmp_path / "full", (32,), 4)

    def fails(*_):
        raise RuntimeError("on the way")

    monkeypatch.setattr(exporting, "export_program", fails)
    with pytest.raises(RuntimeError, match="on the way"):
        exporting.export(vlm, tmp_path / "out", (32,), 4)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(SmoljaxError, match=r"smoljax\[export\]"):
        exporting.export(vlm, tmp_path / "out", (32,), 4)


def test_the_command(tiny_folder, tmp_path):
    code, out, err = call(
        "export", tiny_folder, tmp_path / "out", "--prompt-tokens", "32", "--new-tokens", 4, "--json"
    )
    assert code == 0, err
    assert json.loads(out) == {"path": str(tmp_path / "out"), "platforms": ["cpu"], "prompt_tokens": [32]}
    assert manifest_of(tmp_path / "out")["new_tokens"] == 4
    for option in (("--prompt-tokens", "many"), ("--platforms", "npu")):
        code, out, err = call("export", tiny_folder, tmp_path / "other", *option)
        assert (code, out) == (2, "")
        assert err.startswith("smoljax: error: ")
        assert err.count("\n") == 1
