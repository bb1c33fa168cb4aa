"""What both writers share: checked arguments, a folder that is complete or absent, processes, a progress bar."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

MANIFEST = "synthetic.json"
"""File in the folder of a synthetic data set that says how it was made."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def check_picture_arguments(image_size: tuple[int, int], supersample: int, jpeg_quality: int) -> None:
    """Raises ValueError where an image cannot be rendered or stored as asked."""
    if len(image_size) != 2 or min(image_size) < 16:
        raise ValueError(f"image_size must be (width, height) of at least 16 pixels each, got {tuple(image_size)}")
    if not 1 <= supersample <= 8:
        raise ValueError(f"supersample must lie between 1 and 8, got {supersample}")
    if not 1 <= jpeg_quality <= 95:
        raise ValueError(f"jpeg_quality must lie between 1 and 95, got {jpeg_quality}")


def is_complete(out: Path, manifest: dict[str, Any]) -> bool:
    """Whether `out` already holds exactly the set that `manifest` describes.

    Raises:
        FileExistsError: `out` is a file, or a folder that holds anything else.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file; give a folder that does not exist yet")
    if not any(out.iterdir()):
        return False
    record = out / MANIFEST
    if not record.is_file():
        raise FileExistsError(f"{out} is not empty and is no synthetic data set; give another folder")
    found = json.loads(record.read_text())
    different = sorted(key for key in manifest.keys() | found.keys() if manifest.get(key) != found.get(key))
    if different:
        details = ", ".join(f"{key}: {found.get(key)!r} there, {manifest.get(key)!r} asked for" for key in different)
        raise FileExistsError(f"{out} holds another synthetic data set ({details}); remove it or give another folder")
    return True


def settings_of(out: Path) -> dict[str, str]:
    """The settings, by dotted name, that a configuration needs to use a synthetic data set."""
    settings = {"data.root": str(out)}
    if json.loads((out / MANIFEST).read_text()).get("version") == "v1.0-mini":  # not what configurations start from
        settings |= {"data.version": "v1.0-mini", "data.train_split": "mini_train", "data.val_split": "mini_val"}
    return settings


@contextmanager
def written_aside(out: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """A new folder next to `out` that takes its place when the block ends, and vanishes when the block fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield aside
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        aside.chmod(0o755)
        if out.exists():
            out.rmdir()  # empty, or `is_complete` would have refused it
        os.replace(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def run_all(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None, label: str, progress: bool
) -> list[Result]:
    """Results of all jobs in the order of the jobs.

    Args:
        function: importable by name (it runs in other processes).
        jobs: its arguments.
        workers: processes; None means one for each usable core, 1 stays in this process.
        label: in front of the progress bar.
        progress: whether to show a bar.
    """
    from ...processes import usable_cores
    from ...progress import Bar

    if workers is None:
        workers = usable_cores()
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    workers = min(workers, len(jobs))
    with Bar(label, len(jobs), quiet=not progress) as bar:
        results: list[Result] = []
        if workers <= 1:
            for job in jobs:
                results.append(function(job))
                bar.step()
            return results
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(function, job) for job in jobs]
            try:
                for future in futures:
                    results.append(future.result())
                    bar.step()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return results
