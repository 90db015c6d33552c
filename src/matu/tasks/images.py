"""Image files of any kind -> square RGB pixels."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE as BITS_OF_TIFF
from PIL.TiffImagePlugin import TiffImageFile

# A JPEG far larger than needed is decoded at the smallest scale that still has this many times the size.
DRAFT_MARGIN = 4

DECODE_RECIPE = "exif, rgb over white, central square, bicubic, draft 4"  # part of every cache key


class BadImageError(Exception):
    """An image that cannot be decoded; the message says why."""


def decode(data: bytes | Path, size: int) -> np.ndarray:
    """Decode an encoded image into uint8 [size, size, 3]: upright, RGB, its central square resized (bicubic).

    Any mode is accepted: palette and grey are expanded, transparency is laid over white, CMYK is converted,
    16-bit pixels keep their upper 8 bits. Of an animation the first frame is used.

    Raises
    ------
    BadImageError : not an image, truncated, of absurd dimensions, or of a mode without a known range
    """
    try:
        # Pillow warns about odd metadata and palettes of images that it decodes all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
                image.draft(None, (DRAFT_MARGIN * size, DRAFT_MARGIN * size))
                # Mode I is 32 bits; only of these formats is what it holds known to be 16.
                known = image.format in ("PNG", "PPM") or (
                    isinstance(image, TiffImageFile) and image.tag_v2.get(BITS_OF_TIFF) == (16,)
                )
                return fit(_to_rgb(ImageOps.exif_transpose(image), known), size)
    except UnidentifiedImageError:
        raise BadImageError("not an image file that can be read") from None
    except MemoryError:
        raise
    except Exception as error:  # a parser may raise anything on broken bytes
        raise BadImageError(str(error) or type(error).__name__) from error


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Central square of an RGB image, resized (bicubic, antialiased) to uint8 [size, size, 3]."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def _to_rgb(image: Image.Image, sixteen_bits: bool) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and not sixteen_bits):
        pixels = "floating-point" if image.mode == "F" else "32-bit"
        raise BadImageError(f"{pixels} pixels: their range is not known; save as 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert() would clip everything above 255 to white.
        values = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF) >> 8
        image = Image.fromarray(values.astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image.convert("RGB")
