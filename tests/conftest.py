"""Data sets that tests share: a small synthetic nuScenes, and the real key frame where it is at hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery

from bevdet_core.config import NuScenesConfig

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("no reference data beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered nuScenes with CAN bus, v1.0-mini: a scene of mini_train, one of mini_val, four frames, 160 x 90 px."""
    from bevdet_core.data.synthetic import synthesize_nuscenes

    return synthesize_nuscenes(
        tmp_path_factory.mktemp("synthetic") / "nuscenes",
        scenes=2,
        val_scenes=1,
        frames_per_scene=4,
        image_size=(160, 90),
        supersample=1,
        can_bus=True,
        workers=1,
        progress=False,
    )


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts `bevdet` commands as processes of their own."""
    with Nursery(tmp_path_factory.mktemp("nursery")) as started:
        yield started


@pytest.fixture
def synthetic_copy(synthetic_root: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic set, to be broken."""
    return Path(shutil.copytree(synthetic_root, tmp_path / "nuscenes", ignore=shutil.ignore_patterns("bevdet-index*")))


@pytest.fixture(scope="session")
def real_config(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> NuScenesConfig:
    """The real key frame as a data set, its index kept elsewhere."""
    index_dir = str(tmp_path_factory.mktemp("index"))
    root = str(shared / "data" / "nuscenes-sample")
    return NuScenesConfig(
        root=root, version="v1.0-mini", train_split="mini_train", val_split="mini_train", index_dir=index_dir
    )


@pytest.fixture
def edit_table() -> Callable[[Path, str, Callable[[list[dict[str, Any]]], None]], None]:
    """A function that changes a table of a data set in place: (root, table, what to do to the records)."""

    def edit(root: Path, name: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
        path = next(root.glob("v1.0-*")) / f"{name}.json"
        records = json.loads(path.read_text())
        change(records)
        path.write_text(json.dumps(records))

    return edit


@pytest.fixture
def check():
    """A function that notes what is no error of ours, or does not name its culprit."""
    found: list[str] = []

    def note(seed: int, error: BaseException | None, *names: str) -> None:
        if error is None:
            return
        ours = type(error).__module__.startswith("bevdet_core") or type(error) in (ValueError, FileNotFoundError)
        if not ours or not any(name in str(error) for name in names):
            found.append(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")

    yield note
    assert not found, "\n".join(found)
