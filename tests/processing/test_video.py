"""Videos: sampling, prompts and frames against golden values of the reference; files, folders, arrays."""

import sys

import numpy as np
import pytest
from processing_golden import FOLDER, load_golden, squeeze

from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing import Video
from smoljax.processing.prompt import number_words, video_text
from smoljax.processing.testing import pattern_picture, tiny_processor
from smoljax.processing.video import load_video, sample_indices

GOLDEN = load_golden("videos.json")
ARRAYS = {"wide": (7, 24, 50, 3.0), "high": (5, 90, 40, 1.0), "square": (4, 32, 32, 2.0)}
IMAGE = "<fake_token_around_image><global-img><image>*4<fake_token_around_image>"


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def array(frames, height, width):
    return np.stack([np.asarray(pattern_picture(width + i, height))[:, i:] for i in range(frames)])


def numbered(frames):
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 8, 8, 3)).copy()


@pytest.mark.parametrize(("total", "fps", "indices"), GOLDEN["indices"])
def test_the_frames_are_the_references(processor, total, fps, indices):
    assert sample_indices(total, fps, total / fps, processor.config.video) == indices


@pytest.mark.parametrize("name", ARRAYS)
def test_prompt_and_frames_are_the_references(processor, name):
    frames, height, width, fps = ARRAYS[name]
    batch = processor(prompt="What happens?", videos=[Video(array(frames, height, width), fps=fps)])
    assert squeeze(batch.text[0]) == GOLDEN["prompts"][name]
    want = np.load(FOLDER / "videos.npz")[name].astype(int)
    got = np.round(batch.pixel_values[0] * 127.5 + 127.5).astype(int)
    assert got.shape == want.shape
    # torchvision's LANCZOS works in fixed point of another width than Pillow's: a level or two off, rarely.
    assert np.abs(got - want).max() <= 2
    assert (got != want).mean() < 0.05
    assert batch.grids == [[(0, 0)] * len(want)]


def test_styles_of_prompt(processor):
    video = Video(numbered(4), fps=2)
    train = processor(prompt="Q?", videos=[video], video_style="train").text[0]
    assert train.startswith("<|im_start|>System: You are a helpful language and vision assistant. You are")
    intro = "You are provided the following series of two frames from a 0:00:02 [H:MM:SS] video.\n"
    body = f"Frame from 00:00:{IMAGE}Frame from 00:01:{IMAGE}Now answer the following question: Q?"
    assert f"\nUser: {intro}{body}<end_of_utterance>\nAssistant:" in squeeze(train)
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "video"}]}]
    assert (
        processor(messages=asked, videos=[video], video_style="train")
        .text[0]
        .startswith("<|im_start|>System: S<")
    )
    public = processor(prompt="Q?", videos=[video], video_style="vlmevalkit").text[0]
    assert squeeze(public) == (
        "<|im_start|>System: pay attention to the video and answer the question <end_of_utterance>\n "
        "<|im_start|>User: Here are some frames sampled from a video:\n "
        f"Frame from 00:00: {IMAGE} Frame from 00:01: {IMAGE} \n Q? <end_of_utterance> \nAssistant:"
    )


def test_long_times():
    text = video_text([0, 59.9, 3725.2], 3726.9, 1)
    assert "from a 1:02:06 [H:MM:SS] video" in text
    assert "Frame from 00:59:" in text
    assert "Frame from 62:05:" in text


def test_number_words_are_those_of_num2words():
    num2words = pytest.importorskip("num2words").num2words
    assert [number_words(n) for n in range(121)] == [num2words(n) for n in range(121)]


def test_a_hundred_frames_need_num2words(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert number_words(99) == "ninety-nine"
    with pytest.raises(SmoljaxError, match=r'pip install "smoljax\[video\]"'):
        number_words(100)


def test_a_folder_of_frames_in_natural_order(processor, tmp_path):
    from PIL import Image

    for index, frame in enumerate(numbered(12)):
        Image.fromarray(frame * 20).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    sampled = load_video(Video(tmp_path, fps=2), processor.config.video)
    assert (sampled.indices, sampled.duration) == ([0, 2, 4, 6, 8, 11], 6)
    assert [frame.getpixel((0, 0))[0] for frame in sampled.frames] == [0, 40, 80, 120, 160, 220]
    assert sampled.timestamps == [0, 1, 2, 3, 4, 5.5]


def test_frames_without_a_rate_are_all_used_or_refused(processor):
    with pytest.warns(UserWarning, match="no frame rate given"):
        batch = processor(prompt="x", videos=[numbered(30)])
    assert batch.tiles == [30]
    assert "series of thirty frames from a 0:00:01" in batch.text[0]
    with pytest.raises(UsageError, match="65 frames but no frame rate"):
        processor(prompt="x", videos=[numbered(65)])


def test_videos_and_pictures_keep_their_order(processor):
    content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "?"}, {"type": "video"}]
    batch = processor(
        messages=[{"role": "user", "content": content}],
        images=[np.full((8, 8, 3), 255, np.uint8)],
        videos=[Video(numbered(2), fps=1), Video([*numbered(3)], fps=1)],
        split=False,
    )
    assert batch.grids == [[(0, 0)] * 6]
    levels = np.round(batch.pixel_values[0, :, 0, 0, 0] * 127.5 + 127.5)
    assert levels.tolist() == [0, 1, 255, 0, 1, 2]


def test_a_batch_of_videos_counts_its_own_frames(processor):
    samples = [{"prompt": "x", "videos": [Video(numbered(n), fps=1)]} for n in (2, 5)]
    batch = processor.batch(samples)
    assert ["series of two" in batch.text[0], "series of five" in batch.text[1]] == [True, True]
    assert batch.tile_mask.sum(1).tolist() == batch.tiles == [2, 5]


def level_of(index):
    return 20 + 53 * index % 200


def write_mp4(path, frames, rate):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 4_000_000
        for index in range(frames):
            picture = np.full((48, 64, 3), level_of(index), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_file(processor, tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    write_mp4(path, 50, 10)
    sampled = load_video(path, processor.config.video)
    assert sampled.indices == [0, 12, 24, 36, 49]
    assert sampled.duration == pytest.approx(5)
    levels = [int(np.asarray(frame)[24, 32].mean()) for frame in sampled.frames]
    assert np.abs(np.array(levels) - [level_of(index) for index in sampled.indices]).max() <= 6
    assert sampled.frames[0].size == (64, 48)
    assert processor(prompt="x", videos=[str(path)]).tiles == [5]


def test_bad_videos_are_one_line(processor, tmp_path):
    pytest.importorskip("av")
    config = processor.config.video
    write_mp4(tmp_path / "good.mp4", 10, 10)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:300])
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty").mkdir()
    cases = [
        ("none.mp4", "no such video"),
        ("cut.mp4", "not a video that can be read"),
        ("text.mp4", "not a video that can be read"),
        ("empty", "no pictures in this folder"),
    ]
    for name, message in cases:
        with pytest.raises(SmoljaxError, match=message) as caught:
            load_video(tmp_path / name, config)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    for source, message in [
        (np.zeros((4, 4, 3), np.uint8), "uint8 .F, H, W, 3."),
        (np.zeros((2, 4, 4, 3), np.float32), "float32"),
        (Video(numbered(2), fps=0), "fps is 0"),
        (3, "not a int"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_video(source, config)
    with pytest.raises(SmoljaxError, match="no frames"):
        load_video([], config)


def test_reading_a_file_needs_pyav(processor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(SmoljaxError, match=r'pip install "smoljax\[video\]"'):
        load_video(tmp_path / "clip.mp4", processor.config.video)
