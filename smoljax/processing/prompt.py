"""What stands in the prompt for a picture or a video.

The expansion is done on text, before tokenising: a vocabulary without `<row_r_col_c>` (the first 2.2B) then
spells them as ordinary text, as it was trained.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.tokenizer import FAKE_TOKEN, GLOBAL_TOKEN, IMAGE_TOKEN

VideoStyle = Literal["hf", "train", "vlmevalkit"]
TileTokens = Literal["learned", "string", "none"]

#: The system turn of all SmolVLM2 training samples.
TRAIN_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
_INTRO = "You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n"


def picture_text(rows: int, cols: int, image_seq_len: int, tile_tokens: TileTokens = "learned") -> str:
    """The tokens of one picture as text (reference: `get_image_prompt_string`).

    Args:
      rows, cols: its grid; (0, 0) for a picture of one tile.
      image_seq_len: `<image>` tokens a tile.
      tile_tokens: what says where a tile lies: "learned", tokens of the vocabulary's own (released); "string", words
        ("row 1 column 2:", "whole:"); "none", nothing. SmolVLM (2504.05299, section 3.4) compares the first two.
    """

    def place(learned: str, words: str) -> str:
        return {"learned": learned, "string": words, "none": ""}[tile_tokens]

    tile = IMAGE_TOKEN * image_seq_len
    whole = f"{FAKE_TOKEN}{place(GLOBAL_TOKEN, 'whole:')}{tile}{FAKE_TOKEN}"
    if rows == 0:
        return whole
    lines = (
        "".join(
            f"{FAKE_TOKEN}{place(f'<row_{row}_col_{col}>', f'row {row} column {col}:')}{tile}"
            for col in range(1, cols + 1)
        )
        + "\n"
        for row in range(1, rows + 1)
    )
    return "".join(lines) + "\n" + whole


@dataclass(frozen=True)
class _Style:
    """How one way of writing a video puts its frames together; `joint` stands between all pieces."""

    intro: Callable[[int, int], str]
    before_frame: str
    after_frames: str
    joint: str = ""


def _counted_intro(count: int, seconds: int) -> str:
    return _INTRO.format(count=number_words(count), duration=datetime.timedelta(seconds=seconds))


_STYLES: dict[str, _Style] = {
    # transformers, `SmolVLMProcessor.replace_video_token`
    "hf": _Style(_counted_intro, "\nFrame from {time}:", "\n\n"),
    # the code SmolVLM2 was trained with
    "train": _Style(_counted_intro, "Frame from {time}:", "Now answer the following question: "),
    # the public evaluation, `SmolVLM2.build_prompt_video`: everything joined by blanks
    "vlmevalkit": _Style(
        lambda count, seconds: "Here are some frames sampled from a video:\n", "Frame from {time}:", "\n", " "
    ),
}


def video_text(
    timestamps: Sequence[float], duration: float, image_seq_len: int, style: VideoStyle = "hf"
) -> str:
    """The tokens of one video as text.

    Args:
      timestamps: seconds of each frame from the start.
      duration: seconds of the whole video; its fraction is dropped.
      image_seq_len: `<image>` tokens a frame.
      style: "hf" (transformers), "train" (training-time text), "vlmevalkit" (the public evaluation's).

    Raises:
      UsageError: an unknown style.
      SmoljaxError: 100 frames or more, and num2words is not installed.
    """
    check_style(style)
    form = _STYLES[style]
    frame = picture_text(0, 0, image_seq_len)
    parts = [form.intro(len(timestamps), int(duration))]
    for seconds in timestamps:
        time = f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"
        parts += [form.before_frame.format(time=time), frame]
    return form.joint.join([*parts, form.after_frames])


def check_style(style: str) -> None:
    """UsageError for a video style that does not exist."""
    if style not in get_args(VideoStyle):
        raise UsageError(f"no video prompt style {style!r}; known: {', '.join(get_args(VideoStyle))}")


_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_UNITS += ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]
_UNITS += ["nineteen"]
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def number_words(number: int) -> str:
    """`number` in English: 64 → "sixty-four". From 100 on by the package num2words, as in the reference."""
    if 0 <= number < 20:
        return _UNITS[number]
    if 20 <= number < 100:
        tens, unit = divmod(number, 10)
        return _TENS[tens] + (f"-{_UNITS[unit]}" if unit else "")
    try:
        from num2words import num2words
    except ImportError as error:
        raise SmoljaxError('100 frames or more need num2words: pip install "smoljax[video]"') from error
    return num2words(number)
