"""Signals that ask a run to stop: noted while it works, answered at the end of the stretch."""

from __future__ import annotations

import signal

import pytest
import tiny
import yaml
from nursery import wait_until

from bevdet_core import Detector, checkpoint, interruption
from bevdet_core.interruption import Interrupted, StopSignals, stopping_at_once
from bevdet_core.runlog import read_log


@pytest.fixture(autouse=True)
def without_harm():
    """A signal that is not noted fails its test, and does not end all of them."""
    before = {n: signal.signal(n, lambda *_: pytest.fail("not noted")) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def work(*numbers: int) -> int:
    """A stretch in which these signals come; gives the one that was noted."""
    with StopSignals() as stop:
        for number in numbers:
            signal.raise_signal(number)
        return stop.received


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_nobody_answered_ends_the_stretch(number, status):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; --resume goes on from the last check") as end:
        work(number)
    assert end.value.exit_code == status
    assert signal.getsignal(number) is before
    assert work() == 0


def test_a_second_ctrl_c_ends_the_run_where_it_stands(monkeypatch):
    with pytest.raises(Interrupted, match="stopped by SIGINT; "):  # a launcher has passed on what the terminal sent
        work(signal.SIGINT, signal.SIGINT)
    monkeypatch.setattr(interruption, "SAME_REQUEST", -1.0)  # seconds: now everything is another request
    with pytest.raises(Interrupted, match="stopped at once; --resume goes on from the last checkpoint") as end:
        work(signal.SIGTERM, signal.SIGINT)
    assert end.value.exit_code == 130


def test_work_that_cannot_go_on_later_ends_where_it_stands():
    before = signal.getsignal(signal.SIGTERM)
    closed = []

    def work():
        with stopping_at_once(" while working"):
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)  # the same request again does not disturb what is being closed
                closed.append(True)

    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM while working$") as end:
        work()
    assert (end.value.number, end.value.exit_code, closed) == (signal.SIGTERM, 143, [True])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture(scope="module")
def settings(synthetic_root, tmp_path_factory):
    """A file with the settings of a training of four steps."""
    path = tmp_path_factory.mktemp("settings") / "small.yaml"
    splits = {"version": "v1.0-mini", "train_split": "mini_train", "val_split": "mini_val"}
    content = {
        "model": {**tiny.DETR3D, "backbone": {**tiny.BACKBONE, "norm": "batch"}},
        "data": {**tiny.NUSCENES, **splits, "root": str(synthetic_root)},
        "train": {"epochs": 1, "workers": 1, "log_steps": 1},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def weights(settings):
    """The detector of these settings, as a file."""
    path = settings.with_name("small.safetensors")
    checkpoint.save(path, Detector.load(settings, "cpu").checkpoint())
    return path


def assert_stopped(child, number, status, message):
    """A command that this signal has ended: in one line, without a trace of what was half done."""
    child.kill(number)
    assert child.wait() == status, child.told()
    last = child.told().splitlines()[-1]
    assert last == message
    assert "Traceback" not in child.told()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["loading", "scoring"])
def test_an_evaluation_ends_at_once(weights, nursery, tmp_path, number, status, moment):
    child = nursery.start(["evaluate", weights, "--out", tmp_path / "out"])
    if moment == "loading":
        wait_until(lambda: child.output.exists() and "evaluating 1/4" in child.told(), child)
    else:
        wait_until((tmp_path / "out" / "submission.json").exists, child)
    assert_stopped(child, number, status, f"bevdet evaluate: stopped by {number.name} while evaluating")
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_training_that_is_stopped_in_its_last_evaluation_has_that_to_do_alone(settings, nursery, tmp_path):
    run = tmp_path / "run"
    words = ["train", settings, "--run", run]
    child = nursery.start(words)
    wait_until((run / "evaluation" / "submission.json").exists, child)
    message = "bevdet train: stopped by SIGTERM while evaluating; --resume goes on from the last checkpoint"
    assert_stopped(child, signal.SIGTERM, 143, message)
    assert not list(run.rglob(".*.part"))
    kept = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").iterdir()}
    child = nursery.start([*words, "--resume"])
    assert child.wait() == 0, child.told()
    assert "training 1/4" not in child.told()
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoints").iterdir()} == kept
    lines = read_log(run / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert "metrics" in lines[-1]
