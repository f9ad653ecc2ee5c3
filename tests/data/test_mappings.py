"""From examples to records: the scenes draw, the mappings of two public data sets, your own, and TFDS itself."""

import io
import sys
from collections import Counter

import numpy as np
import pytest
from data_helpers import png, scenes_example, scenes_source
from PIL import Image

from smoljax.data.mappings import (
    CAPTION_PROMPTS,
    coco_captions_record,
    find_mapping,
    mnist_record,
    pairs_record,
    register_mapping,
    scenes_record,
)
from smoljax.data.records import Record, ask
from smoljax.data.sources import MappedSource, open_source
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing import open_image


def said(talk):
    return talk[0]["content"][-1]["text"], talk[1]["content"][0]["text"]


def drawn(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("columns", [True, False])
def test_a_scene_becomes_its_conversations(columns):
    example = scenes_example(columns=columns)
    record = scenes_record(example, questions=5, boxes=2, rng=drawn(1))
    assert record.id == "scene-0"
    assert record.images == (example["image"],)
    assert record.caption is None
    assert record.patches == {}
    prompt, caption = said(record.conversations[0])
    assert prompt in CAPTION_PROMPTS
    assert caption in {f"Caption {number} of 0." for number in range(3)}
    questions = [said(talk)[0] for talk in record.conversations[2:]]
    assert len(set(questions)) == 5
    # Only one object has a phrase of its own; 96 pixels are 32 bins of 3.
    assert said(record.conversations[1]) == ("Locate the red circle.", "<loc_2><loc_5><loc_13><loc_16>")
    assert len(record.conversations) == 7
    assert record.meta["kinds"][0] == "caption"
    assert record.meta["kinds"][1] == "locate"
    assert all(talk[0]["content"][0] == {"type": "image"} for talk in record.conversations)


def test_all_questions_stay_in_order():
    record = scenes_record(scenes_example(3), questions=None, caption=False, boxes=0)
    assert [said(talk)[0] for talk in record.conversations] == [f"Question {n} of 3?" for n in range(16)]


def test_a_draw_can_be_repeated_and_changes_with_the_epoch():
    source = scenes_source(questions=4)
    assert source.read(2, epoch=5) == source.read(2, epoch=5) == scenes_source(questions=4).read(2, epoch=5)
    chosen = {str(source.read(2, epoch).conversations) for epoch in range(10)}
    assert len(chosen) == 10
    assert str(scenes_source(questions=4, seed=1).read(2).conversations) not in chosen
    every = Counter(said(talk)[0] for epoch in range(200) for talk in source.read(2, epoch).conversations[2:])
    assert len(every) == 16
    assert min(every.values()) > 25  # 50 expected of each


def test_kinds_are_drawn_by_weight():
    weights = {"count": 3.0, "colour": 0.0}
    kinds, example = Counter(), scenes_example()
    for seed in range(500):
        record = scenes_record(example, questions=1, caption=False, boxes=0, kinds=weights, rng=drawn(seed))
        kinds.update(record.meta["kinds"])
    assert set(kinds) == {"existence", "count", "relation"}
    assert abs(kinds["count"] / 500 - 3 / 5) < 0.08
    assert abs(kinds["relation"] / 500 - 1 / 5) < 0.08


def test_captions_for_pairs_and_labels_for_patches():
    record = scenes_record(
        scenes_example(), questions=0, caption=False, boxes=0, contrastive=True, dense=True
    )
    assert record.conversations == ()
    assert record.caption in {f"Caption {number} of 0." for number in range(3)}
    cells = scenes_example()["cells"]
    values = {"shape": (1, 8), "colour": (1, 5), "size": (1, 2), "texture": (1, 3)}
    for name, (first, second) in values.items():
        labels = record.patches[f"object_{name}"]
        assert labels.dtype == np.int32
        assert np.array_equal(labels, np.select([cells == 1, cells == 2], [first, second], 0))
    assert record.patches["character"][0, 3:6].tolist() == [3, 1, 20]
    assert record.patches["character"].dtype == np.int32


def test_a_scene_without_anything_to_learn_is_refused():
    with pytest.raises(SmoljaxError, match="scenes scene-0: no conversation left"):
        scenes_record(scenes_example(), questions=0, caption=False, boxes=0)


def test_pairs():
    example = {"image": np.zeros((4, 5, 3), np.uint8), "caption": b" A red circle. "}
    record = pairs_record(example, contrastive=True)
    assert said(record.conversations[0])[1] == "A red circle."
    assert record.caption == "A red circle."
    assert pairs_record(example).caption is None


def test_mnist_and_coco_captions():
    digit = mnist_record({"image": np.zeros((28, 28, 1), np.uint8), "label": np.int64(7)})
    assert said(digit.conversations[0]) == ("Which digit is this?", "7")
    assert digit.answers == ("7",)
    example = {
        "image": png(),
        "image/filename": b"000000391895.jpg",
        "image/id": 391895,
        "captions": {"id": [1, 2], "text": [b"A man on a bike. ", b"A rider."]},
    }
    record = coco_captions_record(example, contrastive=True)
    assert record.id == "000000391895.jpg"
    assert said(record.conversations[0]) == ("Describe the picture.", "A man on a bike.")
    assert record.answers == ("A man on a bike.", "A rider.")
    assert record.caption == "A man on a bike."
    assert {coco_captions_record(example, rng=drawn(seed)).answers[0] for seed in range(9)} == {
        "A man on a bike."
    }
    assert len({said(coco_captions_record(example, rng=drawn(s)).conversations[0])[1] for s in range(9)}) == 2


def test_your_own_mapping_by_function_and_by_name():
    def mine(example, *, shout=False):
        return Record(str(example), (), (ask("Well?", "YES" if shout else "yes", pictures=0),))

    register_mapping("test_mappings_mine", mine)
    register_mapping("test_mappings_mine", mine)
    by_name = find_mapping("test_mappings_mine", "numbers", {"shout": True})
    assert by_name(3, drawn(0)) == find_mapping(mine, "numbers", {"shout": True})(3, drawn(0))
    assert said(by_name(3, drawn(0)).conversations[0]) == ("Well?", "YES")
    with pytest.raises(UsageError, match="a mapping 'mnist' already"):
        register_mapping("mnist", mine)
    with pytest.raises(
        UsageError, match=r"no mapping 'cifar10'; known: coco_captions, .*mnist, pairs, scenes"
    ):
        find_mapping(None, "cifar10", {})
    with pytest.raises(UsageError, match="the mapping of scenes has no option question"):
        find_mapping("scenes", "scenes", {"question": 3})


def test_a_mapping_that_fails_is_named():
    source = MappedSource("digits", 2, lambda index: {"id": index}, find_mapping("mnist", "digits", {}))
    with pytest.raises(SmoljaxError, match=r"digits\[1\]: the mapping failed \(KeyError: 'label'\)"):
        source.read(1)
    wrong = MappedSource("text", 1, int, lambda index, rng: Record("r", (), (ask("?", "!"),)))
    with pytest.raises(SmoljaxError, match=r"text\[0\] \(record r\): 1 place for 0 pictures"):
        wrong.read(0)


def test_tfds_is_read_by_number_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TestMappingsDigits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number in range(20):
                stream = io.BytesIO()
                Image.new("L", (28, 28), number).save(stream, "png")
                yield number, {"image": io.BytesIO(stream.getvalue()), "label": number % 10}

    TestMappingsDigits(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    address = "tfds:test_mappings_digits"
    source = open_source(address, mnist_record, data_dir=tmp_path)
    assert len(source) == 20
    assert sorted(source[index].answers[0] for index in range(20)) == sorted("0123456789" * 2)
    pixels = {int(np.asarray(open_image(source[index].images[0]))[5, 5, 0]) for index in range(20)}
    assert pixels == set(range(20))
    assert len(open_source(f"{address}:train[:25%]", "mnist", data_dir=tmp_path)) == 5
    assert "tensorflow" not in sys.modules
    for wrong, message in [
        (f"{address}:test", "test_mappings_digits:test: cannot be opened"),
        ("tfds:no_such_data_set", "tfds:no_such_data_set: cannot be opened"),
    ]:
        with pytest.raises(SmoljaxError, match=message) as caught:
            open_source(wrong, mnist_record, data_dir=tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="is written tfds:NAME"):
        open_source("tfds:", mnist_record)
