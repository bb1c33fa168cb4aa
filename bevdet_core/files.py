"""Files that are never half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name to write to in place of `path`, which at any moment holds either the old or the new file, complete.

    What was written is synced to the disk and takes its place when the block ends; an error in the block leaves what
    was there and removes the rest. Folders are made as needed.
    """
    _make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        try:
            yield aside
        except OSError as error:
            if error.filename is None and error.strerror:  # such as a full disk
                raise type(error)(error.errno, error.strerror, str(path)) from error
            raise
        _sync(aside)
        os.replace(aside, path)
        _sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is never half-written."""
    with written_aside(path) as aside:
        aside.write_text(text)


def _make_folder(path: Path) -> None:
    """A folder, with those above it, whose entries are on the disk as well."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Ask the system to bring a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
