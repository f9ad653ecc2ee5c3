"""Whole plans of the tiny model, by the TPU's own compiler; skipped where libtpu is not installed."""

import importlib.util
import json

import pytest

from smoljax import presets
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.plan.chips import read_topology
from smoljax.training.config import MeshConfig, ModelConfig, NextToken, TrainConfig
from smoljax.training.flops import train_flops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'smoljax[tpu]'"
    ),
]


def tiny_run(rows=8, **model):
    data = DataConfig(
        (SourceConfig("nowhere.jsonl"),), batch_size=rows, sequence_length=256, max_tiles=2, branches=False
    )
    settings = {"dtype": "bfloat16", "scan_layers": True, "remat": "full", **model}
    return TrainConfig(
        "tiny",
        ModelConfig(presets.tiny(), "nowhere", **settings),
        data,
        (NextToken(chunk=64),),
        steps=10,
        mesh=MeshConfig(fsdp=4),
    )


def test_a_plan_says_what_the_step_needs():
    from smoljax.plan.plan import plan_training

    config = tiny_run()
    found = json.loads(json.dumps(plan_training(config, read_topology("v5e:2x2"))))
    assert found["fits"]
    assert found["chips"] == 4
    assert found["mesh"] == {"fsdp": 4}
    model = train_flops(presets.tiny(), 8, 256, 2)
    assert found["flops"]["model"] == model
    # With what is computed twice and heads of 16 padded to the kernel's lanes, without what dead code leaves out.
    assert 0.8 * model < found["flops"]["executed"] < 2.2 * model
    assert (
        found["predicted_s"]["overlapped"]
        <= found["predicted_step_s"]
        <= 1.001 * found["predicted_s"]["apart"]
    )
    assert {row["axes"] for row in found["collectives"]} <= {"fsdp"}
    assert found["hbm"]["parameters"] < found["hbm_bytes_per_chip"]
    assert not found["loops_of_unknown_length"]


def test_a_run_that_does_not_fit_says_by_how_much():
    from smoljax.plan.plan import plan_training

    found = plan_training(tiny_run(rows=65536, remat="none", attention="plain"), read_topology("v5e:2x2"))
    assert not found["fits"]
    assert found["hbm_bytes_per_chip"] > found["hbm"]["available"]
    assert found["predicted_step_s"] is None


def test_answering_is_planned_program_by_program():
    from smoljax.plan.answers import Load, plan_answers

    config = presets.tiny().with_compute(dtype="bfloat16", scan_layers=True)
    found = plan_answers(config, MeshConfig(), read_topology("v5e:2x2"), Load(8, prompt=128, new=64, tiles=1))
    assert found["fits"]
    parts = [found[name] for name in ("vision", "prefill", "decode")]
    assert found["first_token_s"] == parts[0]["predicted_step_s"] + parts[1]["predicted_step_s"]
    # Repeated parameters, split rows: nothing to say over the links but whether all rows are done.
    assert sum(row["bytes"] for part in parts for row in part["collectives"]) < 1e3
    assert parts[1]["flops"]["executed"] > 10 * parts[2]["flops"]["executed"]
    split = plan_answers(config, MeshConfig(tensor=2), read_topology("v5e:2x2"), Load(8, 128, 64, 1))
    assert split["decode"]["hbm"]["parameters"] < 0.7 * parts[2]["hbm"]["parameters"]
    assert {row["axes"] for row in split["decode"]["collectives"]} >= {"tensor"}
