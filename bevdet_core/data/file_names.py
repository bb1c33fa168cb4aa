"""The folders of data sets, and the file names that they hold: none may lead out of the folder it belongs to."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path


def leaves_folder(name: str) -> bool:
    """Whether a name could mean a file outside of the folder that it is relative to, on any system."""
    path = posixpath.normpath(name.replace("\\", "/"))  # by the rules of every system: data sets travel
    return "\0" in name or path.startswith("/") or path.split("/")[0] == ".." or bool(re.match(r"[A-Za-z]:", path))


def file_name(text: str) -> str:
    """A file name for a token, a camera or the like, which data sets may call as they please."""
    return re.sub(r"[^\w.+-]", "_", text).lstrip(".")[:150] or "_"


def data_root(root: str | Path) -> Path:
    """The folder of a data set.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(root)
    if not path.is_dir():
        raise FileNotFoundError(f"{path.absolute()}: no such folder, where data.root should be")
    return path
