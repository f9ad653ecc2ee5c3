"""Videos: which frames are looked at, how they are read, and what they become.

Reference: `SmolVLMVideoProcessor` of transformers (which needs torchvision; this needs none). Files are read
with PyAV (`pip install "smoljax[video]"`); folders of pictures and arrays need nothing more.
"""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing.config import ImageConfig, VideoConfig
from smoljax.processing.images import ImageInput, open_image
from smoljax.processing.tiling import MAX_SIDE, apply_table, longest_edge_size, resize

#: The frame rate that the reference assumes where none is known.
FALLBACK_FPS = 24.0

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Video:
    """Frames with their rate: `Video("frames/", fps=2)`, `Video(array, fps=30)`.

    Attributes:
      source: a video file, a folder of pictures (in the natural order of their names), a sequence of
        pictures, or uint8 [F, H, W, 3].
      fps: frames a second of the source. A file knows its own. Without it nothing is sampled: all frames are
        used, as if 24 came a second.
    """

    source: "str | os.PathLike[str] | np.ndarray | Sequence[ImageInput]"
    fps: float | None = None


VideoInput = Video | str | os.PathLike[str] | np.ndarray | Sequence[ImageInput]


def video_list(value: Sequence[VideoInput] | VideoInput | None) -> list[VideoInput]:
    """None → [], one video → [it], a sequence of videos → a list.

    A bare list is taken as several videos; frames as a list of pictures go in a `Video`.
    """
    if value is None:
        return []
    if isinstance(value, Video | str | os.PathLike | np.ndarray):
        return [value]
    return list(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SampledVideo:
    """The frames that will be shown to the model.

    Attributes:
      frames: n RGB pictures.
      indices: which frames of the source they are.
      timestamps: seconds from the start, one a frame.
      duration: seconds of the whole video.
    """

    frames: list[Image.Image]
    indices: list[int]
    timestamps: list[float]
    duration: float


def sample_indices(
    total: int, fps: float, duration: float, config: VideoConfig, skip_seconds: int = 1
) -> list[int]:
    """Which of `total` frames to look at (reference: `SmolVLMVideoProcessor.sample_frames`).

    `config.fps` frames a second, at most `config.max_frames`, evenly from the first to the last frame; of a
    video too long for that, the first and the last second are left out.
    """
    wanted = max(1, min(round(config.fps * duration), config.max_frames))
    start, end = 0, total - 1
    if duration - 2 * skip_seconds > config.max_frames * config.fps:
        start = max(0, int(skip_seconds * fps))
        end = min(int(total - skip_seconds * fps), total - 1)
        if start >= end:
            start, end = 0, total - 1
    return np.unique(np.linspace(start, end, wanted, dtype=int)).tolist()


def load_video(source: VideoInput, config: VideoConfig) -> SampledVideo:
    """Reads and samples one video.

    Raises:
      SmoljaxError: the file is missing, broken or has no frames; PyAV is not installed.
      UsageError: an array of another shape or dtype, or too many frames without a frame rate.
    """
    video = source if isinstance(source, Video) else Video(source)
    if video.fps is not None and not video.fps > 0:
        raise UsageError(f"fps is {video.fps}; it must be above 0")
    if isinstance(video.source, str | os.PathLike):
        path = Path(video.source)
        if not path.exists():
            raise SmoljaxError(f"{path}: no such video")
        if path.is_dir():
            return _sample_pictures(_folder(path), video.fps, config)
        if video.fps is not None:
            raise UsageError(f"{path}: a video file has a frame rate of its own; leave fps out")
        return _read_file(path, config)
    if isinstance(video.source, np.ndarray):
        array = video.source
        if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or array.size == 0:
            raise UsageError(f"a video array is uint8 [F, H, W, 3], not {array.dtype} {list(array.shape)}")
        return _sample_pictures(list(array), video.fps, config)
    if not isinstance(video.source, Sequence):
        raise UsageError(f"a video is a file, a folder, an array or pictures, not a {type(source).__name__}")
    return _sample_pictures(list(video.source), video.fps, config)


def frame_tiles(frames: Sequence[Image.Image], config: VideoConfig) -> np.ndarray:
    """Frames → [n, 3, T, T] float32: longest edge, then squashed to one tile, as bytes; normalised last."""
    image = config.frame
    tiles = []
    for frame in frames:
        if image.do_resize:
            size = longest_edge_size(*frame.size, min(config.longest_edge, MAX_SIDE))
            frame = _resize_across_first(frame, size, image.resample)
        tiles.append(_resize_across_first(frame, (image.tile_size, image.tile_size), image.resample))
    return apply_table(frame_table(image), tiles)


def _resize_across_first(frame: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    # torchvision resizes across, then down, rounding to bytes in between. Pillow does so too or the other way
    # round, whichever is cheaper, and on sharp edges that order matters; hence two steps.
    return resize(resize(frame, (size[0], frame.height), resample), size, resample)


def frame_table(config: ImageConfig) -> np.ndarray:
    """What each byte of a frame becomes: [3, 256] float32.

    The reference's torchvision backend fuses rescaling into mean and std, (x − 127.5) / 127.5, which may
    differ from the picture's table in the last bit.
    """
    values = np.broadcast_to(np.arange(256, dtype=np.float32), (3, 256))
    if not config.do_normalize:
        return values * np.float32(config.rescale_factor if config.do_rescale else 1)
    scale = 1.0 / config.rescale_factor if config.do_rescale else 1.0
    mean = (np.array(config.mean, np.float32) * np.float32(scale))[:, None]
    std = (np.array(config.std, np.float32) * np.float32(scale))[:, None]
    return (values - mean) / std


def _sample_pictures(frames: Sequence[ImageInput], fps: float | None, config: VideoConfig) -> SampledVideo:
    if not frames:
        raise SmoljaxError("the video has no frames")
    if fps is None:
        if len(frames) > config.max_frames:
            raise UsageError(
                f"{len(frames)} frames but no frame rate: give fps (--fps); {config.max_frames} at most are taken"
            )
        warnings.warn(
            f"no frame rate given; timestamps are written for {FALLBACK_FPS:g} a second", stacklevel=4
        )
        indices = list(range(len(frames)))
        timestamps = [index / FALLBACK_FPS for index in indices]
        return SampledVideo([open_image(frame) for frame in frames], indices, timestamps, timestamps[-1])
    duration = len(frames) / fps
    indices = sample_indices(len(frames), fps, duration, config)
    pictures = [open_image(frames[index]) for index in indices]
    return SampledVideo(pictures, indices, [index / fps for index in indices], duration)


def _folder(path: Path) -> list[ImageInput]:
    names = [item.name for item in path.iterdir() if item.suffix.lower() in _PICTURES]
    if not names:
        raise SmoljaxError(f"{path}: no pictures in this folder to take as frames")
    return [path / name for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    # "frame10" after "frame9"
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]


def _read_file(path: Path, config: VideoConfig) -> SampledVideo:
    try:
        import av
    except ImportError as error:
        raise SmoljaxError('reading a video file needs PyAV: pip install "smoljax[video]"') from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise SmoljaxError(f"{path}: no video in this file")
            stream = container.streams.video[0]
            rate = stream.average_rate
            total = stream.frames or _count_frames(container, stream)
            if not rate or not total:
                raise SmoljaxError(f"{path}: no frames, or no frame rate, in this file")
            fps, duration = float(rate), float(total / rate)
            wanted = set(sample_indices(total, fps, duration, config))
            container.seek(0)
            frames: list[Image.Image] = []
            found: list[int] = []
            for index, frame in enumerate(container.decode(stream)):
                if index in wanted:
                    frames.append(Image.fromarray(frame.to_ndarray(format="rgb24")))
                    found.append(index)
                if index >= max(wanted):
                    break
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SmoljaxError(f"{path}: not a video that can be read ({error})") from error
    if not frames:
        raise SmoljaxError(f"{path}: no frame could be decoded")
    return SampledVideo(frames, found, [index / fps for index in found], duration)


def _count_frames(container: Any, stream: Any) -> int:
    # Some containers (Matroska, streams) do not write the number down.
    count = sum(1 for packet in container.demux(stream) if packet.size)
    container.seek(0)
    return count
