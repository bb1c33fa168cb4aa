import errno
import os
from pathlib import Path

import pytest

from bevdet_core import files
from bevdet_core.files import write_text, written_aside


def test_a_file_is_the_old_one_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "metrics.json"
    write_text(path, "old")
    with written_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_new_folders_are_brought_to_the_disk_as_well(tmp_path: Path, monkeypatch) -> None:
    synced = []
    sync = files._sync
    monkeypatch.setattr(files, "_sync", lambda path: (synced.append(path), sync(path)))
    path = tmp_path / "run" / "evaluation" / "metrics.json"
    write_text(path, "new")
    assert synced[:2] == [tmp_path, tmp_path / "run"]
    assert synced[-1] == path.parent
    synced.clear()
    write_text(path, "newer")
    assert synced[1:] == [path.parent]


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "old")

    def interrupted() -> None:
        with written_aside(path) as aside:
            aside.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_system_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"), written_aside(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())
