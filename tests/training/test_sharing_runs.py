"""Runs of models that share their space otherwise: trained, exported, loaded, asked; and config functions."""

import dataclasses
import json

import numpy as np
import pytest

import smoljax
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.sharing import SharingConfig
from smoljax.training.config import BagOfWords, Commitment, GapPenalty, Group, ModelConfig, NextToken, SoftTie
from smoljax.training.config_file import as_json, read_config
from smoljax.training.run import train

RUNS = {
    "mixed and shuffled": {
        "sharing": SharingConfig("word_mixture", {"top_k": 4}),
        "scale_factor": 4,
        "tile_tokens": "string",
    },
    "nearest": {"sharing": SharingConfig("nearest_word"), "more": (Commitment(), BagOfWords(), GapPenalty())},
    "cross": {"sharing": SharingConfig(image_attention="cross"), "more": (SoftTie(),)},
    "own rows both ways": {
        "sharing": SharingConfig(image_attention="bidirectional", own_rows=290),
        "tie": "mean",
        "frozen": "^embedding/table$|^decoder/",
    },
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "cross" else pytest.mark.slow) for name in RUNS]
)
def test_a_run_trains_exports_and_answers(name, toy_config, tiny_folder, tmp_path):
    fields = dict(RUNS[name])
    more, frozen = fields.pop("more", ()), fields.pop("frozen", None)
    base = toy_config()
    config = dataclasses.replace(
        base,
        model=ModelConfig(start=str(tiny_folder), scan_layers=True, **fields),
        objectives=(NextToken(), *more),
        steps=3,
    )
    if frozen:
        groups = (Group(frozen, frozen=True),)
        config = dataclasses.replace(config, optimizer=dataclasses.replace(base.optimizer, groups=groups))
    result = train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if line["kind"] == "train"]
    assert len(losses) == 3
    for objective in config.objectives:
        assert all(np.isfinite(line[f"loss_{objective.name}"]) for line in losses)
    model = smoljax.load(result.model)
    before = smoljax.load(tiny_folder)
    assert model.config.sharing == fields.get("sharing", model.config.sharing)
    assert model.require_processor().config.image_seq_len == model.config.image_seq_len
    picture = np.full((32, 32, 3), 90, np.uint8)
    assert isinstance(model.generate("How red?", images=[picture], max_new_tokens=3), str)
    if frozen:
        table, rows = model.params["embedding"]["table"], model.params["embedding"]["rows"]
        tables = before.params["embedding"]
        np.testing.assert_array_equal(table, 0.5 * (tables["table"] + tables["head"]))
        assert (rows != table[290:]).any()
    if "scale_factor" in fields:
        assert model.config.image_seq_len == 1
        assert "whole:" in model.prepare(text="<image>", images=[picture]).text[0]


def test_commitment_needs_a_connector_that_chooses(toy_config, tmp_path):
    with pytest.raises(SmoljaxError, match="chooses rows"):
        train(toy_config(objectives=(NextToken(), Commitment())), tmp_path)


def test_bad_model_settings_are_named():
    with pytest.raises(UsageError, match=r"model\.tie is 'both'"):
        ModelConfig(start="tiny", tie="both")
    with pytest.raises(UsageError, match=r"model\.tile_tokens is 'words'"):
        ModelConfig(start="tiny", tile_tokens="words")
    from smoljax import presets

    with pytest.raises(UsageError, match="belong to start"):
        ModelConfig(presets.tiny(), "folder", tie="mean")


def test_arguments_of_a_config_function_are_set_like_keys(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from smoljax.data.config import DataConfig, SourceConfig\n"
        "from smoljax.training.config import ModelConfig, NextToken, TrainConfig\n"
        "def config(steps_each: int = 5, name: str = 'a'):\n"
        "    data = DataConfig((SourceConfig('x.jsonl'),), 8, 64)\n"
        "    return TrainConfig(name, ModelConfig(start='tiny'), data, (NextToken(),), steps=2 * steps_each)\n"
    )
    assert (read_config(file).name, read_config(file).steps) == ("a", 10)
    found = read_config(file, ["steps_each=7", "name=linear", "seed=3"])
    assert (found.name, found.steps, found.seed) == ("linear", 14, 3)
    assert read_config(file, ["name=b", "steps=3"]).steps == 3
    with pytest.raises(UsageError, match="steps_each"):
        read_config(file, ["steps_each=many"])
    with pytest.raises(UsageError, match="no key 'stepz'"):
        read_config(file, ["stepz=3"])


def test_sharing_is_set_and_stored_by_key(tmp_path):
    from smoljax.training.config import TrainConfig
    from smoljax.training.overrides import override

    config = TrainConfig(
        "x",
        ModelConfig(start="tiny", sharing=SharingConfig("word_mixture")),
        DataConfig((SourceConfig("x.jsonl"),), 8, 64),
        (NextToken(),),
        steps=1,
    )
    found = override(config, ["model.sharing.connector=mlp", "model.sharing.input_gradient=0.5"])
    assert found.model.sharing == SharingConfig("mlp", input_gradient=0.5)
    assert as_json(found)["model"]["sharing"]["connector"] == "mlp"
    # What a run changes of the defaults: no word of what it leaves as it is.
    changed = as_json(found, defaults=False)
    assert changed["model"] == {"start": "tiny", "sharing": {"connector": "mlp", "input_gradient": 0.5}}
    assert changed["objectives"] == [{"objective": "next_token"}]
    assert "optimizer" not in changed
