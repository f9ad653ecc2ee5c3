"""The processor: messages, pictures and videos → the arrays a `SmolVLM` takes.

Reference: `SmolVLMProcessor` and `Idefics3Processor` of transformers 5 with the PIL backend; token ids are
equal and pixels are equal bit by bit. Where this differs on purpose, `Processor.batch` says so.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing import chat
from smoljax.processing import prompt as prompts
from smoljax.processing.config import PROCESSOR_FILES, ImageConfig, ProcessorConfig, load_json, read_config
from smoljax.processing.images import ImageInput, as_list, open_image
from smoljax.processing.prompt import TileTokens, VideoStyle
from smoljax.processing.tiling import TilePlan, apply_table, cut_tiles, normalize_table, tile_plan
from smoljax.processing.tokenizer import END_OF_UTTERANCE, IM_END, IMAGE_TOKEN, Tokenizer, unique_ids
from smoljax.processing.video import VideoInput, frame_tiles, load_video, video_list

Grid = tuple[int, int]


class Sample(TypedDict, total=False):
    """One row of `Processor.batch`: the keyword arguments of `Processor.__call__`."""

    messages: Sequence[chat.Message]
    prompt: str
    text: str
    images: Sequence[ImageInput]
    videos: Sequence[VideoInput]


@dataclass(frozen=True)
class Batch:
    """What the model is fed (the table "Batch" of docs/architecture.md) and what it costs.

    Arrays (NumPy; B rows, T tokens, I tiles of the row with most):
      input_ids: [B, T] int32.
      attention_mask: [B, T] bool, False on padding.
      pixel_values: [B, I, 3, h, w] float32, normalised, zero on padding tiles; None without pictures.
      tile_mask: [B, I] bool, real tiles first; None without pictures.
      pixel_attention_mask: None: every tile of this processor is full. The model takes one for other sources.

    One entry a row:
      prompt_tokens: tokens of the row without padding.
      image_tokens: `<image>` tokens among them.
      tiles: real tiles.
      grids: (rows, cols) of each picture, (0, 0) for one tile; a video adds (0, 0) for each frame.
      text: the prompt after expansion, as it was tokenised.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    pixel_values: np.ndarray | None
    tile_mask: np.ndarray | None
    pixel_attention_mask: np.ndarray | None
    prompt_tokens: list[int]
    image_tokens: list[int]
    tiles: list[int]
    grids: list[list[Grid]]
    text: list[str]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays alone, those that are there, by their names: `SmolVLM.apply(…, batch.arrays())`."""
        names = ("input_ids", "attention_mask", "pixel_values", "tile_mask", "pixel_attention_mask")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    tiles: np.ndarray | None  # [I, 3, h, w] float32
    grids: list[Grid]
    image_tokens: int
    text: str


class Processor:
    """Turns a conversation with pictures into a `Batch`.

    Attributes:
      config: what the checkpoint's files say.
      tokenizer: text ↔ ids.
      files: the checkpoint's own small files, byte for byte (what `save` writes).
    """

    def __init__(self, config: ProcessorConfig, tokenizer: Tokenizer, files: Mapping[str, bytes]) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.files = dict(files)
        if config.image is not None and tokenizer.image_id is None:
            raise SmoljaxError(f"tokenizer.json: no {IMAGE_TOKEN} token, but the model has a vision part")

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, vision: bool | None = None) -> "Processor":
        """A processor from a checkpoint's small files.

        Args:
          files: name → bytes (`smoljax.processing.config.PROCESSOR_FILES`; others are ignored).
          vision: whether the model has a vision part: True makes missing picture settings an error, False
            ignores them; None decides by the files.

        Raises:
          SmoljaxError: a file is missing or broken.
        """
        files = {name: bytes(files[name]) for name in PROCESSOR_FILES if name in files}
        if "tokenizer.json" not in files:
            raise SmoljaxError("tokenizer.json is missing; copy it from the checkpoint's repository")
        return cls(read_config(files, vision=vision), Tokenizer.from_bytes(files["tokenizer.json"]), files)

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> "Processor":
        """A processor from a folder in Hugging Face layout; its `config.json`, if any, says whether it sees.

        Raises:
          SmoljaxError: the folder or a file is missing or broken.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise SmoljaxError(f"{folder}: no such folder")
        files = {}
        for name in (*PROCESSOR_FILES, "config.json"):
            if (folder / name).is_file():
                files[name] = (folder / name).read_bytes()
        try:
            model = load_json(files, "config.json")
            return cls.from_files(files, vision=None if model is None else "vision_config" in model)
        except SmoljaxError as error:
            raise type(error)(f"{folder}: {error}") from error

    def with_settings(
        self, *, image_seq_len: int | None = None, tile_tokens: TileTokens | None = None
    ) -> "Processor":
        """The same with other settings of processor_config.json; None keeps one.

        Args:
          image_seq_len: image tokens a tile, for a model with another pixel shuffle.
          tile_tokens: see `smoljax.processing.prompt.picture_text`.
        """
        given = {"image_seq_len": image_seq_len, "tile_tokens": tile_tokens}
        given = {name: value for name, value in given.items() if value is not None}
        stated = load_json(self.files, "processor_config.json") or {}
        text = json.dumps({**stated, **given}, indent=2) + "\n"
        return Processor.from_files({**self.files, "processor_config.json": text.encode()})

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `files` into a folder, unchanged."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (target / name).write_bytes(data)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer.

        Those of `generation_config.json` (or, without any, the tokenizer's eos token), `<end_of_utterance>`
        where the vocabulary has it, and `<|im_end|>` where the chat template closes turns with it.
        """
        eos: list[int | None] = list(self.config.eos_token_ids)
        if not eos:
            eos = [self.tokenizer.token_id(self.config.special_tokens.get("eos_token", ""))]
        turn_end = self.tokenizer.token_id(IM_END) if IM_END in (self.config.chat_template or "") else None
        return unique_ids([*eos, self.tokenizer.token_id(END_OF_UTTERANCE), turn_end])

    @property
    def pad_id(self) -> int:
        """The id on padding; masked, so its choice changes nothing."""
        found = self.tokenizer.token_id(self.config.special_tokens.get("pad_token", ""))
        return 0 if found is None else found

    def tile_plan(
        self, width: int, height: int, *, longest_edge: int | None = None, split: bool | None = None
    ) -> TilePlan:
        """What a picture of this size will become; `.image_tokens(config.image_seq_len)` is its cost."""
        return tile_plan(width, height, self._image_config(longest_edge, split))

    def __call__(
        self,
        *,
        messages: Sequence[chat.Message] | None = None,
        prompt: str | None = None,
        text: str | None = None,
        images: Sequence[ImageInput] | ImageInput | None = None,
        videos: Sequence[VideoInput] | VideoInput | None = None,
        longest_edge: int | None = None,
        split: bool | None = None,
        video_style: VideoStyle = "hf",
        add_generation_prompt: bool = True,
    ) -> Batch:
        """One sample → a batch of one row.

        Args:
          messages: the chat; its image and video items take `images` and `videos` in order. Exactly one of
            messages, prompt and text is given.
          prompt: short for one user message with all pictures and videos first, then this text.
          text: used as it is, after any template, with `<image>` (and `<video>`) where media go.
          images: a picture, or pictures in the order of their places. None: those that stand in the items themselves
            (`{"type": "image", "image": …}`, or "path").
          videos: the same for videos.
          longest_edge: pixels, instead of the checkpoint's; a multiple N·T of the tile size gives at most
            N × N + 1 tiles, T itself one.
          split: False makes one tile of a picture, aspect lost.
          video_style: how frames are introduced: "hf", "train" or "vlmevalkit".
          add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
          UsageError: the call does not fit together (no prompt, places and pictures differ in number, …).
          SmoljaxError: a picture, a video or the chat template is broken.
        """
        row = self._row(
            Sample(messages=messages, prompt=prompt, text=text, images=images, videos=videos),  # type: ignore[typeddict-item]
            self._image_config(longest_edge, split) if self.config.image else None,
            video_style,
            add_generation_prompt,
        )
        return self._collate([row], "left")

    def batch(
        self,
        samples: Sequence[Sample],
        *,
        padding_side: Literal["left", "right"] = "left",
        longest_edge: int | None = None,
        split: bool | None = None,
        video_style: VideoStyle = "hf",
        add_generation_prompt: bool = True,
    ) -> Batch:
        """Several samples → one batch; each with its own number of pictures and tiles.

        A row holds exactly what it would hold alone. The reference differs in one place: it writes the
        *padded* number of frames into every video prompt of a batch.

        Args:
          samples: one dict a row with the arguments messages, prompt, text, images, videos of `__call__`.
          padding_side: "left" for generation, "right" for training.
          longest_edge, split, video_style, add_generation_prompt: as in `__call__`, for all rows.
        """
        if not samples:
            raise UsageError("a batch needs at least one sample")
        config = self._image_config(longest_edge, split) if self.config.image else None
        rows = [self._row(sample, config, video_style, add_generation_prompt) for sample in samples]
        return self._collate(rows, padding_side)

    def _image_config(self, longest_edge: int | None, split: bool | None) -> ImageConfig:
        config = self.config.image
        if config is None:
            raise UsageError("this is a text-only model: it takes no pictures")
        if longest_edge is not None:
            if longest_edge < 1:
                raise UsageError(f"longest_edge is {longest_edge}; it must be at least 1 pixel")
            config = replace(config, longest_edge=longest_edge)
        return config if split is None else replace(config, split=split)

    def _row(
        self, sample: Sample, config: ImageConfig | None, video_style: VideoStyle, add_generation_prompt: bool
    ) -> _Row:
        prompts.check_style(video_style)
        if unknown := sorted(set(sample) - set(Sample.__annotations__)):
            raise UsageError(f"unknown key(s) in a sample: {', '.join(unknown)}")
        images, videos = as_list(sample.get("images")), video_list(sample.get("videos"))
        messages = sample.get("messages")
        if messages is not None:
            images = chat.fill_media(messages, "image", images)
            videos = chat.fill_media(messages, "video", videos)
        if images and config is None:
            raise UsageError("this is a text-only model: it takes no pictures")
        if videos and self.config.video is None:
            raise UsageError("this checkpoint has no video settings (video_sampling): it takes no videos")
        text = self._text(sample, len(images), len(videos), video_style, add_generation_prompt)
        return self._expand(text, images, videos, config, video_style)

    def _text(
        self, sample: Sample, images: int, videos: int, style: VideoStyle, add_generation_prompt: bool
    ) -> str:
        """The prompt before expansion."""
        messages, prompt, text = sample.get("messages"), sample.get("prompt"), sample.get("text")
        if sum(item is not None for item in (messages, prompt, text)) != 1:
            raise UsageError("give exactly one of messages, prompt and text")
        if text is not None:
            if not text:
                raise UsageError("the text is empty")
            return text
        template = self.config.chat_template
        if prompt is not None:
            if not prompt.strip() and not images and not videos:
                raise UsageError("the prompt is empty and there is no picture")
            if template is None:  # a base model continues plain text
                return IMAGE_TOKEN * images + chat.VIDEO_TOKEN * videos + prompt
            items: list[dict[str, str]] = [{"type": "image"}] * images + [{"type": "video"}] * videos
            items += [{"type": "text", "text": prompt}] if prompt else []
            messages = [{"role": "user", "content": items}]
        assert messages is not None
        if template is None:
            raise UsageError("no chat template in this checkpoint (a base model): give text, not messages")
        messages = chat.normalise_messages(messages)
        if not any(item["type"] != "text" or item["text"].strip() for m in messages for item in m["content"]):
            raise UsageError("the prompt is empty and there is no picture")
        if self.config.image is None and any(i["type"] != "text" for m in messages for i in m["content"]):
            raise UsageError("this is a text-only model: it takes no pictures")
        if videos and style == "vlmevalkit":
            return chat.render_vlmevalkit(messages)
        if videos and style == "train" and messages[0]["role"] != "system":
            system = {"role": "system", "content": [{"type": "text", "text": prompts.TRAIN_SYSTEM}]}
            messages = [system, *messages]
        return chat.render(
            template,
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.config.special_tokens,
        )

    def _expand(
        self,
        text: str,
        images: list[ImageInput],
        videos: list[VideoInput],
        config: ImageConfig | None,
        style: VideoStyle,
    ) -> _Row:
        """Replaces every place by its tokens and gathers the tiles in the same order."""
        if config is None:
            return _Row(self.tokenizer.encode(text), None, [], 0, text)
        place = re.compile(f"{IMAGE_TOKEN}|{chat.VIDEO_TOKEN}" if videos else IMAGE_TOKEN)
        _check_counts(place.findall(text), len(images), len(videos))
        table = normalize_table(config)
        seq_len = self.config.image_seq_len
        next_image, next_video = iter(images), iter(videos)
        tiles: list[np.ndarray] = []
        grids: list[Grid] = []

        def expansion(match: re.Match[str]) -> str:
            if match.group() == IMAGE_TOKEN:
                image = open_image(next(next_image))
                plan = tile_plan(*image.size, config)
                tiles.append(apply_table(table, cut_tiles(image, plan, config.resample)))
                grids.append((plan.rows, plan.cols))
                return prompts.picture_text(plan.rows, plan.cols, seq_len, self.config.tile_tokens)
            assert self.config.video is not None
            video = load_video(next(next_video), self.config.video)
            tiles.append(frame_tiles(video.frames, self.config.video))
            grids.extend([(0, 0)] * len(video.frames))
            return prompts.video_text(video.timestamps, video.duration, seq_len, style)

        text = place.sub(expansion, text)
        pixels = np.concatenate(tiles) if tiles else None
        ids = self.tokenizer.encode(text)
        image_tokens = ids.count(self.tokenizer.image_id or 0)
        expected = 0 if pixels is None else len(pixels) * seq_len
        if image_tokens != expected:
            raise SmoljaxError(
                f"the prompt has {image_tokens} {IMAGE_TOKEN} tokens for {expected} features; "
                "tokenizer.json does not keep special tokens whole"
            )
        return _Row(ids, pixels, grids, image_tokens, text)

    def _collate(self, rows: Sequence[_Row], padding_side: str) -> Batch:
        if padding_side not in ("left", "right"):
            raise UsageError(f"padding_side is {padding_side!r}; it must be 'left' or 'right'")
        length = max(len(row.ids) for row in rows)
        input_ids = np.full((len(rows), length), self.pad_id, np.int32)
        attention_mask = np.zeros((len(rows), length), bool)
        for index, row in enumerate(rows):
            start = length - len(row.ids) if padding_side == "left" else 0
            input_ids[index, start : start + len(row.ids)] = row.ids
            attention_mask[index, start : start + len(row.ids)] = True
        counts = [0 if row.tiles is None else len(row.tiles) for row in rows]
        pixel_values = tile_mask = None
        if pictures := [row.tiles for row in rows if row.tiles is not None]:
            if len(rows) == 1:
                pixel_values = pictures[0][None]  # no copy
            else:
                pixel_values = np.zeros((len(rows), max(counts), *pictures[0].shape[1:]), np.float32)
                for target, row in zip(pixel_values, rows, strict=True):
                    if row.tiles is not None:
                        target[: len(row.tiles)] = row.tiles
            tile_mask = np.arange(max(counts)) < np.array(counts)[:, None]
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            tile_mask=tile_mask,
            pixel_attention_mask=None,
            prompt_tokens=[len(row.ids) for row in rows],
            image_tokens=[row.image_tokens for row in rows],
            tiles=counts,
            grids=[row.grids for row in rows],
            text=[row.text for row in rows],
        )


def _check_counts(places: Sequence[str], images: int, videos: int) -> None:
    for token, given, name in ((IMAGE_TOKEN, images, "picture"), (chat.VIDEO_TOKEN, videos, "video")):
        asked = places.count(token)
        if asked != given:
            raise UsageError(
                f"the prompt has {asked} {token} place{'s' * (asked != 1)} "
                f"for {given} {name}{'s' * (given != 1)}; they must be as many"
            )
