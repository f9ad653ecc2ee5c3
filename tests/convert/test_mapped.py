"""Mapped native weights: the same numbers as Orbax reads, no copy on the way to the device."""

import jax
import numpy as np
import pytest
from convert_helpers import random_checkpoint

from smoljax import presets
from smoljax.convert import native
from smoljax.convert.checkpoint import iterate_leaves
from smoljax.convert.mapped_zarr import map_array


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


def test_compressed_arrays_are_left_to_orbax(tmp_path):
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True, use_compression=True)
    tree = {"a": np.zeros((64, 64), np.float32)}
    ocp.Checkpointer(handler).save(tmp_path / "n", args=ocp.args.PyTreeSave(tree))
    assert map_array(tmp_path / "n" / "a") is None
