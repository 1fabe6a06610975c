"""Pictures from visitors: whatever the file is, a picture as the model should see it or one sentence."""

import struct
import zlib

import pytest
from PIL import Image

from quant_engine.data import open_picture as picture
from quant_engine.data.open_picture import open_picture
from quant_engine.spec import UserError


def png_header(width, height):
    """A PNG that says it is this large and holds almost nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "gif", "bmp"])
def test_the_usual_formats_open_as_rgb(tmp_path, form):
    Image.new("RGB", (40, 20), "red").save(tmp_path / f"a.{form}")
    image = open_picture(tmp_path / f"a.{form}")
    assert (image.mode, image.size) == ("RGB", (40, 20))
    assert all(abs(a - b) < 4 for a, b in zip(image.getpixel((20, 10)), (255, 0, 0), strict=True))


def test_transparent_parts_are_white_and_16_bit_grey_keeps_its_shades(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("I;16", (4, 4), 128 * 256).save(tmp_path / "grey.png")
    assert open_picture(tmp_path / "grey.png").getpixel((0, 0)) == (128, 128, 128)
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert open_picture(tmp_path / "print.jpg").getpixel((0, 0))[0] > 200


def test_a_photo_is_turned_upright(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert open_picture(tmp_path / "photo.jpg").size == (20, 40)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"some words", "is not a picture: give a PNG"),
        (b"", "is not a picture: give a PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        (png_header(100, 100), "is damaged and can't be decoded"),
        (png_header(20_000, 10_000), "too many pixels; the most is 40 million: make it smaller"),
        (png_header(10_000, 5_000), "50 million pixels; the most is 40 million: make it smaller"),
        (png_header(4_000, 2), "too narrow to be seen by the model: crop it"),
        (b"x" * (picture.MOST_BYTES + 1), "has 21 MB; the most is 20 MB"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path, content, said):
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(UserError, match=r"\.$") as caught:
        open_picture(tmp_path / "file.png")
    assert said in str(caught.value)


def test_every_cut_of_a_picture_file_opens_or_is_a_sentence(tmp_path):
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        (tmp_path / "cut.jpg").write_bytes(whole[:size])
        with pytest.raises(UserError):
            open_picture(tmp_path / "cut.jpg")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(UserError):
        open_picture(tmp_path)
