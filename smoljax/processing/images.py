"""Opening pictures: whatever a user has → one RGB picture of bytes, or one clear line.

Two rules of the reference, kept apart on purpose:

- A **file** (path or bytes) opens as `transformers.image_utils.load_image` opens it: turned upright by its
  EXIF orientation, then converted to RGB by Pillow; an alpha channel is dropped. One exception: an
  uncompressed TIFF that lies on its side, which Pillow 13.0 scrambles when it maps the file; here it is read
  from bytes, which is right.
- A **`PIL.Image` or array** is taken as `convert_to_rgb` of the image processor takes it: not turned, and
  transparency is laid over white.
"""

import io
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from smoljax.errors import SmoljaxError, UsageError

#: What the processor takes as a picture: a path, an encoded file, a Pillow picture, or uint8 [H, W(, C)].
ImageInput = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

_warning_filter = threading.Lock()


def open_image(source: ImageInput) -> Image.Image:
    """One picture as RGB bytes.

    Args:
      source: see `ImageInput`. Arrays are uint8: [H, W] or [H, W, 1] gray, [H, W, 3] RGB, [H, W, 4] RGBA.

    Raises:
      SmoljaxError: no such file, not a picture, truncated, a decompression bomb, values beyond 8 bits, or
        a mode without a way to RGB.
      UsageError: an object of another kind, an array of another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _over_white(source, "the picture")
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(bytes(source)), f"the picture of {len(source)} bytes")
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source))
    raise UsageError(
        f"a picture is a path, bytes, a PIL.Image or a uint8 array, not a {type(source).__name__}"
    )


def _open_path(path: Path) -> Image.Image:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise SmoljaxError(f"{path}: no such picture") from error
    except OSError as error:
        raise SmoljaxError(f"{path}: cannot be read ({error.strerror})") from error
    return _decode(io.BytesIO(data), str(path))


def _decode(stream: io.BytesIO, name: str) -> Image.Image:
    """An encoded file as RGB. Decoders may raise anything on hostile bytes, so everything is caught."""
    try:
        # Pillow only warns between one and two times its pixel limit; both are refused here. The filter is
        # process-wide state, hence the lock.
        with _warning_filter, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(stream)
        image.load()
        image = ImageOps.exif_transpose(image)
        return _to_rgb(image, name)
    except SmoljaxError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise SmoljaxError(
            f"{name}: a decompression bomb, or a picture of more than {limit:,} pixels; make it smaller first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise SmoljaxError(f"{name}: not a picture in a format that Pillow reads") from error
    except Exception as error:
        raise SmoljaxError(f"{name}: a broken or truncated picture ({_reason(error)})") from error


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8:
        raise UsageError(f"a picture as an array is uint8 (0 to 255), not {array.dtype}; convert it first")
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise UsageError(
            f"a picture as an array is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not {list(shape)}"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    elif array.shape[2] == 4:
        alpha = array[..., 3:4] / 255
        array = np.round(alpha * array[..., :3] + (1 - alpha) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


def _over_white(image: Image.Image, name: str) -> Image.Image:
    if image.width < 1 or image.height < 1:
        raise UsageError(f"{name} is empty: {image.width}×{image.height} pixels")
    try:
        image.load()
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, image).convert("RGB")
        return _to_rgb(image, name)
    except SmoljaxError:
        raise
    except Exception as error:  # a lazily opened file may be broken; modes La and LAB have no way to RGB
        raise SmoljaxError(f"{name} of mode {image.mode} cannot be made RGB ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    # Modes of 16 and 32 bits: Pillow (and with it the reference) cuts values off at 255, which turns a 16-bit
    # scan white without a word. Values that fit a byte convert exactly; others are refused.
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 255):
            raise SmoljaxError(
                f"{name}: more than 8 bits a channel (mode {image.mode}, values {low} to {high}); "
                "scale it to 0 to 255 and save it with 8 bits first"
            )
    return image if image.mode == "RGB" else image.convert("RGB")


def as_list(value: Sequence[ImageInput] | ImageInput | None) -> list[ImageInput]:
    """None → [], one picture → [it], a sequence → a list."""
    if value is None:
        return []
    if isinstance(value, str | bytes | os.PathLike | Image.Image | np.ndarray):
        return [value]
    return list(value)
