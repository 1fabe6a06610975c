import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from leaderboard import pictures
from quant_engine.spec import UserError


def huge_png(path: Path, width: int = 20_000, height: int = 10_000) -> Path:
    """A PNG of 200 million pixels in a few hundred kilobytes, made without holding it in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        pictures.accept(path)
    return str(caught.value)


def test_a_picture_becomes_a_small_clean_png(tmp_path):
    source = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010E] = "a secret"
    Image.new("RGB", (3000, 1500), "red").save(source, exif=exif)
    clean = pictures.accept(source)
    with Image.open(clean) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (800, 1600))
    assert b"secret" not in clean.read_bytes()
    assert pictures.preview(clean).startswith("data:image/jpeg;base64,")
    pictures.forget(str(clean))
    assert not clean.exists()


def test_forget_touches_no_other_file(tmp_path):
    other = tmp_path / "lowbit-picture-x.png"
    other.write_bytes(b"")
    pictures.forget(str(other))
    pictures.forget(None)
    assert other.exists()


def test_a_text_file_is_refused_whatever_its_name(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    assert "is not a picture" in refusal(text)


def test_200_million_pixels_are_refused_before_decoding(tmp_path):
    assert "the most is 40 million" in refusal(huge_png(tmp_path / "huge.png"))


def test_a_cut_picture_is_refused(tmp_path):
    whole = tmp_path / "whole.png"
    Image.effect_noise((300, 300), 50).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:4000])
    assert "damaged" in refusal(cut)
