"""Image files in, and the error that every broken sample raises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 2**26  # of one camera; a picture of a few kilobytes can claim to unfold to any size


class SampleError(ValueError):
    """A sample that cannot be used: a file that is missing or damaged, a record that is incomplete or not finite.

    The message names the file or the token. Loaders raise it, or skip the sample and count it.
    """


def read_image(path: str | Path, upright: bool = False) -> np.ndarray:
    """The pixels [H, W, 3] uint8 RGB of an image file.

    Args:
        path: the file.
        upright: turn the image as its EXIF orientation says, which is how viewers show it.

    Raises:
        SampleError: the file is missing, truncated, no image, or too large to be one.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise SampleError(f"image {path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            return pixels_of(image, upright)
    except SampleError:
        raise
    except FileNotFoundError:
        raise SampleError(f"image {path} does not exist") from None
    except UnidentifiedImageError:
        raise SampleError(f"image {path} is not an image file, or its header is damaged") from None
    except Exception as error:  # Pillow reports damage and decompression bombs through many exception types
        raise SampleError(f"image {path} cannot be decoded: {error}") from error


def pixels_of(image: Image.Image, upright: bool = False) -> np.ndarray:
    """The pixels [H, W, 3] uint8 RGB of a Pillow image of any mode; transparency is dropped, 16 bits become 8.

    Args:
        image: the image.
        upright: see `read_image`.
    """
    if upright and _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # integers of 16 or 32 bits, in which 16-bit greyscale files arrive
        values = np.asarray(image)
        grey = values >> 8 if image.mode != "I" or values.max() > 255 else values
        return np.repeat(grey.astype(np.uint8)[..., None], 3, 2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except SyntaxError:  # damaged EXIF data say nothing about the picture
        return 1
