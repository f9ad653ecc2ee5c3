"""The comparison's arithmetic by known answers, the recipe's order and resumption, and the objective on scenes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import commands
from experiments.distillation import run
from experiments.distillation.alone import config as alone
from experiments.distillation.compare import FIGURES, compare
from experiments.distillation.page import page, verdict
from experiments.distillation.taught import config as taught
from experiments.statistics import student_interval
from smoljax import presets
from smoljax.convert.checkpoint import Checkpoint
from smoljax.convert.convert import load_checkpoint
from smoljax.convert.hf import json_bytes
from smoljax.convert.hf_config import to_hf_config
from smoljax.convert.native import save_native
from smoljax.data.config import SourceConfig
from smoljax.errors import SmoljaxError
from smoljax.processing.testing import tiny_processor
from smoljax.training.config import CheckpointConfig, Distill, MeshConfig, ModelConfig, OptimizerConfig
from smoljax.training.run import train


def test_the_arms_differ_in_the_teacher_alone():
    assert replace(taught, name=alone.name, objectives=alone.objectives) == alone
    assert taught.objectives[:-1] == alone.objectives
    assert isinstance(taught.objectives[-1], Distill)


def test_differences_by_seed_and_by_picture(predictions):
    # Picture by picture: without a teacher half are right; with one, all (seed 0) or three of four (seed 1).
    half = [(1, [1, 2, 2], 2.0), (0, [0, 2, 2], 4.0)] * 2
    pairs = [
        (predictions("0a", half), predictions("0t", [(1, [2, 2, 2], 1.0)] * 4)),
        (predictions("1a", half), predictions("1t", [(1, [2, 2, 2], 1.0)] * 3 + [(0, [0, 2, 2], 1.0)])),
    ]
    found = compare(pairs, FIGURES["VQA exact"])
    assert found["alone"] == [0.5, 0.5]
    assert found["taught"] == [1.0, 0.75]
    assert found["mean"] == pytest.approx(0.375)
    # Two seeds: t(0.975; 1 degree) = 12.706, standard error = 0.125.
    np.testing.assert_allclose(
        found["by_seed"], [0.375 - 12.7062 * 0.125, 0.375 + 12.7062 * 0.125], rtol=1e-4
    )
    low, high = found["by_picture"]
    assert 0 <= low < 0.375 < high <= 1
    facts = compare(pairs, FIGURES["caption object+attribute F1"])
    assert facts["alone"] == [0.25, 0.25]
    assert facts["taught"] == [1.0, 0.75]
    loss = compare(pairs, FIGURES["loss (nats a token; less is better)"])
    assert loss["difference"] == [-2.0, -2.0]
    assert "helps in: loss" in verdict({"loss": loss})
    assert "no difference at all: exact" in verdict({"exact": found})


def test_pictures_are_drawn_together_with_both_arms(predictions):
    # The same gain on every picture, however different the pictures are: nothing is left to the draw.
    rows = [(0, [1, 4, 4], nats) for nats in (1.0, 5.0, 9.0)]
    better = [(1, [1, 4, 4], nats - 0.5) for nats in (1.0, 5.0, 9.0)]
    pairs = [(predictions("a", rows), predictions("t", better))]
    found = compare(pairs, FIGURES["loss (nats a token; less is better)"])
    np.testing.assert_allclose(found["by_picture"], [-0.5, -0.5], atol=1e-12)
    assert found["by_seed"] is None


def test_the_t_interval_of_three():
    # t(0.975; 2 degrees) = 4.302653; standard deviation 1.
    np.testing.assert_allclose(
        student_interval(np.array([1.0, 2.0, 3.0])), [2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], rtol=1e-6
    )


def test_other_pictures_are_refused(predictions):
    rows = [(1, [1, 1, 1], 1.0)] * 3
    with pytest.raises(SmoljaxError, match="other pictures"):
        compare([(predictions("a", rows), predictions("t", rows[:2]))], FIGURES["VQA exact"])


def test_the_recipe_runs_what_is_missing_and_draws_the_page(tmp_path, predictions, monkeypatch):
    """Every command is replaced by one that leaves behind what the real one would; the second call needs none."""
    asked = []
    rows = {"alone": [(0, [1, 2, 2], 2.0)] * 3, "taught": [(1, [2, 2, 2], 1.0)] * 3}

    def command(*args):
        asked.append(args)
        if args[0] == "train":
            workdir = Path(args[args.index("--workdir") + 1])
            (workdir / "model").mkdir(parents=True)
            return {"step": 5, "loss": 1.0, "model": str(workdir / "model"), "finished": True}, 60.0
        arm = "alone" if "/alone/" in args[2] else "taught"
        source = predictions(f"made/{len(asked)}", rows[arm])
        target = Path(args[args.index("--predictions") + 1])
        target.write_text((source / target.name).read_text())
        return {"n": 3, "metrics": {}}, 1.0

    monkeypatch.setattr(commands, "smoljax", command)
    monkeypatch.setattr(run, "_parameters", lambda model: 7)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(
        sys, "argv", ["run", "--workdir", str(tmp_path / "runs"), "--teacher", "T", "--seeds", "2"]
    )
    run.main()
    trained = [args for args in asked if args[0] == "train"]
    assert [Path(args[1]).stem for args in trained] == ["dense", "alone", "taught"] * 2
    starts = [value for args in trained for value in args if value.startswith("model.start=")]
    assert starts[0] == starts[1] != starts[2] == starts[3]  # the arms of a seed share their beginning
    assert [value for args in trained for value in args if value.startswith("seed=")] == ["seed=0"] * 3 + [
        "seed=1"
    ] * 3
    assert len(asked) == 6 + 5 * 3
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["figures"]["VQA exact"]["difference"] == [1.0, 1.0]
    assert result["figures"]["VQA exact"]["teacher"] == 1.0
    assert (tmp_path / "page.md").read_text() == page(result)
    assert "| VQA exact | 100.0 | 0.0 → 100.0 | 0.0 → 100.0 | +100.0 |" in page(result)
    run.main()
    assert len(asked) == 6 + 5 * 3


@pytest.fixture(scope="module")
def scenes_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("scenes"))


def save_teacher(folder, scale):
    """A tiny model with random weights of its own kind of certainty."""
    config = presets.tiny()
    from smoljax.nn.smolvlm import init_params
    from smoljax.training.setup import export_params

    params = export_params(jax.jit(lambda key: init_params(config, key))(jax.random.key(5)))
    params["embedding"] = {name: leaf * scale for name, leaf in params["embedding"].items()}
    files = {**tiny_processor().files, "config.json": json_bytes(to_hf_config(config, dtype="float32"))}
    save_native(Checkpoint(config, params, files, source="test"), folder)


def tiny_arm(config, data_dir, processor, **fields):
    """An arm of the experiment at the size of the tiny model, on scenes/tiny."""
    options = {"caption": False, "questions": 3, "data_dir": data_dir}
    source = SourceConfig("tfds:scenes/tiny:train", options=options)
    small = replace(config.data, sources=(source,), batch_size=8, sequence_length=160, split=False)
    given = {
        "model": ModelConfig(presets.tiny(), str(processor)),
        "data": small,
        "validation": None,
        "steps": 40,
        "optimizer": OptimizerConfig(lr=5e-3, warmup_steps=2),
        "mesh": MeshConfig(),
        "checkpoint": CheckpointConfig(every=100),
        "log_every": 1,
    }
    return replace(config, **{**given, **fields})


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_tiny_student_learns_from_its_teacher_on_scenes(tmp_path, scenes_dir):
    tiny_processor().save(tmp_path / "processor")
    save_teacher(tmp_path / "teacher", 3.0)
    before = (tmp_path / "teacher" / "smoljax.json").read_bytes()
    teacher = Distill(str(tmp_path / "teacher"))
    both = tiny_arm(taught, scenes_dir, tmp_path / "processor", objectives=(*alone.objectives, teacher))
    train(both, tmp_path / "both", show=False)
    only = tiny_arm(alone, scenes_dir, tmp_path / "processor")
    train(only, tmp_path / "only", show=False)
    found, plain = lines(tmp_path / "both"), lines(tmp_path / "only")
    # The same start and the same first batch: the next-token part is equal until the teacher has had its say.
    assert found[0]["loss_next_token"] == pytest.approx(plain[0]["loss_next_token"], rel=1e-5)
    assert found[0]["loss"] == pytest.approx(found[0]["loss_next_token"] + found[0]["loss_distill"], rel=1e-5)
    assert found[-1]["loss_distill"] < 0.7 * found[0]["loss_distill"]
    assert found[-1]["loss_next_token"] != pytest.approx(plain[-1]["loss_next_token"], rel=1e-3)
    exported = load_checkpoint(tmp_path / "both" / "model", "float32").params
    assert set(exported) == set(load_checkpoint(tmp_path / "teacher", "float32").params)
    assert (tmp_path / "teacher" / "smoljax.json").read_bytes() == before


@pytest.mark.slow
def test_a_teacher_has_nothing_to_teach_itself(tmp_path, scenes_dir):
    save_teacher(tmp_path / "teacher", 3.0)
    own = ModelConfig(start=str(tmp_path / "teacher"))
    config = tiny_arm(
        taught,
        scenes_dir,
        None,
        model=own,
        steps=1,
        objectives=(Distill(str(tmp_path / "teacher"), hidden=0.0),),
    )
    train(config, tmp_path / "run", show=False)
    assert abs(lines(tmp_path / "run")[0]["loss_distill"]) < 1e-5
