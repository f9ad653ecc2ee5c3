"""Whole runs: guards, text alone, checkpoints that are kept, accumulation, export."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import smoljax
from smoljax import presets
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
from smoljax.training.sharding import make_mesh, rules_of
from smoljax.training.step import make_step


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


@pytest.mark.slow
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
    assert result.loss < json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
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


@pytest.mark.slow
def test_micro_batches_add_up_to_the_whole_batch(toy_config):
    partition = rules_of(MeshConfig()).partition(make_mesh(MeshConfig()))
    stepped = []
    for splits in (1, 4):
        config = toy_config(optimizer=OptimizerConfig(lr=1e-2, warmup_steps=1, accumulate=splits))
        start = open_model(config.model)
        batch = next(make_iterator(config.data, start.processor, 0))
        optimizer, first, _ = make_state(config, start, None, partition)
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


@pytest.mark.slow
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
