"""What a checkpoint's processor files say, as frozen dataclasses.

A value that decides what the model sees is never defaulted: the class defaults of the reference are those of
no released checkpoint (364-pixel tiles, 169 tokens a tile), so a missing file or key is an error here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from smoljax.errors import SmoljaxError
from smoljax.processing.prompt import TileTokens

#: The small files that make a processor, by their names in a Hugging Face folder.
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)

Json = dict[str, Any]


@dataclass(frozen=True)
class ImageConfig:
    """How a picture becomes tiles (reference: `SmolVLMImageProcessorPil`, `Idefics3ImageProcessorPil`).

    Attributes:
      longest_edge: pixels of the longer side after the first resize (2048, or 1536 for 2.2B).
      tile_size: T, pixels of a tile's side (512, or 384).
      split: cut the picture into tiles and add the whole picture as the last tile; else one tile a picture.
      mean, std: per channel, on values already rescaled.
      rescale_factor: what a byte is multiplied with, 1/255.
      resample: the Pillow filter of every resize; 1 is LANCZOS.
      do_convert_rgb: kept for the round trip; a picture is converted to RGB in any case.
      do_resize, do_rescale, do_normalize: steps that a file may turn off.
      do_pad: kept for the round trip; the tiles of a batch are padded in any case.
    """

    longest_edge: int
    tile_size: int
    split: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float
    resample: int
    do_convert_rgb: bool = True
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    do_pad: bool = True

    def __post_init__(self) -> None:
        """Raises SmoljaxError for sizes below one pixel."""
        if self.longest_edge < 1 or self.tile_size < 1:
            raise SmoljaxError(
                f"longest_edge {self.longest_edge} and tile_size {self.tile_size} must be at least 1"
            )


@dataclass(frozen=True)
class VideoConfig:
    """How a video becomes frames (reference: `SmolVLMVideoProcessor`). A frame is one tile, never split.

    Attributes:
      fps: frames taken a second.
      max_frames: the most frames taken.
      longest_edge: pixels of the longer side of a frame before it is squashed to T×T.
      frame: the settings a frame shares with a picture (tile size, filter, mean, std).
    """

    fps: float
    max_frames: int
    longest_edge: int
    frame: ImageConfig


@dataclass(frozen=True)
class ProcessorConfig:
    """Everything the processor needs beside the tokenizer.

    Attributes:
      image: None for a text-only model.
      video: None where the checkpoint has no video settings.
      image_seq_len: `<image>` tokens a tile (64, or 81 for 2.2B); 0 for a text-only model.
      tile_tokens: see `smoljax.processing.prompt.picture_text`; a key of processor_config.json that no released
        checkpoint has: "learned".
      chat_template: the jinja source, or None (a base model).
      special_tokens: `bos_token`, `eos_token`, `pad_token`, `unk_token`, … as text.
      eos_token_ids: the stop ids of `generation_config.json`; empty where it names none.
    """

    image: ImageConfig | None
    video: VideoConfig | None
    image_seq_len: int
    chat_template: str | None
    special_tokens: Mapping[str, str]
    eos_token_ids: tuple[int, ...]
    tile_tokens: TileTokens = "learned"


def read_config(files: Mapping[str, bytes], *, vision: bool | None = None) -> ProcessorConfig:
    """Reads the settings from a checkpoint's small files.

    Args:
      files: file name → bytes; the names of `PROCESSOR_FILES`, others are ignored.
      vision: whether the model has a vision part; None decides by the files.

    Raises:
      SmoljaxError: a file is broken, or a vision model lacks a file or key.
    """
    preprocessor = load_json(files, "preprocessor_config.json")
    processor = load_json(files, "processor_config.json") or {}
    # transformers 5 saves one file with the image and video settings inside.
    image_dict = preprocessor if preprocessor is not None else processor.get("image_processor")
    video_dict = load_json(files, "video_preprocessor_config.json") or processor.get("video_processor")
    if vision is None:
        vision = image_dict is not None or "image_seq_len" in processor
    template = _chat_template(files, processor)
    special, eos = _special_tokens(files), _eos_ids(files)
    if not vision:
        return ProcessorConfig(None, None, 0, template, special, eos)
    if image_dict is None:
        raise SmoljaxError(
            "preprocessor_config.json is missing: a vision model needs it (or a processor_config.json with "
            "`image_processor`); copy it from the checkpoint's repository"
        )
    if "image_seq_len" not in processor:
        raise SmoljaxError(
            "processor_config.json is missing or has no image_seq_len (64 for 256M and 500M, 81 for 2.2B); "
            "copy it from the checkpoint's repository"
        )
    image = _image_config(
        image_dict, "preprocessor_config.json" if preprocessor is not None else "processor_config.json"
    )
    return ProcessorConfig(
        image=image,
        video=_video_config(video_dict or image_dict, image),
        image_seq_len=int(processor["image_seq_len"]),
        chat_template=template,
        special_tokens=special,
        eos_token_ids=eos,
        tile_tokens=_tile_tokens(processor),
    )


def load_json(files: Mapping[str, bytes], name: str) -> Json | None:
    """The JSON object in `files[name]`, None where there is no such file; SmoljaxError where it is broken."""
    if name not in files:
        return None
    try:
        data = json.loads(files[name].decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SmoljaxError(f"{name}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(data, dict):
        raise SmoljaxError(f"{name}: holds a {type(data).__name__}, not a JSON object; fetch the file again")
    return data


def _tile_tokens(processor: Json) -> TileTokens:
    found = processor.get("tile_tokens", "learned")
    if found not in get_args(TileTokens):
        raise SmoljaxError(
            f"processor_config.json: tile_tokens is {found!r}; it must be one of {', '.join(get_args(TileTokens))}"
        )
    return found


def _image_config(data: Json, where: str) -> ImageConfig:
    try:
        return ImageConfig(
            longest_edge=int(data["size"]["longest_edge"]),
            tile_size=int(data["max_image_size"]["longest_edge"]),
            split=bool(data["do_image_splitting"]),
            mean=_triple(data["image_mean"]),
            std=_triple(data["image_std"]),
            rescale_factor=float(data["rescale_factor"]),
            resample=int(data["resample"]),
            do_convert_rgb=bool(data.get("do_convert_rgb", True)),
            do_resize=bool(data.get("do_resize", True)),
            do_rescale=bool(data.get("do_rescale", True)),
            do_normalize=bool(data.get("do_normalize", True)),
            do_pad=bool(data.get("do_pad", True)),
        )
    except KeyError as error:
        raise SmoljaxError(f"{where}: no {error.args[0]!r}; it must say how pictures are prepared") from error
    except (TypeError, ValueError) as error:
        raise SmoljaxError(f"{where}: a value has the wrong type ({error})") from error


def _triple(value: Any) -> tuple[float, float, float]:
    first, second, third = (float(item) for item in value)
    return first, second, third


def _video_config(data: Json, image: ImageConfig) -> VideoConfig | None:
    sampling = data.get("video_sampling")
    if not sampling:
        return None
    try:
        # The reference lets `size`, where the same dict has one, replace `video_sampling.video_size`
        # (`SmolVLMVideoProcessor.__init__`): frames of the released small models go through 2048 pixels
        # though their file says 512. Done the same way here, to feed the model the same numbers.
        size = data.get("size") or sampling["video_size"]
        return VideoConfig(
            fps=float(sampling["fps"]),
            max_frames=int(sampling["max_frames"]),
            longest_edge=int(size["longest_edge"]),
            frame=image,
        )
    except KeyError as error:
        raise SmoljaxError(f"video_sampling: no {error.args[0]!r} in the preprocessor file") from error
    except (TypeError, ValueError) as error:
        raise SmoljaxError(f"video_sampling: a value has the wrong type ({error})") from error


def _chat_template(files: Mapping[str, bytes], processor: Json) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", errors="replace")
    for data in (
        load_json(files, "chat_template.json") or {},
        processor,
        load_json(files, "tokenizer_config.json") or {},
    ):
        template = data.get("chat_template")
        if isinstance(template, list):  # several named templates
            template = {item["name"]: item["template"] for item in template}.get("default")
        if isinstance(template, str):
            return template
    return None


def _special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in (load_json(files, name) or {}).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                merged[key] = text
    return merged


def _eos_ids(files: Mapping[str, bytes]) -> tuple[int, ...]:
    eos = (load_json(files, "generation_config.json") or {}).get("eos_token_id")
    if eos is None:
        return ()
    ids = eos if isinstance(eos, list) else [eos]
    if not all(isinstance(item, int) for item in ids):
        raise SmoljaxError(f"generation_config.json: eos_token_id is {eos!r}, not an id or a list of ids")
    return tuple(ids)
