"""Image files in, and the error that every broken sample raises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


class SampleError(ValueError):
    """A sample that cannot be used: a file that is missing or damaged, a record that is incomplete or not finite.

    The message names the file or the token. Loaders raise it, or skip the sample and count it.
    """


def read_image(path: str | Path) -> np.ndarray:
    """The pixels [H, W, 3] uint8 RGB of an image file.

    Raises:
        SampleError: the file is missing, truncated, or no image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise SampleError(f"image {path} does not exist") from None
    except UnidentifiedImageError:
        raise SampleError(f"image {path} is not an image file, or its header is damaged") from None
    except (OSError, SyntaxError) as error:  # Pillow reports a damaged PNG chunk as a SyntaxError
        raise SampleError(f"image {path} cannot be decoded: {error}") from error
