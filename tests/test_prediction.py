"""`bevdet predict`: which files it takes, and what becomes of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from PIL import Image

from bevdet_core import checkpoint, prediction
from bevdet_core.cli import main
from bevdet_core.config import NuScenesConfig
from bevdet_core.data import build_dataset
from bevdet_core.data.rig import write_frame

CAMERAS = tuple(tiny.NUSCENES["cameras"])


@pytest.fixture
def frames(synthetic_root: Path, tmp_path: Path) -> Path:
    """A folder with four frame files, and the pictures of their cameras beside them."""
    settings = NuScenesConfig(root=str(synthetic_root), version="v1.0-mini", val_split="mini_val", cameras=CAMERAS)
    dataset = build_dataset(settings, training=False)
    for number in range(4):
        write_frame(dataset[number], tmp_path / "frames" / f"{number}.json")
    return tmp_path / "frames"


@pytest.fixture
def predict(tmp_path: Path):
    """Runs `bevdet predict` with a tiny detector of a name; gives the exit status, and what was found by file name."""

    def run(name: str, *words: object) -> tuple[int, dict[str, list]]:
        weights = tmp_path / f"{name}.safetensors"
        checkpoint.save(weights, tiny.detector(name).checkpoint())
        status = main(["predict", str(weights), *map(str, words), "--out", str(tmp_path / "found")])
        file = tmp_path / "found" / "predictions.json"
        found = json.loads(file.read_text()) if file.is_file() else {}
        return status, {Path(name).name: entries for name, entries in found.items()}

    return run


def test_of_a_folder_the_files_are_taken_that_the_detector_can_read(predict, frames, tmp_path, capsys):
    status, found = predict("detr3d", frames, "--threshold", "0")
    assert status == 0
    assert list(found) == ["0.json", "1.json", "2.json", "3.json"]
    assert f"{sum(map(len, found.values()))} detections in 4 inputs; pictures and " in capsys.readouterr().out
    status, found = predict("detr", frames, "--batch_size", "5")
    assert status == 0
    assert sorted(found) == sorted(path.name for path in frames.glob("*.png"))


@pytest.mark.parametrize(("name", "kind"), [("detr", "image"), ("petr", r"frame file (.json)")])
def test_a_folder_without_any_says_what_was_looked_for(predict, tmp_path, capsys, name, kind):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    assert predict(name, tmp_path / "empty") == (1, {})
    assert f"empty: no {kind} in this folder, which {name} needs" in capsys.readouterr().err


def test_a_name_without_a_file(predict, tmp_path, capsys):
    assert predict("detr", "") == (1, {})
    assert (
        capsys.readouterr().err == "bevdet predict: an input is empty: give the names of files, folders or patterns\n"
    )
    assert predict("detr", tmp_path / "*.png") == (1, {})
    assert capsys.readouterr().err == f"bevdet predict: {tmp_path / '*.png'}: no such file\n"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_damaged_input_takes_no_other_along(predict, frames, tmp_path, capsys, batch_size):
    (frames / "1.json").write_text("{}")
    (frames / "3.json").write_text("[")
    status, found = predict("detr3d", frames, "--batch_size", batch_size, "--threshold", "0")
    assert status == 1
    assert list(found) == ["0.json", "2.json"]
    assert all(found.values())
    assert {path.name for path in (tmp_path / "found").glob("*.png")} == {"0.png", "2.png"}
    told = capsys.readouterr().err
    assert "detections in 2 inputs; pictures and predictions.json: " in told
    assert "\n2 of 4 inputs could not be used:\n" in told
    assert f"  {frames / '1.json'}: a frame needs 'cameras'" in told
    assert f"  {frames / '3.json'}: not a JSON file" in told


def test_of_many_damaged_inputs_the_first_are_told(predict, tmp_path, capsys):
    for number in range(12):
        (tmp_path / f"{number:02}.png").write_text("no picture")
    assert predict("detr", tmp_path) == (1, {})
    told = capsys.readouterr().err
    assert "12 of 12 inputs could not be used" in told
    assert "07.png" in told
    assert "08.png" not in told
    assert "... and 4 more" in told


def test_a_single_damaged_input_is_told_in_one_line(predict, tmp_path, capsys):
    (tmp_path / "a.png").write_text("no picture")
    assert predict("detr", tmp_path / "a.png") == (1, {})
    *before, told = capsys.readouterr().err.splitlines()
    assert told == f"bevdet predict: image {tmp_path / 'a.png'} is not an image file, or its header is damaged"
    assert before == ["predicting 1/1"]


def test_what_was_found_before_an_interruption_is_kept(predict, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48), "white").save(tmp_path / name)
    draw = prediction.draw_detections

    def interrupted(found, path, **settings):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return draw(found, path, **settings)

    monkeypatch.setattr(prediction, "draw_detections", interrupted)
    status, found = predict("detr", tmp_path)
    assert status == 130
    assert list(found) == ["a.png"]
