"""Reading the checkpoint's small files: old and new layouts, and everything that must not pass in silence."""

import json

import pytest

from smoljax.errors import SmoljaxError
from smoljax.processing import Processor
from smoljax.processing.config import read_config
from smoljax.processing.released import CHAT_TEMPLATE
from smoljax.processing.testing import tiny_files, tiny_processor


def edited(name, drop=(), files=None, **changes):
    files = dict(files or tiny_files())
    data = json.loads(files[name])
    for key in drop:
        del data[key]
    files[name] = json.dumps({**data, **changes}).encode()
    return files


def test_the_values_come_from_the_files():
    config = read_config(tiny_files())
    assert (config.image.longest_edge, config.image.tile_size, config.image.split) == (128, 32, True)
    assert (config.image.resample, config.image.mean, config.image_seq_len) == (1, (0.5, 0.5, 0.5), 4)
    assert (config.video.fps, config.video.max_frames, config.eos_token_ids) == (1, 64, (301,))
    assert config.chat_template == CHAT_TEMPLATE
    assert config.special_tokens["bos_token"] == "<|im_start|>"
    assert read_config(tiny_files(video=False)).video is None


def test_a_size_beside_the_video_settings_wins_as_in_the_reference():
    assert read_config(tiny_files()).video.longest_edge == 128
    files = tiny_files()
    video = json.loads(files["preprocessor_config.json"])
    del video["size"]
    files["video_preprocessor_config.json"] = json.dumps(video).encode()
    assert read_config(files).video.longest_edge == 32


def test_one_merged_file_is_read_too():
    files = tiny_files()
    merged = json.loads(files["processor_config.json"])
    merged["image_processor"] = merged["video_processor"] = json.loads(files.pop("preprocessor_config.json"))
    files["processor_config.json"] = json.dumps(merged).encode()
    assert read_config(files) == read_config(tiny_files())


@pytest.mark.parametrize("name", ["chat_template.jinja", "processor_config.json", "tokenizer_config.json"])
def test_every_home_of_a_chat_template(name):
    files = {key: data for key, data in tiny_files().items() if key != "chat_template.json"}
    if name.endswith(".jinja"):
        files[name] = b"T"
    else:
        files = edited(name, files=files, chat_template="T")
    assert read_config(files).chat_template == "T"


def test_named_templates_and_tokens_as_objects():
    files = {key: data for key, data in tiny_files().items() if key != "chat_template.json"}
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": "T"}]
    files = edited("tokenizer_config.json", files=files, chat_template=named, bos_token={"content": "<b>"})
    config = read_config(files)
    assert (config.chat_template, config.special_tokens["bos_token"]) == ("T", "<b>")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {k: v for k, v in tiny_files().items() if k != "preprocessor_config.json"},
            "preprocessor_config.json is",
        ),
        ({k: v for k, v in tiny_files().items() if k != "processor_config.json"}, "no image_seq_len"),
        (edited("processor_config.json", ["image_seq_len"]), "no image_seq_len"),
        (edited("preprocessor_config.json", ["size"]), "no 'size'"),
        (edited("preprocessor_config.json", ["do_image_splitting"]), "no 'do_image_splitting'"),
        (edited("preprocessor_config.json", size={"height": 3}), "no 'longest_edge'"),
        (edited("preprocessor_config.json", image_mean=[0.5]), "wrong type"),
        (edited("preprocessor_config.json", size=3), "wrong type"),
        (edited("preprocessor_config.json", size={"longest_edge": 0}), "at least 1"),
        (edited("preprocessor_config.json", video_sampling={"fps": 1}), "video_sampling: no 'max_frames'"),
        (edited("generation_config.json", eos_token_id="<eos>"), "eos_token_id"),
        ({**tiny_files(), "generation_config.json": b"{"}, "generation_config.json: not valid JSON"),
        ({**tiny_files(), "preprocessor_config.json": b"\xff"}, "preprocessor_config.json: not valid JSON"),
        ({**tiny_files(), "processor_config.json": b"[]"}, "processor_config.json: holds a list"),
    ],
)
def test_a_missing_or_broken_setting_is_one_line(files, message):
    with pytest.raises(SmoljaxError, match=message) as caught:
        Processor.from_files(files)
    assert "\n" not in str(caught.value)


def test_config_json_decides_whether_the_model_sees(tmp_path):
    files = tiny_files(vision=False)
    Processor.from_files(files).save(tmp_path)
    (tmp_path / "config.json").write_text('{"vision_config": {}}')
    with pytest.raises(SmoljaxError, match=r"preprocessor_config\.json is missing"):
        Processor.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert Processor.from_folder(tmp_path).config.image is None


def test_a_vision_model_needs_an_image_token():
    files = {**tiny_files(), "tokenizer.json": tiny_files()["tokenizer.json"].replace(b"<image>", b"<pixel>")}
    with pytest.raises(SmoljaxError, match="no <image> token"):
        Processor.from_files(files)


def test_stop_ids():
    assert tiny_processor().stop_ids == (301,)
    assert 257 in tiny_processor(vision=False).stop_ids  # <|im_end|>, which closes ChatML turns
    wrong = Processor.from_files(edited("generation_config.json", eos_token_id=2))
    assert wrong.stop_ids == (2, 301)  # <end_of_utterance> stops whatever the file says
    many = Processor.from_files(edited("generation_config.json", eos_token_id=[301, 7]))
    assert many.stop_ids == (301, 7)
    without = {name: data for name, data in tiny_files().items() if name != "generation_config.json"}
    assert Processor.from_files(without).stop_ids == (301,)
