"""Index files: what large JSON tables boil down to, built once and mapped into memory ever after.

An index is one safetensors file of plain columns and a little JSON. It opens as quickly as its bytes can be summed up,
processes that read it share its pages, and it remembers the stamp of the tables it was built from: another stamp, or
another sum, makes it stale.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..documents import listed
from ..files import written_aside

SKIPPING = "\n(data.on_error: skip leaves them out)"  # how to go on all the same, after `describe_faults`

Index = TypeVar("Index")


def read_index(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The columns of an index file, mapped, and its JSON.

    Raises:
        FileNotFoundError: there is none.
        SafetensorError: it is damaged in its header, or cut off.
        ValueError: it is damaged elsewhere.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        columns = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        checksum, _, text = (file.metadata() or {}).get("info", "").partition(" ")
    if checksum != _checksum(columns, text):
        raise ValueError(f"{path} is damaged: remove it, and it will be built anew")
    return columns, json.loads(text)


def write_index(path: Path, columns: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
    """Write what `read_index` reads; it is complete or not there."""
    from safetensors.numpy import save_file

    columns, text = {name: np.ascontiguousarray(column) for name, column in columns.items()}, json.dumps(info)
    with written_aside(path) as aside:
        # One entry, as several would stand there in any order: the same tables give the same bytes.
        save_file(columns, aside, {"info": f"{_checksum(columns, text)} {text}"})
        aside.chmod(0o644)  # safetensors writes for the owner alone; the tables' folder is often shared


def open_fresh(
    path: Path,
    stamp: str,
    open_index: Callable[[Path], Index],
    build: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]],
) -> Index:
    """Open an index; build it first where there is none or it is stale.

    It is written aside and renamed, and processes that start at once wait for the one that builds.

    Args:
        path: the file.
        stamp: what it must have been built from to be fresh.
        open_index: makes an index with an attribute `stamp`, which its JSON holds, from the file.
        build: gives columns and JSON.
    """
    from filelock import FileLock

    from ..progress import status

    if (index := _open_if_fresh(path, stamp, open_index)) is not None:
        return index
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if (index := _open_if_fresh(path, stamp, open_index)) is None:
            with status(f"reading the tables once, for the index {path}"):
                columns, info = build()
                write_index(path, columns, {**info, "stamp": stamp})
            index = open_index(path)
    return index


def index_path(folder: Path, name: str, index_dir: str | Path | None = None) -> Path:
    """Where the index of tables lies: in `index_dir`, or in their folder, or in the user's cache if that is read-only.

    Args:
        folder: of the tables.
        name: tells several indices of one folder apart.
        index_dir: see above.
    """
    if index_dir is None and _writable(folder):
        return folder / f"bevdet-index-{name}.safetensors"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bevdet"
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return Path(index_dir or cache) / f"{name}-{digest}.safetensors"


def file_stamp(path: Path) -> list[Any]:
    """What changes with a file: its name, size and time of change."""
    status = path.stat() if path.exists() else None
    return [path.name, status and status.st_size, status and status.st_mtime_ns]


def text_column(strings: Sequence[str]) -> np.ndarray:
    """Strings as rows of bytes [n, width] uint8, the form in which they go into the file."""
    array = np.array([string.encode() for string in strings], "S")
    return array.view(np.uint8).reshape(len(strings), -1) if len(strings) else np.zeros((0, 1), np.uint8)


def text_of(
    column: np.ndarray,  # [..., width] uint8
) -> np.ndarray:
    """A text column as an array of `bytes` [...], without a copy."""
    return column.view(f"S{column.shape[-1]}")[..., 0]


def describe_faults(origin: str | Path, faults: Sequence[object]) -> str:
    """One message about broken records, with the first few."""
    plural = "s" if len(faults) > 1 else ""
    return f"{origin} has {len(faults)} broken record{plural}:{listed(faults)}"


def _open_if_fresh(path: Path, stamp: str, open_index: Callable[[Path], Index]) -> Index | None:
    from safetensors import SafetensorError

    try:
        index = open_index(path)
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        # There is none yet, it has another format, or it is damaged.
        return None
    return index if index.stamp == stamp else None  # type: ignore[attr-defined]


def _checksum(columns: Mapping[str, np.ndarray], text: str) -> str:
    """A sum over all that an index holds."""
    total = zlib.crc32(text.encode())
    for name, column in sorted(columns.items()):
        kind = f"{name} {column.dtype} {column.shape}"
        total = zlib.crc32(column, zlib.crc32(kind.encode(), total))  # type: ignore[arg-type]
    return str(total)


def _writable(folder: Path) -> bool:
    # To the superuser everything is writable; a folder that nobody may write to is to stay as it is all the same.
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
