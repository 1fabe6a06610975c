"""Pictures from visitors: whatever the file is, a picture as the model should see it or one sentence."""

import io
import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from quant_engine.data import open_picture as picture
from quant_engine.data.open_picture import open_picture
from quant_engine.spec import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def chunk(kind, data, error=0):
    """A chunk of a PNG, whose checksum is wrong by `error`."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ error)


def png(width, height, rows, metadata=b""):
    """An RGB PNG with these bytes as rows, and `metadata` before them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + metadata + pixels


def png_header(width, height):
    """A PNG that says it is this large and holds almost nothing."""
    return png(width, height, b"")


def exif(*entries, order="<"):
    """EXIF data of (tag, type, count, value) as somebody may write them, in the order given."""
    directory, values, position = struct.pack(f"{order}H", len(entries)), b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        if len(value) > 4:
            values, value = values + value, struct.pack(f"{order}I", position + len(values))
        directory += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return magic + struct.pack(f"{order}I", 8) + directory + bytes(4) + values


def turned(value=6, order="<"):
    """The orientation as an entry."""
    return 0x112, 3, 1, struct.pack(f"{order}H", value)


def jpeg(*segments):
    """A red JPEG of 40 by 20 pixels with these (marker, content) before its own."""
    file = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(file, "JPEG")
    whole = file.getvalue()
    written = (bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data for marker, data in segments)
    return whole[:2] + b"".join(written) + whole[2:]


def opened(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    return open_picture(tmp_path / "file")


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


def test_what_is_no_file_is_called_what_it_is(tmp_path):
    with pytest.raises(UserError, match="is a folder: choose a picture file"):
        open_picture(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no file: choose a picture file"):
        open_picture(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["none.png", "a\0b.png", "\udc80.png", "x" * 300])
def test_a_name_that_no_file_has_is_a_sentence_that_can_be_printed(tmp_path, name):
    with pytest.raises(UserError, match="There is no picture") as caught:
        open_picture(tmp_path / name)
    assert str(caught.value).encode().isascii()


def test_a_heic_photo_is_called_so(tmp_path):
    with pytest.raises(UserError, match="is a HEIC photo, which can't be read here: save it as JPEG or PNG"):
        opened(tmp_path, struct.pack(">I", 24) + b"ftypheic" + bytes(40))


SLOPPY = {
    "rational of zero": (0x11B, 10, 1, struct.pack("<ii", -1, 0)),
    "make as a fraction": (0x10F, 5, 1, struct.pack("<II", 1, 1)),
    "resolution as text": (0x11A, 2, 3, b"72\0"),
    "more than there is": (0x10E, 2, 2**32 - 1, b"\0\0\0\0"),
    "nowhere": (0x8769, 4, 1, b"\xff\xff\xff\xff"),
    "unknown type": (0x10F, 99, 1, b"abcd"),
}


@pytest.mark.parametrize("entry", SLOPPY.values(), ids=SLOPPY)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_photo_with_sloppy_exif_is_turned_all_the_same(tmp_path, form, entry):
    data = exif(*sorted([entry, turned()]))
    if form == "JPEG":
        content = jpeg((0xE1, b"Exif\0\0" + data))
    elif form == "PNG":
        content = png(40, 20, (b"\0" + b"\xff\0\0" * 40) * 20, chunk(b"eXIf", data))
    else:
        file = io.BytesIO()
        Image.new("RGB", (40, 20), "red").save(file, form, exif=data)
        content = file.getvalue()
    image = opened(tmp_path, content)
    assert image.size == (20, 40)
    assert all(abs(a - b) < 4 for a, b in zip(image.getpixel((10, 20)), (255, 0, 0), strict=True))
    assert image.info == {}


def test_a_tiff_with_sloppy_fields_is_shown_upright(tmp_path):
    pixels = b"\xff\0\0" * 800

    def tiff(start, *entries):
        short, long = (lambda tag, *values: (tag, 3, len(values), struct.pack(f"<{len(values)}H", *values))), 4
        needed = [short(256, 40), short(257, 20), short(258, 8, 8, 8), short(259, 1), short(262, 2), short(277, 3)]
        strip = [(273, long, 1, struct.pack("<I", start)), (279, long, 1, struct.pack("<I", len(pixels)))]
        return exif(*sorted([*needed, *strip, *entries]))

    for entry in SLOPPY.values():
        entries = (entry, turned())
        image = opened(tmp_path, tiff(len(tiff(0, *entries)), *entries) + pixels)
        assert (image.size, image.getpixel((0, 0))) == ((20, 40), (255, 0, 0))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", range(10))
def test_each_orientation_is_turned_as_its_number_says_and_no_other_is(tmp_path, value, order):
    # The first corner of the upright picture is at this corner (column, row) of the stored one.
    corner = {2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}.get(value, (0, 0))
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[corner[1] * 8 :, corner[0] * 16 :][:8, :16] = 255
    Image.fromarray(stored).save(tmp_path / "a.png", exif=b"Exif\0\0" + exif(turned(value, order), order=order))
    image = open_picture(tmp_path / "a.png")
    assert image.size == ((16, 32) if value in (5, 6, 7, 8) else (32, 16))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert sum(image.getpixel((x, y))[0] for x in (0, image.width - 1) for y in (0, image.height - 1)) == 255


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_an_orientation_of_another_integer_type_counts(tmp_path, kind):
    assert opened(tmp_path, jpeg((0xE1, b"Exif\0\0" + exif((0x112, kind, 1, b"\6\0\0\0"))))).size == (20, 40)


def test_exif_of_random_entries_never_hides_the_orientation(tmp_path):
    rng = random.Random(0)
    for _ in range(200):
        entries = [turned()]
        for tag in rng.sample(range(0x100, 0x130), 4):
            entries.append((tag + (tag == 0x112), rng.randrange(14), rng.choice((1, 2, 2**31)), rng.randbytes(8)))
        assert opened(tmp_path, jpeg((0xE1, b"Exif\0\0" + exif(*sorted(entries))))).size == (20, 40)


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE0, b"JFIF\0"),
        (0xE1, b"Exif\0\0zz"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\1\0"),
        (0xED, b"Photoshop 3.0\x008BIM\4\4"),
        (0xEE, b"Adobe"),
        (0xFE, b"\xff"),
    ],
)
def test_a_jpeg_whose_applications_wrote_rubbish_is_shown_upright(tmp_path, marker, content):
    image = opened(tmp_path, jpeg((0xE1, b"Exif\0\0" + exif(turned())), (marker, content)))
    assert image.size in ((20, 40), (40, 20)[:: -1 if marker == 0xE1 else 1])
    assert all(abs(a - b) < 4 for a, b in zip(image.getpixel((10, 10)), (255, 0, 0), strict=True))


@pytest.mark.parametrize("kind", ["eXIf", "iCCP", "pHYs", "gAMA", "cHRM", "sRGB", "zTXt", "acTL", "fcTL", "xxXx"])
@pytest.mark.parametrize("error", [0, 1])
def test_a_png_with_a_bad_chunk_of_metadata_is_shown_upright(tmp_path, kind, error):
    bad = chunk(kind.encode(), b"zz", error)
    rows = (b"\0" + b"\xff\0\0" * 40) * 20
    for metadata in (bad, bad + chunk(b"eXIf", exif(turned()))):
        image = opened(tmp_path, png(40, 20, rows, metadata))
        assert image.getpixel((0, 0)) == (255, 0, 0)
    assert image.size == (20, 40)


def test_what_pillow_saves_in_a_format_of_the_list_it_opens_in_the_same_colour(tmp_path):
    seen = set()
    for form in picture.FORMATS:
        for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "LAB", "I;16"):
            colour = Image.new("RGB", (32, 32), "white").convert("L" if mode == "I;16" else "RGB")
            image = Image.new(mode, (32, 32), 65535) if mode == "I;16" else colour.convert(mode)
            try:
                image.save(tmp_path / "file", form)
            except (KeyError, OSError, ValueError):  # Pillow can't save it so
                continue
            shown = open_picture(tmp_path / "file")
            assert (shown.mode, shown.size) == ("RGB", (32, 32)), (form, mode)
            assert min(shown.getpixel((16, 16))) > 245, (form, mode)
            seen.add(form)
    assert seen == set(picture.FORMATS) - {"PSD"}


@pytest.mark.parametrize(
    ("mode", "values", "shades"),
    [
        ("I;16", [0, 257 * 10, 65535], [0, 10, 255]),
        ("I", [-5, 100, 200], [0, 100, 200]),
        ("I", [0, 257 * 100, 60000], [0, 100, 233]),
        ("I", [0, 10**6, 2 * 10**6], [0, 128, 255]),
        ("F", [0, 0.5, 1.0], [0, 128, 255]),
        ("F", [0, 100, 200], [0, 100, 200]),
        ("F", [float("nan"), float("-inf"), 1.0], [0, 0, 255]),
    ],
)
def test_deep_greys_keep_their_shades(tmp_path, mode, values, shades):
    image = Image.new(mode, (3, 1))
    for column, value in enumerate(values):
        image.putpixel((column, 0), value)
    image.save(tmp_path / "a.tiff")
    shown = open_picture(tmp_path / "a.tiff")
    assert [shown.getpixel((column, 0))[0] for column in range(3)] == shades


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_shown(tmp_path, form):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "file", form, save_all=True, append_images=frames[1:])
    red, _, blue = open_picture(tmp_path / "file").getpixel((10, 10))
    assert (red > 250, blue < 5) == (True, True)


def test_a_picture_in_an_icon_is_as_large_as_it_is_itself(tmp_path):
    inside = png_header(9_000, 9_000)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    with pytest.raises(UserError, match="81 million pixels"):
        opened(tmp_path, struct.pack("<HHH", 0, 1, 1) + entry + inside)
