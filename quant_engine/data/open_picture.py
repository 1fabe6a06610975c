"""Open a picture that a visitor gave, trusting nothing about it. Imports no torch."""

from __future__ import annotations

import io
import math
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.IcoImagePlugin import IcoFile

from quant_engine.data.picture_metadata import upright, without_metadata
from quant_engine.spec import UserError

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 40_000_000
MOST_ELONGATED = 30
FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "DIB", "TGA", "PCX", "PSD", "SGI",
)  # fmt: skip
"""What Pillow decodes itself in bounded time: no format that starts a program (EPS), none decoded in Python (QOI)."""
_USUAL = "give a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF file"
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

warnings.filterwarnings("ignore", module=r"PIL\.")  # of corrupt metadata and many pixels: not the reader's to mend


def open_picture(path: Path) -> Image.Image:
    """The picture in the file `path` as RGB, upright, transparent parts white; the first frame of an animation.

    Size and format are checked before anything is decoded. Of metadata only the orientation is read, and none is kept.
    Raises UserError, one sentence, for what can't be used.
    """
    content = _read(path)
    try:
        try:
            return _decode(content)
        except UserError:
            raise
        except Exception:  # decoders raise anything on damaged files, and on metadata too
            pixels, turn = without_metadata(content)
            return _decode(pixels, turn)
    except (Image.DecompressionBombError, MemoryError):
        raise UserError(_too_many_pixels()) from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(_refusal(path, content)) from error


def _read(path: Path) -> bytes:
    """The file's bytes. Raises UserError for what is no file, can't be read, or is too large."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no file"
            raise UserError(f"{path.name!r} is {what}: choose a picture file.")
        if status.st_size > MOST_BYTES:
            megabytes = math.ceil(status.st_size / 2**20)
            raise UserError(f"The picture has {megabytes} MB; the most is {MOST_BYTES // 2**20} MB.")
        return path.read_bytes()
    except PermissionError:
        raise UserError(f"The picture {path.name!r} can't be read: allow reading it, or choose another file.") from None
    except (OSError, ValueError):  # ValueError: no file system has such a name
        raise UserError(f"There is no picture {path.name!r}: choose another file.") from None


def _decode(content: bytes, orientation: int | None = None) -> Image.Image:
    """The picture in `content`, turned as `orientation` says, or as its metadata do where that is None."""
    file = io.BytesIO(content)
    icon = content.startswith(b"\0\0\1\0")  # which Image.open would decode at once, however large
    with IcoFile(file).frame(0) if icon else Image.open(file, formats=FORMATS) as image:
        _check_shape(*image.size)
        picture = _as_rgb(upright(image, orientation))
        picture.info.clear()
        return picture


def _refusal(path: Path, content: bytes) -> str:
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
        return f"{path.name!r} is a HEIC photo, which can't be read here: save it as JPEG or PNG."
    accepts = [Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN]
    if any(accept and accept(content[:16].ljust(16, b"\0")) for accept in accepts):
        return f"The picture {path.name!r} is damaged and can't be decoded: choose another file."
    return f"{path.name!r} is not a picture: {_USUAL}."


def _check_shape(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise UserError(_too_many_pixels(width, height))
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise UserError(f"The picture is {width} by {height} pixels, too narrow to be seen by the model: crop it.")


def _too_many_pixels(width: int | None = None, height: int | None = None) -> str:
    what = f"{width * height / 1e6:.0f} million pixels" if width and height else "too many pixels"
    return f"The picture has {what}; the most is {MOST_PIXELS / 1e6:.0f} million: make it smaller."


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _shades(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _shades(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8 bits, where Pillow would clip it to white.

    White is 65535 in 16 bits. In 32 bits it is the first of 1 (of fractions), 255 and 65535 that no value is above, or
    else the highest value.
    """
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    white = 65535.0
    if not image.mode.startswith("I;16"):
        usual = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        white = next((limit for limit in usual if values.max() <= limit), values.max())
    return Image.fromarray(np.rint(values.clip(0) * (255 / white)).astype(np.uint8))
