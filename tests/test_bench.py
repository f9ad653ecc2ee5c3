"""`smoljax bench`: contenders that answer and fail, comparisons, tables, and what the command refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from smoljax import presets
from smoljax.bench import report, run
from smoljax.bench.contender import start
from smoljax.bench.figures import FIGURES, Figure
from smoljax.bench.gguf_copies import write_copy
from smoljax.bench.memory import peak_bytes
from smoljax.bench.prompts import picture_prompt, text_prompt, training_batch
from smoljax.cli.main import main
from smoljax.errors import SmoljaxError, UsageError
from smoljax.nn.smolvlm import SmolVLM, abstract_params
from smoljax.training.flops import forward_flops


@pytest.fixture
def echo(monkeypatch):
    """Every contender is one that takes as long as it is told."""
    seconds = {"smoljax 256M float32": 0.5, "transformers 256M float32": 1.5, "limits": 1.0}
    monkeypatch.setattr(
        run.Weights, "spec", lambda self, name: ("tests.bench_echo", {"seconds": seconds[name]})
    )


def test_a_contender_answers_and_says_why_it_cannot():
    one = start("echo", "tests.bench_echo", {"seconds": 0.25}, 1)
    try:
        assert one.ask("decode", prompt=1, new=7) == {"seconds": 0.25, "ids": [1, 7]}
        with pytest.raises(SmoljaxError, match=r"echo: ValueError: no such prompt$"):
            one.ask("decode", prompt=666, new=1)
        assert one.ask("peak") == {"bytes": 0.25e9}  # it goes on after a failure
        with pytest.raises(SmoljaxError, match="echo ended: smoljax: gone"):
            one.ask("decode", prompt=13, new=1)
        with pytest.raises(SmoljaxError, match="echo ended"):
            one.ask("peak")
    finally:
        one.close()


def test_calls_are_compared(echo):
    figure = next(figure for figure in FIGURES if figure.key == "decode_float32")
    pair = [start(name, *run.Weights(None, print).spec(name), 1) for name in (figure.ours, figure.peer)]
    try:
        row = run._compare(figure, pair, 2)
    finally:
        for one in pair:
            one.close()
    assert (row["ours"], row["peer"], row["ratio"]) == (2.0, 1 / 1.5, 3.0)
    assert row["reached"]
    assert row["same_ids"]
    assert row["ratios"] == [3.0, 3.0]


@pytest.mark.parametrize(("kind", "unit", "ratio"), [("peak", "GB", 3.0), ("start", "s", None)])
def test_processes_are_compared(echo, kind, unit, ratio):
    figure = Figure("k", "t", "decode", {"prompt": 1, "new": 1}, "a", "b", 0, 2.0, kind, kind=kind)
    specs = [(name, "tests.bench_echo", {"seconds": s}) for name, s in (("a", 0.5), ("b", 1.5))]
    row = run._compare_processes(figure, run._run_processes(figure, specs, 1, 1))
    assert row["unit"] == unit
    if ratio is None:
        assert 0 < row["ours"] < 60  # a process's start takes what it takes
    else:
        assert (row["ratio"], row["ours"]) == (ratio, 0.5)


def test_time_and_memory_of_training_come_from_the_same_processes(monkeypatch, tmp_path):
    """And losses that are apart are an error."""
    made, begin = [], run.start
    specs = {"smoljax": {"seconds": 0.5, "apart": 0.0}, "transformers": {"seconds": 1.0, "apart": 0.25}}

    def counted(name, module, spec, threads):
        made.append(name)
        if name == "limits":
            module, spec = "tests.bench_echo", {}
        return begin(name, module, spec, threads)

    monkeypatch.setattr(run, "start", counted)
    monkeypatch.setattr(
        run.Weights, "spec", lambda self, name: ("tests.bench_echo", {**specs[name.split()[0]]})
    )
    result = run.measure(run.chosen(("train",), ("transformers",)), 1, 1, tmp_path)
    step, peak, *full = result["rows"]
    assert (step["unit"], step["ours"], step["ratio"], step["reached"]) == ("s", 0.5, 2.0, True)
    assert (peak["unit"], peak["ours"], peak["ratio"]) == ("GB", 0.5, 2.0)
    assert [row["figure"] for row in full] == ["train_step_full", "train_peak"]
    # One to warm up, one that counts, for both rows of a setting.
    assert made.count("smoljax 256M training") == 4
    with pytest.raises(SmoljaxError, match=r"losses of smoljax 256M training and .* are 0\.25 apart"):
        run.check(result)
    for row in (step, peak, *full):
        row["loss_difference"] = 1e-6
    run.check(result)


def test_the_patch_encoders_work_is_that_of_the_compiled_program():
    small = presets.tiny()
    assert small.vision is not None
    # Wide enough for products to be nearly all: norms and activations are not counted.
    vision = dataclasses.replace(small.vision, hidden_size=192, intermediate_size=768)
    config, side = dataclasses.replace(small, vision=vision), vision.image_size
    pixels = jax.ShapeDtypeStruct((1, 1, 3, side, side), "float32")
    plain = config.with_compute(attention="plain")  # no loops, so that XLA counts all of it

    def encode(params, pixels):
        return SmolVLM(plain).apply({"params": params}, pixels, method=SmolVLM.encode_images)[0]

    cost = jax.jit(encode).lower(abstract_params(plain), pixels).compile().cost_analysis()
    counted = forward_flops(config, rows=1, tokens=0, tiles=1)
    assert counted == pytest.approx(cost["flops"], rel=0.03)


def test_figures_are_chosen_by_name_group_and_peer():
    everything = run.chosen((), ("transformers", "llama.cpp"))
    assert everything == list(FIGURES)
    assert {figure.key for figure in run.chosen(("lookup",), ())} == {"lookup"}
    decode = run.chosen(("decode",), ("llama.cpp",))
    assert {"decode_llama_f32", "decode_int8_own"} <= {figure.key for figure in decode}
    assert not any(figure.peer.startswith("transformers") for figure in decode)
    with pytest.raises(UsageError, match="nothing is called speed; known: again, decode"):
        run.chosen(("speed",), ())
    assert len({figure.key for figure in FIGURES}) == len(FIGURES)


def test_the_table_says_what_was_measured(tmp_path):
    row = {
        "title": "decode, float32",
        "ours_name": "smoljax 256M float32",
        "peer_name": "transformers 256M float32",
        "unit": "tok/s",
        "ours": 45.04,
        "peer": 19.96,
        "ratio": 2.256,
        "ratios": [2.1, 2.256, 2.4],
        "target": 2.3,
        "reached": False,
        "memory_share": 0.69,
    }
    limits = {"gflops": 315.2, "gb_s": 35.16}
    result = {"threads": 2, "repeats": 3, "peers": {"transformers": "torch 2"}, "rows": [row]}
    result |= {"limits": limits, "limits_after": limits}
    table = report.markdown(result)
    assert (
        "| decode, float32 | 45 tok/s | transformers 256M float32: 20 tok/s | **2.26×** | 2.10–2.40 | "
        "2.3× missed | 69% of reading memory |" in table
    )
    assert "315 GFLOP/s and 35.2 GB/s" in table
    row["vision_share"] = row.pop("memory_share") + 0.15
    assert "| 84% of the matrix product in the patch encoder |" in report.markdown(result)
    report.plot(result, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_other_tokens_of_the_same_weights_are_an_error():
    row = {
        "figure": "decode_float32",
        "title": "decode",
        "ours_name": "a",
        "peer_name": "b",
        "same_ids": False,
    }
    with pytest.raises(SmoljaxError, match="a and b chose different tokens"):
        run.check({"rows": [row]})
    run.check({"rows": [{**row, "same_ids": True}]})


def test_prompts_are_the_same_every_time():
    one, other = picture_prompt(10, 64, 49190, 32), picture_prompt(10, 64, 49190, 32)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
    assert (one["input_ids"] == 49190).sum() == 64
    rows = training_batch(2, 10, 4, 300, 32)
    np.testing.assert_array_equal(rows["input_ids"], training_batch(2, 10, 4, 300, 32)["input_ids"])
    assert rows["input_ids"].shape == (2, 14)
    assert (rows["loss_mask"] == (rows["input_ids"] != 300)).all()
    assert (~rows["loss_mask"]).sum() == 2 * 4
    assert text_prompt(5, 3)["input_ids"].shape == (3, 5)
    assert peak_bytes() > 50e6


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("--peers", "ollama"), "--peers knows transformers, llama.cpp and none, not ollama"),
        (("--what", "speed"), "nothing is called speed"),
        (("--markdown", "nowhere/table.md"), "the folder nowhere does not exist"),
        (("--what", "prefill", "--peers", "none"), "the peers of these figures are not installed"),
    ],
)
def test_the_command_refuses(call, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", *call])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_gguf_file_is_written_again(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    matrix = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    writer.add_tensor("output.weight", matrix)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_copy(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q8_0")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    back = gguf.dequantize(found["output.weight"].data, found["output.weight"].tensor_type)
    np.testing.assert_allclose(back, matrix, atol=0.02)
    assert found["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    fields = gguf.GGUFReader(tmp_path / "b.gguf").fields
    assert fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]


def test_results_are_json(capsys, monkeypatch):
    """What is printed is one object, and the picture and the table are written from it."""
    made = {
        "threads": 1,
        "repeats": 1,
        "peers": {},
        "rows": [],
        "limits": {"gflops": 1.0, "gb_s": 1.0},
        "limits_after": {"gflops": 1.0, "gb_s": 1.0},
    }
    monkeypatch.setattr(run, "measure", lambda *_: made)
    monkeypatch.setattr(run, "tokenizer_is_here", lambda: None)
    with pytest.raises(SystemExit) as end:
        main(["bench", "--what", "lookup", "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == made
