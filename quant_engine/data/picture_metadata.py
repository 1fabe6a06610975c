"""What stands beside the pixels of a picture file: the orientation is read, the rest can be left out.

Cameras and editors write metadata in a sloppy way: fields of a wrong type, lengths that reach beyond the file, wrong
checksums. Pillow, which reads and writes metadata as a whole, then fails on pictures whose pixels are fine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from PIL import Image
from PIL.ExifTags import Base

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_EXIF = b"Exif\0\0"
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "B", 7: "B", 8: "H", 9: "I"}
"""How the types of a TIFF field that can hold an orientation are read, whether the writer took the right one or not."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_TIFF_PIXELS = {
    Base.ImageWidth, Base.ImageLength, Base.BitsPerSample, Base.Compression, Base.PhotometricInterpretation,
    Base.FillOrder, Base.StripOffsets, Base.SamplesPerPixel, Base.RowsPerStrip, Base.StripByteCounts,
    Base.PlanarConfiguration, Base.Predictor, Base.ColorMap, Base.TileWidth, Base.TileLength, Base.TileOffsets,
    Base.TileByteCounts, Base.ExtraSamples, Base.SampleFormat, Base.JPEGTables, Base.YCbCrSubSampling,
    Base.ReferenceBlackWhite, Base.YCbCrCoefficients, Base.Orientation,
}  # fmt: skip


def upright(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """The picture turned as an EXIF orientation (1 to 8) says; as its own metadata do, where none is given."""
    image.load()
    turn = _UPRIGHT.get(_orientation(image) if orientation is None else orientation)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The orientation in the metadata of an opened picture; 1, upright, where they can't be read."""
    found = _orientation_in(image.info.get("exif") or b"")
    if found is None:
        try:  # XMP, TIFF fields, EXIF as text
            found = image.getexif().get(Base.Orientation)
        except Exception:  # whatever Pillow raises on whatever stands there
            found = None
    return found if found in range(1, 9) else 1


def without_metadata(content: bytes) -> tuple[bytes, int]:
    """A picture file with only what decoding needs, and its orientation (1 where it says none).

    Knows PNG, JPEG, TIFF and AVIF; other content comes back as it is.
    """
    try:
        if content.startswith(PNG_MAGIC):
            return _without(_png_chunks(content), PNG_MAGIC)
        if content.startswith(b"\xff\xd8"):
            return _without(_jpeg_segments(content), b"\xff\xd8")
        if content.startswith((b"II*\0", b"MM\0*")):
            return _tiff_pixels(content), 1  # its orientation stays in, and is read by its decoder
    except (struct.error, IndexError):
        return content, 1
    if content[4:12] == b"ftypavif":
        return content.replace(b"Exif", b"free", 1), 1  # of a type that a decoder passes over
    return content, 1


def _without(parts: Iterator[tuple[bytes, bytes, bool]], start: bytes) -> tuple[bytes, int]:
    """The parts (bytes, EXIF in them, whether pixels need them) that pixels need, and the orientation of the others."""
    found, pixels = 1, [start]
    for part, exif, needed in parts:
        found = (exif and _orientation_in(exif)) or found
        if needed:
            pixels.append(part)
    return b"".join(pixels), found


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    position = len(PNG_MAGIC)
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        chunk = content[position : position + length + 12]
        yield chunk, chunk[8:-4] if kind == b"eXIf" else b"", kind in _PNG_PIXELS
        position += len(chunk)


def _jpeg_segments(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """The segments before the first scan, then the rest as one. Of what applications add only whole JFIF and Adobe
    headers, which say how colours are coded, are needed."""
    position = 2
    while True:
        marker = content[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if content[position] != 0xFF or marker == 0xDA:
            break
        (length,) = struct.unpack_from(">H", content, position + 2)
        segment = content[position : position + 2 + length]
        coded = segment[4:].startswith((b"JFIF\0", b"Adobe")) and length >= 14
        yield segment, segment[4:] if segment[4:].startswith(_EXIF) else b"", not 0xE0 <= marker <= 0xEF or coded
        position += len(segment)
    yield content[position:], b"", True


def _tiff_pixels(content: bytes) -> bytes:
    """A TIFF file whose first directory lists only what its pixels need, and is the last."""
    order, first = _tiff_header(content)
    entries = [content[at : at + 12] for tag, at in _tiff_entries(content) if tag in _TIFF_PIXELS]
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return content[:first] + directory + content[first + len(directory) :]


def _orientation_in(exif: bytes) -> int | None:
    """The orientation in EXIF data, whatever the other fields are; None where there is none."""
    tiff = exif.removeprefix(_EXIF)
    try:
        order, _ = _tiff_header(tiff)
        for tag, at in _tiff_entries(tiff):
            if tag == Base.Orientation:
                (kind,) = struct.unpack_from(f"{order}H", tiff, at + 2)
                return struct.unpack_from(order + _INTEGERS[kind], tiff, at + 8)[0]
    except (struct.error, KeyError):
        return None
    return None


def _tiff_header(tiff: bytes) -> tuple[str, int]:
    """The byte order, as struct writes it, and where the first directory is. Raises KeyError or struct.error."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    return order, struct.unpack_from(f"{order}I", tiff, 4)[0]


def _tiff_entries(tiff: bytes) -> Iterator[tuple[int, int]]:
    """Tag and position of each field of the first directory. Raises KeyError or struct.error where it is cut."""
    order, first = _tiff_header(tiff)
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for at in range(first + 2, first + 2 + 12 * count, 12):
        yield struct.unpack_from(f"{order}H", tiff, at)[0], at
