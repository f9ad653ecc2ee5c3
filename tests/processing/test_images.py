"""Opening pictures: what works, and that everything else is one clear line."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from smoljax.errors import SmoljaxError, UsageError
from smoljax.processing import open_image
from smoljax.processing.testing import pattern_picture


def encoded(image, form="PNG", **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""
    chunks = b""
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 64)),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "1", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_every_common_mode_becomes_rgb(mode):
    image = open_image(pattern_picture(9, 7, mode))
    assert (image.mode, image.size) == ("RGB", (9, 7))


def test_a_picture_object_lies_on_white_and_a_file_loses_its_alpha():
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(np.asarray(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(clear)).getpixel((0, 0)) == (10, 20, 30)
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert open_image(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_file_is_turned_upright_and_an_object_is_not(form, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = pattern_picture(8, 4, "L")
    path = tmp_path / f"turned.{form.lower()}"
    image.save(path, form, exif=exif)
    assert open_image(path).size == (4, 8)
    assert open_image(str(path)).size == (4, 8)
    assert open_image(path.read_bytes()).size == (4, 8)
    if form != "TIFF":  # Pillow turns these itself
        assert open_image(Image.open(path)).size == (8, 4)


def test_a_lossless_picture_on_its_side_is_turned_right(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = pattern_picture(8, 4, "L")
    image.save(tmp_path / "a.tiff", exif=exif)
    np.testing.assert_array_equal(
        np.asarray(open_image(tmp_path / "a.tiff"))[..., 0], np.rot90(np.asarray(image), -1)
    )


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 3), (3, 5, 4), (1, 1, 3), (3, 3, 3)])
def test_arrays(shape):
    array = np.full(shape, 255, np.uint8)
    assert np.asarray(open_image(array)).tolist() == np.full((*shape[:2], 3), 255).tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"not \[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), r"not \[0, 4, 3\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"not \[1, 4, 4, 3\]"),
        (np.zeros(4, np.uint8), r"not \[4\]"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(UsageError, match=message):
        open_image(array)


def test_sixteen_bits_are_refused_rather_than_turned_white(tmp_path):
    deep = Image.fromarray(np.array([[0, 1000, 65535]], np.uint16))
    deep.save(tmp_path / "deep.png")
    for source in (deep, tmp_path / "deep.png", Image.fromarray(np.array([[-1.5]], np.float32))):
        with pytest.raises(SmoljaxError, match="more than 8 bits a channel"):
            open_image(source)
    assert open_image(Image.fromarray(np.array([[7]], np.uint16))).getpixel((0, 0)) == (7, 7, 7)


def bad_files():
    good = encoded(pattern_picture(64, 64))
    yield "no picture", b"GIF? no, text.", "not a picture"
    yield "empty", b"", "not a picture"
    yield "truncated png", good[: len(good) // 2], "broken or truncated"
    yield "truncated jpeg", encoded(pattern_picture(64, 64), "JPEG")[:400], "broken or truncated"
    yield "bomb", png_header(60_000, 60_000), "decompression bomb"
    yield "half a bomb", png_header(10_000, 10_000), "decompression bomb"
    yield "damaged", good[:50] + b"\xff" * 30 + good[80:], "broken or truncated"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "data", "message"), list(bad_files()))
def test_a_bad_file_is_one_line_that_names_it(name, data, message, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(SmoljaxError, match=message) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(SmoljaxError, match=message):
        open_image(data)


def test_missing_files_folders_and_other_objects(tmp_path):
    with pytest.raises(SmoljaxError, match="no such picture"):
        open_image(tmp_path / "none.png")
    with pytest.raises(SmoljaxError, match="cannot be read"):
        open_image(tmp_path)
    with pytest.raises(UsageError, match="not a int"):
        open_image(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="empty"):
        open_image(Image.new("RGB", (0, 3)))
    with pytest.raises(SmoljaxError, match="mode La cannot be made RGB"):
        open_image(Image.new("La", (2, 2)))
