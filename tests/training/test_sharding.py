"""Meshes and rules: the same run on every mesh, parameters where the rules say, and what cannot be is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import smoljax
from smoljax import presets
from smoljax.errors import UsageError
from smoljax.nn.logical import logical_axes
from smoljax.nn.smolvlm import abstract_params
from smoljax.sharing import SharingConfig
from smoljax.training.config import MeshConfig
from smoljax.training.sharding import AXES, PRESETS, Rules, check_hosts, make_mesh, rules_of, spec_of


class Device:
    """As much of a device as a mesh needs."""

    platform = "cpu"

    def __init__(self, number):
        self.id = number
        self.process_index = 0


def mesh_of(count, **axes):
    return make_mesh(MeshConfig(**axes), [Device(number) for number in range(count)])


@pytest.fixture(scope="module")
def runs(colours):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(smoljax.__file__).parent.parent)
    command = [sys.executable, str(Path(__file__).with_name("meshes.py")), str(colours)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["dp", "fsdp", "fsdp_tp", "sequence", "all"])
def test_fifty_steps_have_the_losses_of_one_device(runs, mesh):
    np.testing.assert_allclose(runs[mesh]["losses"], runs["one"]["losses"], rtol=1e-5)


@pytest.mark.slow
def test_rules_decide_what_a_device_holds(runs):
    held = {name: run["bytes"] for name, run in runs.items()}
    assert held["dp"] == held["one"]
    assert held["fsdp"] < 0.3 * held["one"]
    assert held["fsdp_tp"] < 0.35 * held["one"]


def test_heads_are_never_split():
    config = presets.get("smolvlm-256m")  # nine heads, three of keys and values
    by_two = Rules(**vars(PRESETS["fsdp_tp"])).partition(mesh_of(4, fsdp=2, tensor=2))
    path = "decoder/layers_0/attention/q/kernel"
    assert spec_of(path, (576, 576), by_two, config) == P(("fsdp",), None)
    by_three = PRESETS["fsdp_tp"].partition(mesh_of(3, tensor=3))
    assert spec_of(path, (576, 576), by_three, config) == P(None, ("tensor",))
    assert spec_of("embedding/table", (49280, 576), by_two, config) == P(("tensor",), ("fsdp",))
    moments = "opt_state/1/inner_states/adamw/mu/vision/layers/mlp/fc1/kernel"
    assert spec_of(moments, (12, 768, 3072), by_two, config) == P(None, ("fsdp",), ("tensor",))


@pytest.mark.parametrize(
    "sharing",
    [
        SharingConfig(),
        SharingConfig("mlp", image_attention="cross"),
        SharingConfig("visual_table"),
        SharingConfig("norm_matched", {"bias": True}, own_rows=300),
    ],
)
def test_every_matrix_of_every_variant_has_named_dimensions(sharing):
    import dataclasses

    config = dataclasses.replace(presets.tiny(), sharing=sharing)
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        name = "/".join(key.key for key in path)
        if leaf.ndim >= 2:
            assert any(logical_axes(name, leaf.ndim)), name


@pytest.mark.parametrize(
    ("hosts", "axes", "fits"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], {"fsdp": 8}, True),
        ([0, 0, 0, 0, 1, 1, 1, 1], {"fsdp": 2, "tensor": 4}, True),
        ([0, 0, 0, 0, 1, 1, 1, 1], {"tensor": 8}, False),
        # As many rows as hosts, but each lies on both.
        ([0, 0, 1, 1, 0, 0, 1, 1], {"fsdp": 2, "tensor": 4}, False),
    ],
)
def test_rows_lie_on_one_host_each(monkeypatch, hosts, axes, fits):
    devices = [Device(number) for number in range(8)]
    for device, host in zip(devices, hosts, strict=True):
        device.process_index = host
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    config = MeshConfig(**axes)
    partition = rules_of(config).partition(make_mesh(config, devices))
    if fits:
        check_hosts(partition)
        return
    with pytest.raises(UsageError, match="on several of the 2 hosts"):
        check_hosts(partition)


def test_rules_that_split_one_array_twice_are_refused():
    with pytest.raises(UsageError, match=r"fsdp would split two of \('embed', 'mlp'\)"):
        Rules(embed=("fsdp",), mlp=("fsdp",))
    with pytest.raises(UsageError, match="a mesh has data, fsdp, sequence, tensor"):
        Rules(heads=("model",))


def test_meshes_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="data 1 × fsdp 3 does not make the 4 devices"):
        mesh_of(4, fsdp=3, data=1)
    with pytest.raises(UsageError, match="rules 'dp' split nothing over tensor"):
        mesh_of(4, tensor=2, rules="dp")
    assert tuple(mesh_of(8, fsdp=2, tensor=2).shape[axis] for axis in AXES) == (2, 2, 1, 2)
