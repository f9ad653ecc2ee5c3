"""Sizes, grids and pixels against golden values of the reference's PIL backend."""

import json
from pathlib import Path

import numpy as np
import PIL
import pytest
from processing_golden import digest, load_golden

from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing import ImageConfig, tile_plan
from smoljax.processing.testing import pattern_picture, tiny_processor
from smoljax.processing.tiling import apply_table, cut_tiles, longest_edge_size, normalize_table

GOLDEN = load_golden("pictures.json")
SETTINGS = {"tiny": (32, 128), "256M": (512, 2048), "2.2B": (384, 1536)}


def image_config(tile_size, longest_edge, split=True):
    half = (0.5, 0.5, 0.5)
    return ImageConfig(longest_edge, tile_size, split, half, half, 1 / 255, 1)


@pytest.mark.parametrize(("setting", "width", "height", "rows", "cols", "tiles"), GOLDEN["grids"])
def test_the_grid_is_the_references(setting, width, height, rows, cols, tiles):
    plan = tile_plan(width, height, image_config(*SETTINGS[setting]))
    assert (plan.rows, plan.cols, plan.tiles) == (rows, cols, tiles)
    assert plan.grid_size[0] % plan.tile_size == plan.grid_size[1] % plan.tile_size == 0


def test_the_published_vector():
    plan = tile_plan(100, 80, image_config(512, 2048))
    assert plan.resized == (2048, 1638)
    assert (plan.rows, plan.cols, plan.tiles, plan.image_tokens(64)) == (4, 4, 17, 1088)


def test_odd_sides_become_even_and_the_longest_is_bounded():
    assert longest_edge_size(1000, 333, 1000) == (1000, 334)
    assert longest_edge_size(333, 1000, 1000) == (334, 1000)
    assert longest_edge_size(1, 5000, 2048) == (1, 2048)
    assert longest_edge_size(300, 200, 6000) == (4096, 2730)  # cut down without the even rule


@pytest.mark.parametrize(("edge", "tiles"), [(32, 1), (64, 5), (96, 10), (128, 17)])
def test_longest_edge_is_the_knob_of_cost(edge, tiles):
    assert tiny_processor().tile_plan(500, 500, longest_edge=edge).tiles == tiles


def test_no_split_is_one_tile_and_a_plan_of_no_size_is_refused():
    assert tiny_processor().tile_plan(5000, 3, split=False).tiles == 1
    with pytest.raises(UsageError, match="longest_edge is 0"):
        tiny_processor().tile_plan(5, 5, longest_edge=0)
    with pytest.raises(SmoljaxError, match="at least 1"):
        image_config(0, 128)


@pytest.mark.skipif(
    PIL.__version__.split(".")[0] != GOLDEN["versions"]["pillow"].split(".")[0],
    reason=f"Pillow's resize may round otherwise than the golden file's, {GOLDEN['versions']['pillow']}",
)
@pytest.mark.parametrize(("mode", "width", "height", "split", "sha"), GOLDEN["pixels"])
def test_pixels_are_the_references_bit_by_bit(mode, width, height, split, sha):
    batch = tiny_processor()(
        text="<image>", images=[pattern_picture(width, height, mode)], split=split == "split"
    )
    assert batch.pixel_values is not None
    assert digest(batch.pixel_values) == sha


def test_tiles_go_row_by_row_and_the_whole_picture_is_last():
    config = image_config(32, 96)
    image = pattern_picture(96, 64)
    plan = tile_plan(*image.size, config)
    pixels = apply_table(normalize_table(config), cut_tiles(image, plan, config.resample))
    assert (plan.rows, plan.cols, pixels.shape) == (2, 3, (7, 3, 32, 32))
    source = np.asarray(image).transpose(2, 0, 1)
    np.testing.assert_array_equal(np.round(pixels[4] * 127.5 + 127.5), source[:, 32:, 32:64])
    whole = np.asarray(image.resize((32, 32), 1)).transpose(2, 0, 1)
    np.testing.assert_array_equal(np.round(pixels[6] * 127.5 + 127.5), whole)
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_a_picture_of_the_right_size_is_not_resampled():
    config = image_config(32, 32)
    image = pattern_picture(32, 32)
    (tile,) = cut_tiles(image, tile_plan(32, 32, config), 1)
    np.testing.assert_array_equal(np.asarray(tile), np.asarray(image))


def test_golden_files_are_small():
    folder = Path(__file__).parents[1] / "golden" / "processing"
    assert sum(item.stat().st_size for item in folder.iterdir()) < 300_000
    assert json.loads((folder / "pictures.json").read_text())["versions"]["transformers"]
