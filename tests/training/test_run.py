"""Whole runs: exact resume over SIGKILL, other numbers of devices, guards, accumulation, export."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import smoljax
from smoljax import presets
from smoljax.convert.convert import load_checkpoint
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.data.pipeline import make_iterator
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.testing import tiny_processor
from smoljax.training import run as run_module
from smoljax.training.config import (
    CheckpointConfig,
    Contrastive,
    Dense,
    MeshConfig,
    ModelConfig,
    NextToken,
    OptimizerConfig,
)
from smoljax.training.run import train
from smoljax.training.setup import make_state, open_model
from smoljax.training.sharding import make_mesh
from smoljax.training.step import make_step

RUNNER = Path(__file__).with_name("runner.py")


def launch(colours, workdir, devices, *options):
    """A run in a process of its own; returns how it ended."""
    command = [sys.executable, str(RUNNER), str(colours), str(workdir), str(devices), *options]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(smoljax.__file__).parent.parent),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def weights(workdir):
    params = load_checkpoint(workdir / "model", "float32").params
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


@pytest.fixture(scope="module")
def unbroken(colours, tmp_path_factory):
    """Eight steps on one device, in one go."""
    workdir = tmp_path_factory.mktemp("unbroken")
    assert launch(colours, workdir, 1).returncode == 0
    return workdir


def test_a_run_killed_and_resumed_equals_one_that_was_not_bit_for_bit(colours, tmp_path, unbroken):
    killed = launch(colours, tmp_path, 1, "kill=5")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    resumed = launch(colours, tmp_path, 1)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path) == losses(unbroken)
    ours, theirs = weights(tmp_path), weights(unbroken)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_eight_devices_give_what_one_gives_and_take_over_its_checkpoint(colours, tmp_path, unbroken):
    together = launch(colours, tmp_path / "eight", 8, "mesh.fsdp=4")
    assert together.returncode == 0, together.stderr
    ours, theirs = losses(tmp_path / "eight"), losses(unbroken)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4)
    first, second = weights(tmp_path / "eight"), weights(unbroken)
    for name in second:
        np.testing.assert_allclose(first[name], second[name], atol=2e-3, err_msg=name)
    # Half on one device, half on eight.
    assert launch(colours, tmp_path / "moved", 1, "stop=4").returncode == 0
    moved = launch(colours, tmp_path / "moved", 8, "mesh.fsdp=2")
    assert moved.returncode == 0, moved.stderr
    found = losses(tmp_path / "moved")
    assert [found[step] for step in range(1, 5)] == [theirs[step] for step in range(1, 5)]
    np.testing.assert_allclose(list(found.values()), list(theirs.values()), rtol=2e-4)


def test_sigterm_saves_and_stops(colours, tmp_path):
    command = [
        sys.executable,
        str(RUNNER),
        str(colours),
        str(tmp_path),
        "1",
        "steps=100000",
        "checkpoint.every=100000",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(smoljax.__file__).parent.parent),
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        (tmp_path / "metrics.jsonl").exists() and losses_so_far(tmp_path) >= 3
    ):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    step = int(out.split()[0])
    assert 3 <= step < 100000
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    assert max(losses(tmp_path)) == step


def losses_so_far(workdir):
    return (workdir / "metrics.jsonl").read_text().count("\n")


def test_a_loss_that_is_no_number_stops_the_run_and_the_last_checkpoint_is_sound(
    toy_config, tmp_path, monkeypatch
):
    place = run_module.place_batch
    seen = []

    def poisoned(batch, sharding):
        seen.append(1)
        if len(seen) == 6:
            batch = {**batch, "pixel_values": batch["pixel_values"] * np.nan}
        return place(batch, sharding)

    monkeypatch.setattr(run_module, "place_batch", poisoned)
    with pytest.raises(SmoljaxError, match="step 6: loss nan"):
        train(toy_config(), tmp_path, show=False)
    monkeypatch.undo()
    result = train(toy_config(), tmp_path, show=False)
    assert result.finished
    assert np.isfinite(result.loss)


def test_a_loss_that_keeps_rising_stops_the_run():
    from smoljax.training.config import GuardConfig

    class Config:
        guard = GuardConfig(spike=2.0, patience=3)

    guard = run_module.Guard(Config)
    for step in range(10):
        guard.check(step, {"loss": 1.0, "grad_norm": 1.0})
    guard.check(10, {"loss": 9.0, "grad_norm": 1.0})
    guard.check(11, {"loss": 1.0, "grad_norm": 1.0})
    guard.check(12, {"loss": 9.0, "grad_norm": 1.0})
    guard.check(13, {"loss": 9.0, "grad_norm": 1.0})
    with pytest.raises(SmoljaxError, match="running mean"):
        guard.check(14, {"loss": 9.0, "grad_norm": 1.0})


def test_a_run_without_the_pairs_or_labels_it_wants_says_so(toy_config, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "NO_PAIRS", 3)
    pairs = toy_config(objectives=(NextToken(), Contrastive()))
    with pytest.raises(SmoljaxError, match=r"no pair in 3 batches.*\"contrastive\": True"):
        train(pairs, tmp_path / "pairs", show=False)
    labels = toy_config(objectives=(Dense((("shape", 3),)),))
    with pytest.raises(SmoljaxError, match="wants labels 'shape', which the data do not have"):
        train(labels, tmp_path / "labels", show=False)


def test_a_text_only_model_is_trained(toy_config, tmp_path):
    talk = [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for _ in range(8)))
    tiny_processor(vision=False).save(tmp_path / "processor")
    text = replace(presets.tiny(), vision=None, scale_factor=None, image_token_id=None, model_type="llama")
    config = toy_config(
        model=ModelConfig(text, str(tmp_path / "processor")),
        data=DataConfig((SourceConfig(str(tmp_path / "data.jsonl")),), 8, 64, max_tiles=0),
        steps=6,
    )
    result = train(config, tmp_path / "run", show=False)
    assert result.finished
    assert result.loss < losses(tmp_path / "run")[1]
    # Called again, it says what it had reached.
    assert train(config, tmp_path / "run", show=False).loss == result.loss


def test_only_checkpoints_that_were_validated_count_as_best(toy_config, tmp_path):
    config = toy_config(
        validation=toy_config().data,
        validate_every=2,
        validation_batches=1,
        checkpoint=CheckpointConfig(every=1, keep_last=1, keep_best=1),
    )
    train(config, tmp_path, show=False, stop_after=7)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["loss"] for line in lines if line["kind"] == "validation"}
    assert sorted(measured) == [2, 4, 6]
    best = min(measured, key=measured.__getitem__)
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {best, 7}


def test_micro_batches_add_up_to_the_whole_batch(toy_config):
    mesh = make_mesh(MeshConfig())
    stepped = []
    for splits in (1, 4):
        config = toy_config(optimizer=OptimizerConfig(lr=1e-2, warmup_steps=1, accumulate=splits))
        start = open_model(config.model)
        batch = next(make_iterator(config.data, start.processor, 0))
        optimizer, first, _ = make_state(config, start, None, mesh)
        stepped.append(jax.jit(make_step(config, start.config, optimizer))(first(), batch, None))
    (one, found_one), (four, found_four) = stepped
    for name in found_one:
        np.testing.assert_allclose(found_one[name], found_four[name], rtol=1e-4, err_msg=name)
    # AdamW's first step is the sign of the gradient, so the gradients are compared through its first moment.
    moment = [jax.tree.leaves(state.opt_state)[1:] for state in (one, four)]
    for a, b in zip(*moment, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_another_config_in_the_same_folder_is_refused(toy_config, tmp_path):
    train(toy_config(), tmp_path, show=False, stop_after=1)
    with pytest.raises(UsageError, match=r"seed was 0, now 1"):
        train(toy_config(seed=1), tmp_path, show=False)
    assert train(toy_config(log_every=2), tmp_path, show=False, stop_after=2).step == 2


def test_the_exported_model_answers_and_is_what_was_trained(toy_config, tmp_path, colours):
    config = toy_config(steps=40, validation=toy_config().data, validate_every=20, validation_batches=2)
    result = train(config, tmp_path, show=False)
    kinds = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validation = [line["loss"] for line in kinds if line["kind"] == "validation"]
    assert len(validation) == 2
    assert validation[1] < validation[0]
    assert result.model is not None
    vlm = smoljax.load(result.model)
    answer = vlm.generate("How red?", images=[colours / "3.png"], max_new_tokens=3, split=False)
    assert answer.strip() in {"0", "1", "2", "3"}
    # A fine-tuning run starts from it.
    again = toy_config(
        model=replace(config.model, architecture=None, processor=None, start=str(result.model))
    )
    tuned = train(replace(again, steps=2), tmp_path / "tuned", show=False)
    assert tuned.loss < json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"]
