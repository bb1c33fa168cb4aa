"""What a training puts into its checkpoints comes back, or it is told what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bevdet_core import checkpoint, processes
from bevdet_core.checkpoint import Checkpoint, CheckpointError
from bevdet_core.config import Config, TrainConfig
from bevdet_core.training_state import TrainingState


def training(ema: bool = False) -> TrainingState:
    """A training of a few numbers, after four steps."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average = AveragedModel(model) if ema else None
    config = Config(train=TrainConfig(ema=0.9 if ema else 0.0))
    return TrainingState(model, average, optimizer, None, config, ("car",), steps_per_epoch=10, step=4)


def test_a_training_comes_back(tmp_path: Path):
    training(ema=True).save(tmp_path)
    state = training(ema=True)
    state.step = 0
    with torch.no_grad():
        state.model.weight.zero_()
    state.restore(tmp_path)
    assert state.step == 4
    assert torch.equal(state.model.weight, training().model.weight)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.training.update({"optimizer/9/step": torch.ones(1)}), "optimizer/9/step: no state of .* 0 to 1"),
        (lambda c: c.training.update({"optimizer/x/step": torch.ones(1)}), "optimizer/x/step: no state of this"),
        (
            lambda c: c.training.update({"optimizer/0/exp_avg": torch.ones(5)}),
            r"optimizer/0/exp_avg: of shape \(5,\), must be of \(2, 3\)",
        ),
        (lambda c: c.training.pop("generator/0"), "damaged training state: no entry 'generator/0'"),
        (lambda c: c.training.update({"optimizer/0/step": torch.ones(2, 3)}), r"optimizer/0/step: of shape \(2, 3\)"),
        (lambda c: c.training.pop("optimizer/1/exp_avg"), "optimizer/1: no exp_avg"),
        (lambda c: c.training.update({"generator/0": torch.zeros(5, dtype=torch.uint8)}), "damaged training state: "),
        (lambda c: c.progress.update(step=-1), "damaged training state: step -1"),
        (lambda c: c.progress.update(step="four"), "damaged training state: step 'four'"),
        (lambda c: c.progress.update(batch_size=3, accumulate=2), "batch_size from 3 to 1, accumulate from 2 to 1"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_named(tmp_path: Path, edit: Callable[[Checkpoint], object], message: str):
    state = training()
    state.save(tmp_path)
    (path,) = checkpoint.training_checkpoints(tmp_path)
    saved = checkpoint.load(path, training=True)
    edit(saved)
    checkpoint.save(path, saved)
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*{message}"):
        state.restore(tmp_path)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (True, r"began with train\.ema, but train\.ema is 0\.0 now: set it as in the run's config\.yaml"),
        (False, r"began without train\.ema, but train\.ema is 0\.9 now: set it to 0"),
    ],
)
def test_a_training_keeps_its_average_or_its_lack_of_one(tmp_path: Path, before: bool, message: str):
    training(ema=before).save(tmp_path)
    with pytest.raises(CheckpointError, match=rf"step-00000004\.safetensors: this training {message}"):
        training(ema=not before).restore(tmp_path)


def test_where_no_checkpoint_can_be_read_all_are_named(tmp_path: Path):
    for step in (4, 8):
        checkpoint.step_path(tmp_path, step).write_bytes(b"half")
    message = r"none of the 2 checkpoints can be read:\n .*-00000008\.safetensors: not a complete.*\n .*-00000004\."
    with pytest.raises(CheckpointError, match=message):
        training().restore(tmp_path)


def test_a_resumed_training_says_where_it_goes_on_and_what_has_changed(tmp_path: Path):
    assert training().restore(tmp_path) == [f"no checkpoint in {tmp_path}: starting anew"]
    training().save(tmp_path)
    checkpoint.step_path(tmp_path, 8).write_bytes(b"half")
    other = training()
    train = replace(other.config.train, lr=0.5)
    other.config = replace(other.config, train=train)
    damaged, *told = other.restore(tmp_path)
    assert damaged.endswith("; trying the one before")
    assert told == [
        f"resuming after step 4, from {checkpoint.step_path(tmp_path, 4)}",
        "settings that have changed: train.lr from 0.0002 to 0.5",
    ]


def test_processes_that_see_different_folders_are_told(tmp_path: Path, monkeypatch):
    training().save(tmp_path)
    monkeypatch.setattr(processes, "gather", lambda step: [step, 0])  # another process found nothing
    with pytest.raises(CheckpointError, match=r"checkpoints of different steps, \[4, 0\]; the run folder must be the"):
        training().restore(tmp_path)
