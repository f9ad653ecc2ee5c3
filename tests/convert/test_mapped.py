"""Mapped native weights: the same numbers as Orbax reads, no copy on the way to the device."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from convert_helpers import random_checkpoint

import smoljax
from smoljax import presets
from smoljax.convert import native
from smoljax.convert.checkpoint import iterate_leaves
from smoljax.convert.mapped_zarr import map_array
from smoljax.convert.pages import Pages


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_mapping_reads_what_orbax_reads(tmp_path, monkeypatch, dtype, scan_layers):
    native.save_native(
        random_checkpoint(presets.tiny(), dtype=dtype), tmp_path / "n", scan_layers=scan_layers
    )
    mapped = dict(iterate_leaves(native.load_native(tmp_path / "n").params))
    monkeypatch.setattr(native, "_mapped", lambda *args: None)
    read = dict(iterate_leaves(native.load_native(tmp_path / "n").params))
    assert mapped.keys() == read.keys()
    for path, array in mapped.items():
        assert array.dtype == read[path].dtype
        assert array.tobytes() == read[path].tobytes(), path
        assert not array.flags.writeable


def test_a_mapped_array_reaches_the_cpu_device_uncopied(tmp_path):
    native.save_native(random_checkpoint(presets.tiny()), tmp_path / "n")
    table = native.load_native(tmp_path / "n").params["embedding"]["table"]
    placed = jax.device_put(table, may_alias=True)
    assert placed.unsafe_buffer_pointer() == table.ctypes.data
    np.testing.assert_array_equal(placed, table)


def test_an_older_layout_is_read(tmp_path):
    """Formats 1 and 2: stacked, the decoder's matrices one by one."""
    checkpoint = random_checkpoint(presets.tiny())
    native.save_native(checkpoint, tmp_path / "n", scan_layers=False)
    path = tmp_path / "n" / native.METADATA_FILE
    metadata = json.loads(path.read_bytes())
    del metadata["layout"]["packed"]
    path.write_text(json.dumps(metadata | {"format_version": 1}))
    assert not native.holds_packed(tmp_path / "n")
    old = dict(iterate_leaves(native.load_native(tmp_path / "n").params))
    for name, array in iterate_leaves(checkpoint.params):
        assert old[name].tobytes() == np.asarray(array).tobytes(), name


def test_weights_of_several_dtypes_are_not_put_into_one_matrix(tmp_path):
    checkpoint = random_checkpoint(presets.tiny())
    q = checkpoint.params["decoder"]["layers_0"]["attention"]["q"]
    q["kernel"] = q["kernel"].astype(np.float16)
    native.save_native(checkpoint, tmp_path / "n", scan_layers=False)
    assert not native.holds_packed(tmp_path / "n")
    kept = native.load_native(tmp_path / "n").params["decoder"]["layers_0"]["attention"]["q"]["kernel"]
    assert kept.dtype == np.float16


def test_packed_weights_are_mapped_and_not_copied(tiny_folder):
    """Layers lie one behind the other, as in the file."""
    vlm = smoljax.load(tiny_folder)
    place = vlm.packed["decoder"]["layers_0"]["mlp"]["gate_up"]["kernel_t"].unsafe_buffer_pointer()
    for i in range(vlm.config.text.num_layers):
        apart = vlm.packed["decoder"][f"layers_{i}"]["mlp"]["gate_up"]["kernel_t"]
        assert apart.unsafe_buffer_pointer() == place + i * apart.nbytes


def test_the_pages_of_a_part_come_and_go(tmp_path):
    """What is given back is read again: the numbers stay the same."""
    native.save_native(random_checkpoint(presets.tiny()), tmp_path / "n")
    params = native.map_packed(tmp_path / "n")
    before = {path: leaf.tobytes() for path, leaf in iterate_leaves(params)}
    pages = Pages(params, ("embedding/table",))
    pages.all()
    pages.only("vision", "connector")
    pages.only("decoder")
    pages.only("nothing")
    assert {path: leaf.tobytes() for path, leaf in iterate_leaves(params)} == before


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident pages by /proc")
def test_lean_keeps_one_part_resident(tmp_path):
    config = presets.tiny()
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=200_000))
    native.save_native(random_checkpoint(config), tmp_path / "n")
    pages = Pages(native.map_packed(tmp_path / "n"))

    def resident():
        return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    pages.only("embedding")
    there = resident()
    pages.only("vision")
    table = 200_000 * config.text.hidden_size * 4
    assert there - resident() > 0.8 * table


def test_compressed_arrays_are_left_to_orbax(tmp_path):
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True, use_compression=True)
    tree = {"a": np.zeros((64, 64), np.float32)}
    ocp.Checkpointer(handler).save(tmp_path / "n", args=ocp.args.PyTreeSave(tree))
    assert map_array(tmp_path / "n" / "a") is None
