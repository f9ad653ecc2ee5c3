"""The Python face of the contract: load, generate, stream, batches, logits, other weights."""

import gc

import jax
import numpy as np
import pytest
from PIL import Image

import smoljax
from smoljax.convert.convert import convert
from smoljax.convert.weights import StoredWeights
from smoljax.errors import SmoljaxError, UsageError
from smoljax.models import load, load_processor
from smoljax.processing.testing import tiny_processor


@pytest.fixture(scope="module")
def vlm(tiny_folder):
    return smoljax.load(tiny_folder)


def picture(seed, width=60, height=40):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_streamed_pieces_join_to_the_answer(vlm):
    pieces = list(vlm.generate("What?", images=[picture(0)], max_new_tokens=12, stream=True))
    assert "".join(pieces) == vlm.generate("What?", images=[picture(0)], max_new_tokens=12)


def test_one_picture_needs_no_list(vlm, tmp_path):
    picture(1).save(tmp_path / "p.png")
    want = vlm.generate("What?", images=[picture(1)], max_new_tokens=6)
    for one in (picture(1), np.asarray(picture(1)), str(tmp_path / "p.png"), tmp_path / "p.png"):
        assert vlm.generate("What?", images=one, max_new_tokens=6) == want


def test_a_batch_of_everything_equals_single_answers(vlm):
    samples = [
        {"prompt": "Only words"},
        {"prompt": "One?", "images": [picture(2)]},
        {"prompt": "Two, compared?", "images": [picture(3), picture(4, 90, 30)]},
        {"messages": [{"role": "user", "content": "hello"}]},
    ]
    single = [vlm.generate(max_new_tokens=10, **sample) for sample in samples]
    assert vlm.generate_batch(samples, max_new_tokens=10) == single


def test_the_picture_changes_the_answer(vlm):
    scores = [vlm.logits(vlm.prepare(prompt="What?", images=[picture(i)]).arrays())[0, -1] for i in (5, 6)]
    assert np.abs(scores[0] - scores[1]).max() > 1e-4


def test_a_wrong_call_fails_before_the_first_piece(vlm):
    with pytest.raises(UsageError, match="positions"):
        vlm.generate("What?", stream=True, max_new_tokens=5000)


def test_other_weights_answer_otherwise_without_compiling(tiny_folder):
    vlm = load(tiny_folder)
    first = vlm.generate("What?", max_new_tokens=12)
    before = dict(vlm.generator.compiled)
    vlm.params = jax.tree.map(lambda leaf: -leaf, vlm.params)
    assert vlm.generate("What?", max_new_tokens=12) != first
    assert vlm.generator.compiled == before


def test_the_known_shift_of_position_ids_is_an_option(tiny_folder, vlm):
    shifted = load(tiny_folder, position_ids="hf_4_55")
    arrays = vlm.prepare(prompt="What?", images=[picture(7)]).arrays()
    assert np.abs(shifted.logits(arrays) - vlm.logits(arrays)).max() > 1e-4
    same = load(tiny_folder, position_ids="bucket").logits(arrays)
    np.testing.assert_array_equal(same, vlm.logits(arrays))


@pytest.mark.parametrize("options", [{"background": True}, {"scan_layers": True}, {"dtype": "bfloat16"}])
def test_ways_to_load(tiny_folder, vlm, options):
    loaded = load(tiny_folder, **options)
    answer = loaded.generate("What?", images=[picture(7)], max_new_tokens=8)
    if "dtype" not in options:
        assert answer == vlm.generate("What?", images=[picture(7)], max_new_tokens=8)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {options.get("dtype", "float32")}


def test_weights_that_turn_out_damaged_in_the_background(tiny_folder, tmp_path):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "copy")
    largest = max((tmp_path / "copy" / "params").rglob("0"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[10] ^= 1
    largest.write_bytes(data)
    vlm = load(tmp_path / "copy", background=True)
    with pytest.raises(SmoljaxError, match="damaged"):
        vlm.generate("What?", max_new_tokens=2)


@pytest.mark.parametrize(
    ("processor", "word"),
    [
        ({"tile_size": 64}, "pixels"),
        ({"image_seq_len": 16}, "image tokens"),
    ],
)
def test_a_processor_of_another_model_is_refused(tiny_folder, tmp_path, processor, word):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "copy")
    hf = tmp_path / "hf"
    from smoljax.convert.convert import convert

    convert(tmp_path / "copy", hf, "hf")
    tiny_processor(**processor).save(hf)
    with pytest.raises(SmoljaxError, match=word):
        load(hf)


def test_repr_is_a_line_and_the_processor_alone_loads(tiny_folder, vlm):
    assert len(repr(vlm)) < 200
    assert "untrained" in repr(vlm)
    assert load_processor(tiny_folder).stop_ids == vlm.processor.stop_ids
    assert {"load", "SmolVLM", "Sampling"} <= set(dir(smoljax))


def test_a_lean_model_does_not_keep_what_it_was_read_from(tiny_folder, tmp_path):
    """Of a folder that is read and not mapped nothing but the weights on the device stays."""
    convert(tiny_folder, tmp_path / "hf", "hf")
    vlm = load(tmp_path / "hf", lean=True)
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is StoredWeights and one.path == tmp_path / "hf"]
    assert vlm.generate("What?", max_new_tokens=4) == load(tiny_folder).generate("What?", max_new_tokens=4)
