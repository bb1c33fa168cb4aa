"""Frames in time through the public doors: data sets, training, evaluation, streams, official files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bevdet_core import Detector, checkpoint
from bevdet_core.cli import main
from bevdet_core.config import Config, Queue, load_config
from bevdet_core.convert.release import to_release, write_release
from bevdet_core.data import build_dataset
from bevdet_core.data.loader import build_loader
from bevdet_core.data.rig import write_frame
from bevdet_core.engine import train
from bevdet_core.evaluation import evaluate
from bevdet_core.models import build_model

SMALL = {
    "model": {
        "name": "bevformer",
        "backbone": {"depth": 18, "width": 8, "norm": "batch", "frozen_stages": 0, "out_stages": [3, 4]},
        "num_levels": 2,
        "embed_dim": 16,
        "bev_shape": [6, 6],
        "num_queries": 12,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "num_heads": 2,
        "ffn_dim": 16,
        "queue_length": 3,
        "perspective": True,
    },
    "data": {
        "name": "nuscenes",
        "version": "v1.0-mini",
        "train_split": "mini_train",
        "val_split": "mini_train,mini_val",
        "input_size": [48, 80],
        "augment": {"mirror": 0.5, "rotation": 0.3, "scale": [0.9, 1.1], "photometric": 0.5},
    },
    "train": {"epochs": 1, "workers": 0, "batch_size": 2},
}


@pytest.fixture
def config(synthetic_root: Path) -> Config:
    scenes = ",".join(entry["name"] for entry in json.loads((synthetic_root / "v1.0-mini" / "scene.json").read_text()))
    return load_config(SMALL, {"data.root": str(synthetic_root), "data.val_split": scenes})


@pytest.fixture
def detector(config: Config) -> Detector:
    torch.manual_seed(0)
    model = build_model(config.model, 10)
    for parameter in model.head.parameters():  # nothing stays at zero, so that history counts
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return Detector(model.eval(), config, config.data.classes)


def test_samples_of_a_queue_come_from_their_scene_in_the_order_of_time(config: Config):
    dataset = build_dataset(config.data, training=True, queue=Queue(3))
    lengths = set()
    for seed in range(12):
        sample = dataset.transform(dataset[seed % 4], np.random.default_rng(seed))
        frames = [*sample.history, sample]
        assert len({frame.scene for frame in frames}) == 1
        assert all(a.timestamp < b.timestamp for a, b in pairwise(frames))
        assert all(frame.targets is None for frame in sample.history)
        lengths.add((seed % 4, len(frames)))
    assert max(count for _, count in lengths) == 3  # two earlier frames of three, where the scene has them
    assert {count for place, count in lengths if place == 0} == {1}


def test_a_queue_without_gaps(config: Config):
    dataset = build_dataset(config.data, training=True, queue=Queue(3, drop=False))
    for seed in range(6):
        sample = dataset.transform(dataset[3], np.random.default_rng(seed))
        assert [frame.token for frame in sample.history] == [dataset.tokens[1], dataset.tokens[2]]


def test_a_queue_whose_frames_are_all_learned_from(config: Config, detector: Detector):
    """They are frames of the batch, with their objects, and each sees those before it as its history."""
    config = replace(
        config, data=replace(config.data, augment=replace(config.data.augment, photometric=0.0, grid_mask=0.0))
    )
    loaders = [
        build_loader(
            build_dataset(config.data, training=True, queue=Queue(3, drop=False, learn=learn)),
            config.model.pixels,
            batch_size=2,
            training=True,
        )
        for learn in ("last", "all")
    ]
    histories = 0
    for (last, last_targets), (every, every_targets) in zip(*loaders, strict=True):
        assert every.history is None
        assert len(every_targets) == len(every.images) == len(every.owners)
        ends = [list(every.owners).index(owner + 1) - 1 if owner + 1 in every.owners else -1 for owner in (0, 1)]
        assert [every.tokens[end] for end in ends] == list(last.tokens)
        for end, targets in zip(ends, last_targets, strict=True):
            assert torch.equal(every_targets[end].boxes, targets.boxes)
        with torch.no_grad():
            one, other = detector.model(last), detector.model(every)
        torch.testing.assert_close(other.boxes[:, ends], one.boxes, atol=1e-4, rtol=1e-4)
        histories += len(every.images) - 2
    assert histories


def test_what_changes_the_scene_is_the_same_in_all_frames_of_a_queue(config: Config):
    """A point of the world stays one point: the poses of all frames are changed alike."""
    dataset = build_dataset(config.data, training=True, queue=Queue(4))
    changes = []
    for seed in range(6):
        sample = dataset.transform(dataset[3], np.random.default_rng(seed))
        originals = {dataset[k].token: dataset[k].lidar2global for k in range(4)}
        per_frame = [np.linalg.inv(f.lidar2global) @ originals[f.token] for f in [*sample.history, sample]]
        assert len(per_frame) >= 3
        for change in per_frame[1:]:
            np.testing.assert_allclose(change, per_frame[0], atol=1e-6)
        changes.append(np.linalg.det(per_frame[0][:3, :3]))
    assert min(changes) < 0 < max(changes)  # some mirrored, some not


def test_queues_do_not_depend_on_the_number_of_workers(config: Config):
    dataset = build_dataset(config.data, training=True, queue=Queue(3))
    loaders = [build_loader(dataset, config.model.pixels, 2, workers, training=True) for workers in (0, 2)]
    for (one, _), (other, _) in zip(*loaders, strict=True):
        assert one.history.tokens == other.history.tokens
        assert one.history.owners == other.history.owners
        assert torch.equal(one.history.images, other.history.images)


def test_training_and_evaluation_run_with_history(config: Config, tmp_path: Path):
    config = replace(config, data=replace(config.data, val_split="mini_val"))
    metrics = train(config, tmp_path / "run", quiet=True)
    assert np.isfinite(metrics.summary()["NDS"])
    assert Detector.load(tmp_path / "run").new_memory() is not None


def test_a_stream_that_is_taken_up_goes_on_with_what_it_had_seen(config: Config, tmp_path: Path):
    """From every step; scenes are under way at each but the first."""
    model = replace(config.model, queue_learn="stream", temporal="convolution", history_steps=(1, 2))
    settings = replace(config.train, batch_size=1, checkpoint_steps=1, keep_checkpoints=100, ema=0.9)
    data = replace(config.data, train_split=config.data.val_split, val_split="mini_val")
    config = replace(config, model=model, train=settings, data=data)
    train(config, tmp_path / "whole", quiet=True)
    final = checkpoint.load(tmp_path / "whole" / "model.safetensors").weights
    saved = checkpoint.training_checkpoints(tmp_path / "whole" / "checkpoints")
    assert len(saved) >= 4
    kept = [[n for n in checkpoint.load(path, training=True).training if n.endswith("/bev/0")] for path in saved]
    assert [len(names) for names in kept[:3]] == [1, 2, 3]
    for path in saved[:-1]:
        run = tmp_path / path.stem
        (run / "checkpoints").mkdir(parents=True)
        shutil.copy(path, run / "checkpoints")
        train(config, run, resume=True, quiet=True)
        for name, tensor in checkpoint.load(run / "model.safetensors").weights.items():
            assert torch.equal(tensor, final[name]), (path.name, name)


def test_results_depend_on_history_but_not_on_batches_and_workers(detector: Detector, tmp_path: Path):
    dataset = build_dataset(detector.config.data, training=False)

    def results(name: str, batch_size: int, workers: int) -> dict:
        evaluate(detector, dataset, tmp_path / name, batch_size, workers, quiet=True)
        return json.loads((tmp_path / name / "submission.json").read_text())["results"]

    def scores(found: dict, token: str) -> np.ndarray:
        return np.array([box["detection_score"] for box in found[token]])

    one = results("one", 1, 0)
    for batch_size, workers in ((3, 0), (8, 2)):
        other = results(f"{batch_size}", batch_size, workers)
        for token in dataset.tokens:
            np.testing.assert_allclose(scores(other, token), scores(one, token), atol=1e-4)
    stream = detector.stream()
    for position, token in enumerate(dataset.tokens):
        sample = dataset[position]
        seen = stream.predict(sample).scores.numpy()
        np.testing.assert_allclose(seen, scores(one, token), atol=1e-4)
        alone = detector.predict(sample).scores.numpy()
        begins = position == 0 or dataset[position - 1].scene != sample.scene
        assert np.allclose(alone, seen, atol=1e-4) == begins


def test_a_stream_of_frame_files(detector: Detector, tmp_path: Path):
    dataset = build_dataset(detector.config.data, training=False)
    files = []
    for position in range(3):
        write_frame(dataset[position], tmp_path / f"{position}.json")
        files.append(tmp_path / f"{position}.json")
    stream = detector.stream()
    found = [stream.predict(file) for file in files]
    assert [f.sample.token for f in found] == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"frame '1' .* does not come after frame '2'"):
        stream.predict(files[1])
    with pytest.raises(ValueError, match=r"frame '2' .* does not come after frame '2'"):
        stream.predict(files[2])
    # What was refused left no trace, and a new beginning forgets everything.
    again = detector.stream()
    again.predict(files[0])
    skipped = again.predict(files[2])
    assert not torch.allclose(skipped.scores, found[2].scores, atol=1e-5)
    again.reset()
    torch.testing.assert_close(again.predict(files[0]).scores, found[0].scores)


def test_a_stream_lives_through_a_changed_rig_and_lost_cameras(detector: Detector):
    dataset = build_dataset(detector.config.data, training=False)
    first, second, third, fourth = (dataset[position] for position in range(4))
    stream = detector.stream()
    stream.predict(first)
    fewer = second.replace(images=second.images[:4], cameras=second.cameras[:4])
    blind = third.replace(cameras=[replace(camera, hidden=True) for camera in third.cameras])
    larger = fourth.replace(images=[np.repeat(image, 2, 1) for image in fourth.images])
    for frame in (fewer, blind, larger):
        assert stream.predict(frame).boxes.isfinite().all()
    own = [replace(camera, name=f"camera {number}") for number, camera in enumerate(first.cameras * 2)]
    with pytest.raises(ValueError, match="reads up to 6 cameras"):
        stream.predict(first.replace(scene="other", images=first.images * 2, cameras=own))


def test_official_files_become_detectors_and_files_again(config: Config, tmp_path: Path, capsys):
    settings = config.to_dict()
    settings["model"]["perspective"] = False
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    torch.manual_seed(0)
    saved = checkpoint.Checkpoint(
        build_model(load_config(settings).model, 10).state_dict(), settings, config.data.classes
    )
    official, ours, back = tmp_path / "official.pth", tmp_path / "ours.safetensors", tmp_path / "back.pth"
    write_release(to_release(saved, "bevformer"), "bevformer", official)
    arguments = ["convert", str(official), "--from", "bevformer", "--out", str(ours)]
    assert main(arguments) == 1
    assert "bevformer files do not tell their settings" in capsys.readouterr().err
    assert main([*arguments, "--config", str(tmp_path / "small.yaml")]) == 0
    detector = Detector.load(ours)
    assert detector.config.model.release_quirks
    for name, tensor in detector.model.state_dict().items():
        assert torch.equal(tensor, saved.weights[name]), name
    assert main(["convert", str(ours), "--to", "bevformer", "--out", str(back)]) == 0
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (official, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
