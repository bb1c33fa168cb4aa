"""Class names in a text file, one a line."""

from __future__ import annotations

from pathlib import Path

from ..config import ConfigError
from ..documents import DocumentError, is_text, read_text, shown


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line, in the order of the labels.

    Raises:
        ConfigError: the file cannot be read, or one of its lines, by number, is blank, no text or there twice.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the class names: {error.strerror}") from error
    except DocumentError as error:
        raise ConfigError(f"{path}: not a list of class names: {error}") from error
    lines: dict[str, int] = {}  # of each name
    for number, line in enumerate(text.removeprefix("\ufeff").rstrip().splitlines(), 1):
        name = line.strip()
        if not name:
            raise ConfigError(f"{path}: line {number} is blank, every line must name a class")
        if not is_text(name):
            raise ConfigError(f"{path}: line {number}: {shown(name)} is no plain text; the file must be UTF-8")
        if name in lines:
            raise ConfigError(f"{path}: line {number} names {shown(name)} again, after line {lines[name]}")
        lines[name] = number
    if not lines:
        raise ConfigError(f"{path}: names no class")
    return tuple(lines)
