"""Files that a visitor may give as a picture: whole, damaged, lying about themselves, and no pictures at all."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

NAMES = (
    "photo.png", "photo", "photo.JPG", "-rf.png", "日本 🎉.webp", "ab" * 120 + ".png", "a\x07b\tc.gif", "..png", ".",
    "../../etc/passwd", "a\\b.png", "con.png", "x.svg", "x.html", "x.exe", "<b>.png", "a;b|c&d.png", "a%00.png", " ",
    "\u202e.png",
)  # fmt: skip
TEXTS = (
    b"", b"\0", b"some words", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><rect/></svg>",
    b"<!doctype html><script>alert(1)</script>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.7\n",
    b"PK\3\4" + bytes(40), b'{"image": 1}', b"#!/bin/sh\nid\n", b"\x1f\x8b" + bytes(20), b"\xff\xd8", b"GIF89a", b"BM",
    b"\x89PNG\r\n\x1a\n", b"II*\0", b"RIFF\0\0\0\0WEBP", bytes(4) + b"ftypheic" + bytes(40), b"P6 9999999 9999999 255 ",
    b"/* XPM */\nstatic char *x[] = {}", b"\xd7\xcd\xc6\x9a" + bytes(60), b"version https://git-lfs.github.com/spec/v1\n",
)  # fmt: skip


def uploads(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(name, content) of `count` files, the same ones for the same seed."""
    rng = random.Random(seed)
    whole = list(pictures())
    ways = (whole_one, cut, flipped, spliced, sloppy_jpeg, sloppy_png, huge, no_picture)
    for number in range(count):
        yield rng.choice(NAMES), ways[number % len(ways)](rng, whole)


def pictures() -> Iterator[bytes]:
    """Small pictures in many formats and modes."""
    colours = Image.effect_noise((24, 16), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a word"
    for mode, form, options in (
        ("RGB", "PNG", {"exif": exif}), ("P", "PNG", {"transparency": 3}), ("I;16", "PNG", {}), ("LA", "PNG", {}),
        ("1", "PNG", {}), ("RGB", "JPEG", {"exif": exif}), ("CMYK", "JPEG", {}), ("L", "JPEG", {"progressive": True}),
        ("RGBA", "WEBP", {"exif": exif}), ("P", "GIF", {"save_all": True, "append_images": [colours.rotate(90)]}),
        ("RGB", "BMP", {}), ("P", "BMP", {}), ("RGB", "TIFF", {"compression": "tiff_lzw"}), ("F", "TIFF", {}),
        ("RGB", "TIFF", {"save_all": True, "append_images": [colours]}), ("RGB", "AVIF", {"exif": exif}),
        ("RGB", "MPO", {"save_all": True, "append_images": [colours]}), ("RGBA", "ICO", {}), ("RGB", "JPEG2000", {}),
        ("RGB", "PPM", {}), ("RGB", "TGA", {"compression": "tga_rle"}), ("RGB", "PCX", {}),
    ):  # fmt: skip
        file = io.BytesIO()
        (colours.convert("L") if mode == "I;16" else colours).convert(mode).save(file, form, **options)
        yield file.getvalue()


def whole_one(rng: random.Random, whole: list[bytes]) -> bytes:
    return rng.choice(whole)


def cut(rng: random.Random, whole: list[bytes]) -> bytes:
    content = rng.choice(whole)
    return content[: rng.randrange(len(content))]


def flipped(rng: random.Random, whole: list[bytes]) -> bytes:
    """A few bits changed anywhere, or many near the start, where the headers are."""
    content = bytearray(rng.choice(whole))
    reach = rng.choice((len(content), 60))
    for _ in range(rng.choice((1, 3, 20))):
        content[rng.randrange(min(reach, len(content)))] ^= 1 << rng.randrange(8)
    return bytes(content)


def spliced(rng: random.Random, whole: list[bytes]) -> bytes:
    """The start of one picture and the end of another."""
    first, last = rng.choice(whole), rng.choice(whole)
    return first[: rng.randrange(len(first))] + last[rng.randrange(len(last)) :]


def sloppy_jpeg(rng: random.Random, whole: list[bytes]) -> bytes:
    """A good JPEG with a segment of rubbish that begins as what applications write."""
    heads = {
        b"Exif\0\0II*\0\x08\0\0\0\x05\0": 0xE1, b"Exif\0\0MM": 0xE1, b"http://ns.adobe.com/xap/1.0/\0": 0xE1,
        b"JFIF\0": 0xE0, b"ICC_PROFILE\0": 0xE2, b"MPF\0II*\0\x08\0\0\0\1\0": 0xE2, b"Photoshop 3.0\x008BIM": 0xED,
        b"Adobe": 0xEE,
    }  # fmt: skip
    content = next(picture for picture in whole if picture.startswith(b"\xff\xd8"))
    head = rng.choice(list(heads))
    segment = head + rng.randbytes(rng.choice((0, 1, 7, 40)))
    return content[:2] + bytes((0xFF, heads[head])) + struct.pack(">H", len(segment) + 2) + segment + content[2:]


def sloppy_png(rng: random.Random, whole: list[bytes]) -> bytes:
    """A good PNG with a chunk of rubbish among its metadata, its checksum right or wrong."""
    kind = rng.choice(
        (b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"pHYs", b"gAMA", b"cHRM", b"acTL", b"fcTL", b"sRGB", b"xxXx")
    )
    data = rng.choice((b"", b"zz", b"a\0\0" + zlib.compress(bytes(2_000_000)), rng.randbytes(26)))
    content = next(picture for picture in whole if picture.startswith(b"\x89PNG"))
    at = rng.choice((33, len(content) - 12))  # behind the header, or before the end
    return content[:at] + chunk(kind, data, rng.choice((0, 1))) + content[at:]


def huge(rng: random.Random, whole: list[bytes]) -> bytes:
    """A small file that says it has many pixels, or far more of them one way than the other."""
    width, height = rng.choice(((30_000, 30_000), (65_535, 1), (2 * 10**9, 2 * 10**9), (20_000, 20_000), (0, 5)))
    if rng.random() < 0.5:
        packed = zlib.compress(bytes(500_000), 9)
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    gif = next(picture for picture in whole if picture.startswith(b"GIF"))
    bmp = next(picture for picture in whole if picture.startswith(b"BM"))
    sides = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    return rng.choice((gif[:6] + sides + gif[10:], bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]))


def no_picture(rng: random.Random, whole: list[bytes]) -> bytes:
    return rng.choice((*TEXTS, rng.randbytes(200)))


def chunk(kind: bytes, data: bytes, error: int = 0) -> bytes:
    """A chunk of a PNG, whose checksum is wrong by `error`."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ error)
