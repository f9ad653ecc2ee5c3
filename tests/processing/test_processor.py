"""The processor: equal to the reference's golden ids, batches equal to single rows, every bad call one line."""

import numpy as np
import PIL
import pytest
from PIL import Image
from processing_golden import digest, load_golden, squeeze

from smoljax import presets
from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing import Processor
from smoljax.processing.testing import pattern_picture, tiny_files, tiny_processor

GOLDEN = load_golden("pictures.json")
SIZES = [(50, 20), (20, 20), (30, 90)]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def pictures(messages):
    count = sum(item["type"] == "image" for message in messages for item in message["content"])
    return [pattern_picture(*size) for size in SIZES[:count]]


@pytest.mark.parametrize("name", GOLDEN["chats"])
def test_prompts_are_the_references(processor, name):
    case = GOLDEN["chats"][name]
    batch = processor(messages=case["messages"], images=pictures(case["messages"]))
    assert batch.input_ids.tolist() == [case["ids"]]
    assert squeeze(batch.text[0]) == case["text"]
    assert batch.prompt_tokens == [len(case["ids"])]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_the_references(processor, side):
    chats = [GOLDEN["chats"][name]["messages"] for name in ("image first", "two images")]
    samples = [{"messages": chat, "images": pictures(chat)} for chat in chats]
    batch, want = processor.batch(samples, padding_side=side), GOLDEN["batch"][side]
    assert digest(batch.input_ids) == want["ids"]
    assert digest(batch.attention_mask) == want["mask"]
    assert batch.tile_mask.astype(int).tolist() == want["tile_mask"]
    assert batch.pixel_values.shape[:2] == batch.tile_mask.shape
    if PIL.__version__.split(".")[0] == GOLDEN["versions"]["pillow"].split(".")[0]:
        assert digest(batch.pixel_values) == want["pixels"]


def test_the_arrays_are_those_of_the_contract(processor):
    batch = processor(prompt="Hi", images=[pattern_picture(50, 20), pattern_picture(8, 8)])
    arrays = batch.arrays()
    assert set(arrays) == {"input_ids", "attention_mask", "pixel_values", "tile_mask"}
    assert arrays["input_ids"].dtype == np.int32
    assert arrays["attention_mask"].dtype == arrays["tile_mask"].dtype == bool
    assert arrays["pixel_values"].dtype == np.float32
    assert arrays["pixel_values"].shape == (1, batch.tiles[0], 3, 32, 32)
    assert batch.grids == [[(2, 4), (4, 4)]]
    assert batch.tiles == [9 + 17]
    assert batch.image_tokens == [4 * batch.tiles[0]] == [(batch.input_ids == 300).sum()]
    assert set(processor(prompt="Hi").arrays()) == {"input_ids", "attention_mask"}


def test_it_fits_the_tiny_model(processor):
    config = presets.tiny()
    assert config.vision is not None
    assert processor.config.image.tile_size == config.vision.image_size
    assert processor.config.image_seq_len == config.image_seq_len
    assert processor.tokenizer.image_id == config.image_token_id
    assert len(processor.tokenizer) <= config.text.vocab_size


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_batch_is_what_it_is_alone(processor, side):
    samples = [
        {"prompt": "one", "images": [pattern_picture(50, 20)]},
        {"prompt": "a longer text without any picture at all"},
        {"prompt": "two", "images": [pattern_picture(9, 9), pattern_picture(90, 9)]},
    ]
    batch = processor.batch(samples, padding_side=side)
    for index, sample in enumerate(samples):
        alone = processor(**sample)
        kept = batch.input_ids[index][batch.attention_mask[index]]
        np.testing.assert_array_equal(kept, alone.input_ids[0])
        edge = batch.attention_mask[index][-1 if side == "left" else 0]
        assert edge
        assert batch.tiles[index] == alone.tiles[0] == batch.tile_mask[index].sum()
        assert (np.diff(batch.tile_mask[index].astype(int)) <= 0).all()
        if alone.pixel_values is not None:
            real = batch.pixel_values[index][batch.tile_mask[index]]
            np.testing.assert_array_equal(real, alone.pixel_values[0])
        assert not batch.pixel_values[index][~batch.tile_mask[index]].any()
        assert (batch.input_ids[index][~batch.attention_mask[index]] == processor.pad_id).all()


def test_prompt_text_and_messages_say_the_same(processor):
    image = pattern_picture(20, 20)
    by_prompt = processor(prompt="Hi", images=[image])
    content = [{"type": "image"}, {"type": "text", "text": "Hi"}]
    by_messages = processor(messages=[{"role": "user", "content": content}], images=[image])
    raw = "<|im_start|>User:<image>Hi<end_of_utterance>\nAssistant:"
    by_text = processor(text=raw, images=[image])
    inside = [{"role": "user", "content": [{"type": "image", "image": image}, content[1]]}]
    assert by_prompt.text == by_messages.text == by_text.text == processor(messages=inside).text
    assert processor(prompt="", images=[image]).text[0].endswith("<end_of_utterance>\nAssistant:")
    assert processor(prompt="Hi", images=image).text == by_prompt.text


def test_the_picture_and_its_order_matter(processor):
    first, second = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    batch = processor(prompt="x", images=[first, second], split=False)
    assert batch.tiles == [2]
    assert batch.pixel_values[0, :, :, 0, 0].tolist() == [[1, -1, -1], [-1, -1, 1]]


def test_longest_edge_and_split_change_the_cost(processor):
    image = pattern_picture(500, 400)
    assert processor(prompt="x", images=[image]).tiles == [17]
    assert processor(prompt="x", images=[image], longest_edge=64).tiles == [5]
    assert processor(prompt="x", images=[image], longest_edge=32).tiles == [1]
    assert processor(prompt="x", images=[image], split=False).image_tokens == [4]
    assert processor.batch([{"prompt": "x", "images": [image]}], longest_edge=32).tiles == [1]
    assert processor(prompt="x", images=[image]).tiles == [17]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 4)])
def test_extreme_sizes(processor, size):
    batch = processor(prompt="x", images=[pattern_picture(*size)])
    assert batch.tiles == [processor.tile_plan(*size).tiles]
    assert np.isfinite(batch.pixel_values).all()


def test_files_go_through_untouched(processor, tmp_path):
    processor.save(tmp_path / "copy")
    again = Processor.from_folder(tmp_path / "copy")
    assert again.files == processor.files == tiny_files()
    assert again.config == processor.config
    assert again(prompt="Hi").text == processor(prompt="Hi").text


def test_a_vocabulary_without_row_tokens_spells_them(processor):
    files = tiny_files()
    files["tokenizer.json"] = (
        files["tokenizer.json"].replace(b"<row_", b"<raw_").replace(b"<global-img>", b"<gl-img>")
    )
    first = Processor.from_files(files)
    image = pattern_picture(50, 20)
    ours, theirs = first(prompt="x", images=[image]), processor(prompt="x", images=[image])
    assert ours.text == theirs.text
    assert ours.image_tokens == theirs.image_tokens
    assert ours.prompt_tokens[0] == theirs.prompt_tokens[0] + 8 * 12 + 11  # 13 and 12 bytes instead of one id


def bad_calls():
    image, hello = pattern_picture(4, 4), [{"role": "user", "content": "Hi"}]
    place = [{"role": "user", "content": [{"type": "image"}]}]
    yield {}, "exactly one of"
    yield {"prompt": "a", "text": "b"}, "exactly one of"
    yield {"prompt": ""}, "prompt is empty"
    yield {"prompt": " \n"}, "prompt is empty"
    yield {"text": ""}, "text is empty"
    yield {"messages": []}, "messages is empty"
    yield {"messages": [{"role": "user", "content": ""}]}, "prompt is empty"
    yield {"messages": place}, "1 <image> place for 0 pictures"
    yield {"messages": hello, "images": [image]}, "0 <image> places for 1 picture"
    yield {"text": "<image><image>", "images": [image]}, "2 <image> places for 1 picture"
    yield {"prompt": "say <image>"}, "1 <image> place for 0 pictures"
    yield {"prompt": "x", "images": [image], "longest_edge": 0}, "longest_edge is 0"
    yield {"prompt": "x", "video_style": "tv"}, "no video prompt style 'tv'"
    yield {"prompt": "x", "images": [3]}, "not a int"


@pytest.mark.parametrize(("call", "message"), list(bad_calls()))
def test_a_wrong_call_is_one_line(processor, call, message):
    with pytest.raises(UsageError, match=message) as caught:
        processor(**call)
    assert "\n" not in str(caught.value)


def test_wrong_batches(processor):
    with pytest.raises(UsageError, match="at least one"):
        processor.batch([])
    with pytest.raises(UsageError, match="padding_side is 'up'"):
        processor.batch([{"prompt": "x"}], padding_side="up")
    with pytest.raises(UsageError, match=r"unknown key\(s\) in a sample: picture"):
        processor.batch([{"prompt": "x", "picture": 1}])


def test_a_text_model_takes_no_pictures():
    text_only = tiny_processor(vision=False)
    assert text_only.config.image is None
    assert set(text_only(prompt="Hi").arrays()) == {"input_ids", "attention_mask"}
    assert text_only(text="<image> is a word here").image_tokens == [0]
    for call in (
        {"prompt": "x", "images": [pattern_picture(4, 4)]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"prompt": "x", "longest_edge": 3, "images": [pattern_picture(4, 4)]},
    ):
        with pytest.raises(UsageError, match="text-only"):
            text_only(**call)


def test_a_checkpoint_without_video_settings_takes_no_videos():
    with pytest.raises(UsageError, match="takes no videos"):
        tiny_processor(video=False)(prompt="x", videos=[np.zeros((1, 4, 4, 3), np.uint8)])


def test_a_base_model_has_no_template():
    files = {name: data for name, data in tiny_files().items() if name != "chat_template.json"}
    base = Processor.from_files(files)
    assert base(prompt="Once").text == ["Once"]
    assert squeeze(base(prompt="Once", images=[pattern_picture(4, 4)], split=False).text[0]).endswith(
        "image>Once"
    )
    with pytest.raises(UsageError, match="no chat template"):
        base(messages=[{"role": "user", "content": "Hi"}])


def test_missing_things_in_a_folder(tmp_path):
    with pytest.raises(SmoljaxError, match="no such folder"):
        Processor.from_folder(tmp_path / "none")
    with pytest.raises(SmoljaxError, match=r"tokenizer\.json is missing") as caught:
        Processor.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
