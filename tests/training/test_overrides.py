"""`--set key=value`, and config files."""

import pytest

from smoljax import presets
from smoljax.data.config import DataConfig, SourceConfig
from smoljax.errors import SmoljaxError, UsageError
from smoljax.training.config import (
    CheckpointConfig,
    Contrastive,
    Dense,
    Distill,
    ModelConfig,
    NextToken,
    OptimizerConfig,
    TrainConfig,
)
from smoljax.training.config_file import read_config
from smoljax.training.overrides import override


@pytest.fixture
def config():
    data = DataConfig((SourceConfig("a.jsonl"), SourceConfig("b.jsonl", options={"questions": 4})), 8, 64)
    return TrainConfig(
        "run",
        ModelConfig(presets.tiny(), "processor"),
        data,
        (NextToken(), Contrastive(weight=0.1)),
        steps=10,
    )


def test_values_take_the_type_of_their_field(config):
    found = override(
        config,
        [
            "steps=2e3",
            "optimizer.lr=1",
            "data.pack=true",
            "data.longest_edge=512",
            "data.split=False",
            "name=7",
            "mesh.host_devices=2",
            "objectives.contrastive.weight=3",
            "objectives.0.balance=0.5",
            "data.sources.1.weight=2",
            "data.sources.1.options.questions=9",
            "data.sources.0.options.kinds.relation=2",
        ],
    )
    assert (found.steps, found.optimizer.lr, found.name) == (2000, 1.0, "7")
    assert isinstance(found.steps, int)
    assert isinstance(found.optimizer.lr, float)
    assert (found.data.pack, found.data.longest_edge, found.data.split) == (True, 512, False)
    assert (found.mesh.host_devices, found.objectives[1].weight, found.objectives[0].balance) == (2, 3.0, 0.5)
    assert [source.weight for source in found.data.sources] == [1.0, 2.0]
    assert found.data.sources[1].options == {"questions": 9}
    assert found.data.sources[0].options == {"kinds": {"relation": 2}}
    assert override(found, ["data.longest_edge=None", "optimizer.groups=()"]).data.longest_edge is None
    assert override(config, []) == config


@pytest.mark.parametrize("order", [1, -1])
def test_fields_that_check_each_other_are_changed_together(config, order):
    items = ["model.start=smolvlm-nano", "model.architecture=None", "model.processor=None"][::order]
    assert override(config, items).model == ModelConfig(start="smolvlm-nano")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["steps"], "must read key=value"),
        (["step=1"], "no key 'step'; there are name, model"),
        (["steps=None"], r"steps=None: must be int, as 10 is"),
        (["steps=1.5"], "must be int"),
        (["steps=True"], "must be int"),
        (["data.pack=1"], "must be bool"),
        (["validation=5"], "must be DataConfig or None"),
        (["optimizer.groups=(1,)"], "must be tuple"),
        (["objectives.dense.weight=1"], "'dense' is none of next_token, contrastive"),
        (["seed.a=1"], "seed.a: there is nothing under a value of 0"),
        (["optimizer=1", "optimizer.lr=1"], "optimizer itself is set too"),
        (["optimizer.lr=1", "optimizer=1"], "what lies under it is set too"),
        (["optimizer.name=sgd"], "must be one of adamw, muon"),
        (["objectives.contrastive.kind=siglip"], "must be one of sigmoid, infonce"),
        (["log_every=0"], "log_every is 0; it must be at least 1"),
        (["checkpoint.every=0"], "checkpoint.every is 0"),
        (["validation_batches=0"], "validation_batches is 0"),
        (["objectives.next_token.chunk=0"], "chunk is 0"),
    ],
)
def test_what_does_not_fit_is_refused(config, items, message):
    with pytest.raises(UsageError, match=message):
        override(config, items)


def test_objectives_refuse_what_they_cannot_do():
    with pytest.raises(UsageError, match="1 label_weights for 2 labels"):
        Dense((("a", 2), ("b", 3)), label_weights=(1.0,))
    with pytest.raises(UsageError, match="temperature is 0"):
        Distill("t", temperature=0)
    with pytest.raises(UsageError, match="keep_last is 0"):
        CheckpointConfig(keep_last=0)
    with pytest.raises(UsageError, match="accumulate is 0"):
        OptimizerConfig(accumulate=0)


def test_config_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"none\.py: no such config file"):
        read_config("none.py")
    (tmp_path / "other.py").write_text("config = 5\n")
    with pytest.raises(UsageError, match="must define `config`"):
        read_config("other.py")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(SmoljaxError, match="fails with ZeroDivisionError"):
        read_config("broken.py")
    (tmp_path / "good.py").write_text(
        "from smoljax.data.config import *\nfrom smoljax.training.config import *\n"
        "def config():\n"
        "    data = DataConfig((SourceConfig('a.jsonl'),), 8, 64)\n"
        "    return TrainConfig('run', ModelConfig(start='m'), data, (NextToken(),), steps=3)\n"
    )
    assert read_config(tmp_path / "good.py", ["steps=4"]).steps == 4
