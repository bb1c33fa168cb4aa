"""Training: what a run leaves, what it survives, and what stops it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from nursery import wait_until
from safetensors.torch import save_file

from bevdet_core import Detector, checkpoint, engine
from bevdet_core.checkpoint import CheckpointError
from bevdet_core.config import Config, ConfigError, TrainConfig, load_config
from bevdet_core.data.rig import write_frame
from bevdet_core.engine import train
from bevdet_core.matching import LossError
from bevdet_core.models import build_backbone, build_criterion
from bevdet_core.optimization import learning_rate
from bevdet_core.runlog import read_log

SMALL = {
    "model": {
        "name": "detr3d",
        "backbone": {"depth": 18, "width": 8, "norm": "batch", "frozen_stages": 0, "out_stages": [3, 4]},
        "num_levels": 2,
        "embed_dim": 16,
        "num_queries": 12,
        "num_layers": 2,
        "num_heads": 2,
        "ffn_dim": 16,
        "perspective": True,
    },
    "data": {
        "name": "nuscenes",
        "version": "v1.0-mini",
        "train_split": "mini_train",
        "val_split": "mini_val",
        "input_size": [48, 80],
    },
    "train": {"epochs": 2, "workers": 0, "ema": 0.9, "log_steps": 1, "checkpoint_steps": 1, "warmup_steps": 2},
}


def settings(root: Path, **overrides) -> Config:
    return load_config(SMALL, {"data.root": str(root)} | {name.replace("__", "."): v for name, v in overrides.items()})


@pytest.fixture(scope="module")
def finished(synthetic_root, tmp_path_factory):
    """The folder of an uninterrupted run."""
    run = tmp_path_factory.mktemp("run") / "small"
    metrics = train(settings(synthetic_root), run, quiet=True)
    return run, metrics


def test_a_run_leaves_all_that_is_needed(finished, synthetic_root):
    run, metrics = finished
    assert {"NDS", "mAP"} <= set(metrics.summary())
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "log.jsonl", "tensorboard", "checkpoints", "model.safetensors", "evaluation"} <= names
    assert load_config(run / "config.yaml") == settings(synthetic_root)
    lines = read_log(run / "log.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert "perspective/loss_box" in lines[0]["losses"]
    assert lines[-1]["metrics"].keys() >= {"NDS", "mAP"}
    assert len(checkpoint.training_checkpoints(run / "checkpoints")) == 2


def test_the_trained_detector_reads_a_frame_without_a_data_set(finished, synthetic_root, tmp_path):
    from bevdet_core.data import build_dataset

    detector = Detector.load(finished[0])
    sample = build_dataset(settings(synthetic_root).data, training=False)[0]
    write_frame(sample, tmp_path / "frame.json")
    ours, same = detector.predict([sample, tmp_path / "frame.json"], batch_size=2)
    assert len(ours) > 0
    assert ours.boxes.shape[1] == 9
    # PNG files keep the pixels, so the two roads meet.
    torch.testing.assert_close(ours.scores, same.scores, rtol=1e-4, atol=1e-6)
    assert ours.to_nuscenes()[0]["sample_token"] == sample.token


def test_an_existing_run_is_not_overwritten(finished, synthetic_root):
    before = (finished[0] / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        train(settings(synthetic_root), finished[0], quiet=True)
    assert (finished[0] / "model.safetensors").read_bytes() == before


def test_a_refused_resume_leaves_the_run_as_it_was(finished, synthetic_root):
    before = (finished[0] / "config.yaml").read_bytes()
    with pytest.raises(CheckpointError, match="another model"):
        train(settings(synthetic_root, model__embed_dim=32), finished[0], resume=True, quiet=True)
    assert (finished[0] / "config.yaml").read_bytes() == before


def test_an_error_that_nobody_expected_ends_the_run_and_its_workers(synthetic_root, tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings(synthetic_root, train__workers=1).to_dict()))
    code = (
        "from bevdet_core import engine\nfrom bevdet_core.config import load_config\nfrom pathlib import Path\n"
        "def fail(*given):\n    raise RuntimeError('nobody expected this')\n"
        "engine.build_criterion = lambda model: fail\n"
        f"engine.train(load_config({str(tmp_path / 'small.yaml')!r}), Path({str(tmp_path / 'run')!r}), quiet=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: nobody expected this\n")


def test_a_terminal_shows_all_that_takes_its_time(synthetic_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    train(settings(synthetic_root, train__epochs=1, train__workers=0), tmp_path / "run")
    told = capsys.readouterr()
    assert "training" in told.out
    for word in ("evaluating", "writing submission.json", "scoring with the nuScenes devkit", "drawing pr_curves.png"):
        assert word in told.err


@pytest.fixture(scope="module")
def long_run(synthetic_root, nursery, tmp_path_factory):
    """The command of a run of twenty steps, and the folder of one that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("long")
    config = settings(synthetic_root, train__epochs=5, train__workers=1, model__dropout=0.2)
    (folder / "long.yaml").write_text(yaml.safe_dump(config.to_dict()))
    command = ["train", folder / "long.yaml", "--run"]
    child = nursery.start([*command, folder / "whole"])
    assert child.wait() == 0, child.told()
    assert "training 1/20  epoch 1/5  loss" in child.told()
    assert "\x1b" not in child.told()
    return command, folder / "whole"


def last_step(run: Path) -> int:
    found = checkpoint.training_checkpoints(run / "checkpoints")
    return int(found[-1].stem.removeprefix("step-")) if found else 0


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights to the bit, and every step once in the log."""
    ours, theirs = (checkpoint.load(run / "model.safetensors").weights for run in (one, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    steps = [line["step"] for line in read_log(other / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 12))])
def test_a_run_that_is_killed_ten_times_ends_with_the_same_weights(long_run, nursery, tmp_path, seed):
    command, whole = long_run
    run = tmp_path / "killed"
    rng = np.random.default_rng(seed)
    for step in sorted(rng.choice(20, 10, replace=False).tolist()):
        child = nursery.start([*command, run, "--resume"])
        wait_until(lambda run=run, step=step: last_step(run) >= step, child)
        time.sleep(rng.uniform(0, 0.15))  # anywhere in a step, in its checkpoint, or at the start of the run
        assert child.poll() is None, child.told()
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    child = nursery.start([*command, run, "--resume"])
    assert child.wait() == 0, child.told()
    assert_same_run(whole, run)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint(long_run, nursery, tmp_path, number, status):
    command, whole = long_run
    run = tmp_path / "stopped"
    words = [*command, run, "--train.checkpoint_steps=0"]  # one after each epoch of four steps, but for the signal
    child = nursery.start(words)
    wait_until(lambda: len(read_log(run / "log.jsonl")) >= 5 if (run / "log.jsonl").exists() else False, child)
    child.kill(number)
    assert child.wait() == status, child.told()
    done = len(read_log(run / "log.jsonl"))
    assert f"stopped after step {done}; --resume" in child.told()
    assert "Traceback" not in child.told()
    assert last_step(run) == done
    child = nursery.start([*words, "--resume"])
    assert child.wait() == 0, child.told()
    assert_same_run(whole, run)


def test_a_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(long_run, nursery, tmp_path):
    command, whole = long_run
    run = tmp_path / "full"
    child = nursery.start([*command, run])
    wait_until(lambda: last_step(run) >= 2, child)
    child.kill(signal.SIGKILL)
    child.wait()
    before = last_step(run)
    child = nursery.start([*command, run, "--resume"], limits={"RLIMIT_FSIZE": 1_000_000})
    assert child.wait() == 1, child.told()
    assert "cannot write the checkpoint" in child.told()
    assert "Traceback" not in child.told()
    assert last_step(run) == before
    assert not list((run / "checkpoints").glob(".*"))
    child = nursery.start([*command, run, "--resume"])
    assert child.wait() == 0, child.told()
    assert_same_run(whole, run)


def test_a_folder_that_cannot_be_written_is_named_before_the_training(synthetic_root, nursery, tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings(synthetic_root).to_dict()))
    child = nursery.start(["train", tmp_path / "small.yaml", "--run", "/proc/run"])
    assert child.wait() == 1
    assert "/proc/run" in child.told()
    assert "Traceback" not in child.told()


def test_two_deterministic_runs_are_equal_to_the_bit(synthetic_root, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "build_criterion", lambda c: _watched(build_criterion(c), seen))
    config = settings(synthetic_root, train__deterministic=True, train__epochs=1, model__dropout=0.2)
    for name in ("one", "two"):
        train(config, tmp_path / name, quiet=True)
    assert seen == [True] * 8
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def _watched(criterion, seen):
    def watched(*arguments):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return criterion(*arguments)

    return watched


def test_resume_passes_over_a_damaged_checkpoint(finished, synthetic_root, tmp_path, capsys):
    run = tmp_path / "damaged"
    train(settings(synthetic_root, train__epochs=1), run, quiet=True)
    newest = checkpoint.training_checkpoints(run / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    train(settings(synthetic_root), run, resume=True)
    told = capsys.readouterr().out
    assert f"{newest}: not a complete safetensors file" in told
    assert "resuming after step 3, from " in told
    assert "settings that have changed: train.epochs from 1 to 2\n" in told
    assert read_log(run / "log.jsonl")[-1]["step"] == 8
    before = (run / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"train\.epochs 1: .*damaged has 2 behind it"):
        train(settings(synthetic_root, train__epochs=1), run, resume=True, quiet=True)
    assert (run / "config.yaml").read_text() == before
    train(settings(synthetic_root), run, resume=True)
    assert "nothing is left to learn; the final weights are evaluated" in capsys.readouterr().out


def test_a_resumed_run_asks_no_more_for_the_weights_that_it_began_with(synthetic_root, tmp_path):
    weights, run = tmp_path / "backbone.safetensors", tmp_path / "run"
    save_file(build_backbone(settings(synthetic_root).model.backbone).state_dict(), weights)
    train(settings(synthetic_root, train__epochs=1, model__backbone__weights=str(weights)), run, quiet=True)
    weights.unlink()
    train(settings(synthetic_root, model__backbone__weights=str(weights)), run, resume=True, quiet=True)
    assert read_log(run / "log.jsonl")[-1]["step"] == 8


def test_a_checkpoint_of_another_model_is_refused(finished, synthetic_root, tmp_path):
    run = tmp_path / "other"
    (run / "checkpoints").mkdir(parents=True)
    old = checkpoint.training_checkpoints(finished[0] / "checkpoints")[-1]
    (run / "checkpoints" / old.name).write_bytes(old.read_bytes())
    message = r"another model:(\n.*)+\nsettings that have changed: model\.num_queries from \d+ to 13"
    with pytest.raises(CheckpointError, match=message):
        train(settings(synthetic_root, model__num_queries=13), run, resume=True, quiet=True)


def test_frames_without_objects_train(synthetic_copy, edit_table, tmp_path):
    edit_table(synthetic_copy, "sample_annotation", lambda records: records.clear())
    edit_table(synthetic_copy, "instance", lambda records: records.clear())
    metrics = train(settings(synthetic_copy, train__epochs=1), tmp_path / "run", quiet=True)
    assert metrics.summary()["mAP"] == 0
    assert all(line["losses"]["loss_box"] == 0 for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line)


def test_a_training_split_without_annotations_is_told(synthetic_copy, tmp_path):
    (synthetic_copy / "v1.0-mini").rename(synthetic_copy / "v1.0-test")
    with pytest.raises(ValueError, match=r"data\.train_split 'mini_train': .*v1\.0-test has no annotations to tr"):
        train(settings(synthetic_copy, data__version="v1.0-test"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_broken_image_stops_the_run_or_is_skipped_and_counted(synthetic_copy, tmp_path, capsys):
    from bevdet_core.data import build_dataset

    dataset = build_dataset(settings(synthetic_copy).data, training=True)
    broken = synthetic_copy / dataset.index.camera_file(dataset.rows[1], "CAM_BACK")
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=broken.name):
        train(settings(synthetic_copy, train__epochs=1), tmp_path / "strict", quiet=True)
    capsys.readouterr()
    train(settings(synthetic_copy, train__epochs=1, data__on_error="skip"), tmp_path / "lenient")
    told = " ".join(capsys.readouterr().out.split())
    assert "skipped 1 broken sample" in told
    assert len([line for line in read_log(tmp_path / "lenient" / "log.jsonl") if "loss" in line]) == 4


def test_a_loss_that_is_not_finite_names_the_sample_and_keeps_the_checkpoint(synthetic_root, tmp_path):
    config = settings(synthetic_root, train__lr=1e9, train__clip_norm=0.0, train__warmup_steps=0)
    with pytest.raises(LossError, match="layer") as error:
        train(config, tmp_path / "run", quiet=True)
    from bevdet_core.data import build_dataset

    assert any(token in str(error.value) for token in build_dataset(config.data, training=True).tokens)
    for path in checkpoint.training_checkpoints(tmp_path / "run" / "checkpoints"):
        checkpoint.load(path, training=True)


def test_training_starts_from_another_detector(finished, synthetic_root, tmp_path, capsys):
    run, _ = finished
    train(settings(synthetic_root, train__load_from=str(run), train__lr=0.0, train__ema=0.0), tmp_path / "tuned")
    assert f"starts from {run / 'model.safetensors'}" in " ".join(capsys.readouterr().out.split())
    before, after = (checkpoint.load(folder / "model.safetensors").weights for folder in (run, tmp_path / "tuned"))
    for name, tensor in before.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(tensor, after[name]), name


def test_learning_rates():
    cosine = TrainConfig(lr=1.0, warmup_steps=10, epochs=10)
    assert learning_rate(cosine, 0, 100) == pytest.approx(1 / 3, rel=1e-3)
    assert learning_rate(cosine, 10, 100) == pytest.approx(1.0, rel=1e-3)
    assert learning_rate(cosine, 500, 100) == pytest.approx(0.5, abs=5e-3)
    assert learning_rate(cosine, 999, 100) == pytest.approx(1e-3)
    steps = TrainConfig(lr=1.0, warmup_steps=0, schedule="step", milestones=(2, 3), epochs=4)
    assert [learning_rate(steps, 100 * epoch, 100) for epoch in range(4)] == pytest.approx([1, 1, 0.1, 0.01])
