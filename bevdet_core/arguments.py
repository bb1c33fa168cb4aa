"""The kinds of words that the command line takes; each says what is wrong with one that it does not."""

from __future__ import annotations

import difflib
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from pathlib import Path


def file_path(text: str) -> Path:
    """The path of a file or folder."""
    if not text:
        raise ArgumentTypeError("a path must not be empty")
    return Path(text)


def trained_detector(text: str) -> Path:
    """The path of a trained detector, which a configuration is not: its answers would be those of random weights."""
    path = file_path(text)
    if path.suffix in (".yaml", ".yml"):
        raise ArgumentTypeError(f"{text} holds settings, no weights: give a run folder or a .safetensors file")
    return path


def whole_number(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def confidence(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"expected a score from 0 to 1, got {text!r}")
    return value


def image_size(text: str) -> tuple[int, int]:
    """(width, height) in pixels."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ArgumentTypeError(f"expected WIDTHxHEIGHT such as 800x450, got {text!r}")
    return int(width), int(height)


def one_of(names: Iterable[str], what: str) -> Callable[[str], str]:
    """One of some names; of another, the nearest is told."""
    valid = list(names)

    def checked(text: str) -> str:
        if text not in valid:
            nearest = difflib.get_close_matches(text, valid, n=1, cutoff=0.5) or valid
            raise ArgumentTypeError(f"no {what} {text!r}; nearest: {', '.join(nearest)}")
        return text

    return checked
