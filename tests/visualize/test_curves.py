"""The training curve: what it reads, what it shows, what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from bevdet_core.visualize import training_curve
from bevdet_core.visualize.curves import BLUE, GREEN, ORANGE


def training(step, loss=3.0):
    return {"step": step, "epoch": step / 10, "loss": loss, "lr": 1e-4, "losses": {"class": loss}}


def evaluation(step, **metrics):
    return {"step": step, "epoch": step / 10, "metrics": metrics}


RECORDS = [training(k, 9.0 - 0.1 * k) for k in range(1, 60)] + [
    evaluation(30, mAP=0.2, NDS=0.3),
    evaluation(60, mAP=0.4),
]


def shows(path, color) -> bool:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    wanted = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
    return bool((np.abs(pixels - wanted).max(-1) < 6).sum() > 30)


def test_records_give_a_curve_for_loss_and_each_metric(tmp_path):
    training_curve(RECORDS, tmp_path / "new" / "curve.png")
    assert all(shows(tmp_path / "new" / "curve.png", color) for color in (BLUE, ORANGE, GREEN))


@pytest.mark.parametrize("folder", [True, False])
def test_run_folder_and_log_file_with_a_line_cut_short(tmp_path, folder):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + '{"step": 61, "lo')
    training_curve(tmp_path if folder else log, tmp_path / "a.png")
    training_curve(RECORDS, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 59])
def test_run_without_an_evaluation(tmp_path, count):
    training_curve(RECORDS[:count], tmp_path / "curve.png")
    assert shows(tmp_path / "curve.png", BLUE)
    assert not shows(tmp_path / "curve.png", GREEN)


def test_run_shorter_than_its_logging_interval(tmp_path):
    training_curve([evaluation(3, mAP=0.1, NDS=0.2)], tmp_path / "curve.png")
    assert shows(tmp_path / "curve.png", GREEN)
    assert not shows(tmp_path / "curve.png", BLUE)


def test_vector_graphics(tmp_path):
    training_curve(RECORDS, tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl"):
        training_curve(tmp_path, tmp_path / "curve.png")
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="no training step, no known metric"):
        training_curve(tmp_path, tmp_path / "curve.png")
    with pytest.raises(ValueError, match=r"'\.xyz' is no picture format"):
        training_curve(RECORDS, tmp_path / "curve.xyz")


@pytest.mark.parametrize(
    "record",
    [
        *([1], {"loss": 1.0}, {"step": "one", "loss": 1.0}, {"step": 1, "loss": [2.0]}, {"step": 1, "metrics": 0.5}),
        *({"step": 1, "metrics": {"mAP": None}}, {"step": 1, "loss": 1.0, "lr": "1e-4"}),
    ],
    ids=str,
)
def test_what_is_no_record_of_a_training_is_named(tmp_path, record):
    with pytest.raises(ValueError, match=r"the log: no record of a training: "):
        training_curve([training(1), record], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
