"""Open a picture that a visitor gave, trusting nothing about it. Imports no torch."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from quant_engine.spec import UserError

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 40_000_000
MOST_ELONGATED = 30
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def open_picture(path: Path) -> Image.Image:
    """The picture in the file `path` as RGB, upright, transparent parts white; the first frame of an animation.

    Size and format are checked before anything is decoded. Raises UserError, one sentence, for what can't be used.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise UserError(f"There is no picture {path.name!r}: choose another file.") from None
    if size > MOST_BYTES:
        raise UserError(f"The picture has {math.ceil(size / 2**20)} MB; the most is {MOST_BYTES // 2**20} MB.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            image = Image.open(path, formats=_FORMATS)
        with image:
            _check_shape(*image.size)
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise UserError(_too_many_pixels()) from None
    except UnidentifiedImageError:
        raise UserError(f"{path.name!r} is not a picture: give a PNG, JPEG, WebP, GIF or BMP file.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on damaged files
        raise UserError(f"The picture {path.name!r} is damaged and can't be decoded: choose another file.") from error


def _check_shape(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise UserError(_too_many_pixels(width, height))
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise UserError(f"The picture is {width} by {height} pixels, too narrow to be seen by the model: crop it.")


def _too_many_pixels(width: int | None = None, height: int | None = None) -> str:
    what = f"{width * height / 1e6:.0f} million pixels" if width and height else "too many pixels"
    return f"The picture has {what}; the most is {MOST_PIXELS / 1e6:.0f} million: make it smaller."


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey, which Pillow would clip to white
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
