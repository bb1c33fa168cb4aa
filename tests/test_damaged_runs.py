"""A run that is resumed from damaged files goes on, or ends in an error that names them; see test_damaged_files.py."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import torch
from damage import damaged_bytes, damaged_json, damaged_safetensors, damaged_tensors, damaged_tree, every_seed, outcome
from test_training_state import training

from bevdet_core import checkpoint
from bevdet_core.models.bev_memory import BevMemory, SeenFrame
from bevdet_core.models.ego_motion import FramePose, motion_between
from bevdet_core.runlog import RunLog
from bevdet_core.training_state import TrainingState


def learning() -> TrainingState:
    """A training with all that one can have: an average, a scaler, and frames that it has seen."""
    state = training(ema=True)
    state.scaler, state.memory = torch.amp.GradScaler("cpu"), BevMemory(max_gap=1.0, strict=False)
    state.memory.keep("lane", SeenFrame(FramePose("one", np.eye(4), timestamp=1.0), torch.ones(6, 2)))
    return state


@every_seed
def test_resumed_trainings(seeds, check, tmp_path):
    learning().save(tmp_path)
    (path,) = checkpoint.training_checkpoints(tmp_path)
    whole = path.read_bytes()
    saved = copy.deepcopy(checkpoint.load(path, training=True))  # what was loaded lies in the file that is damaged

    def use():
        state = learning()
        state.restore(tmp_path)
        loss = state.scaler.scale(state.model(torch.ones(1, 3)).sum())
        loss.backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average.update_parameters(state.model)
        for lane in ("lane", "other"):
            for seen in state.memory.recall(lane, FramePose("two", np.eye(4), timestamp=1.5)):
                assert seen is None or motion_between(FramePose("two", np.eye(4), timestamp=1.5), seen.pose)

    for seed in seeds:
        rng = np.random.default_rng([10, seed])
        kind = rng.integers(4)
        if kind == 0:
            path.write_bytes(damaged_safetensors(whole, rng))
        elif kind == 1:
            checkpoint.save(path, replace(saved, progress=damaged_tree(saved.progress, rng)))
        elif kind == 2:
            checkpoint.save(path, replace(saved, training=damaged_tensors(saved.training, rng)))
        else:
            names = damaged_json(json.loads(bytes(saved.training["memory/names/0"].tolist())), rng)
            text = torch.frombuffer(bytearray(names or b" "), dtype=torch.uint8)
            checkpoint.save(path, replace(saved, training=saved.training | {"memory/names/0": text}))
        check(seed, outcome(use), path.name)


@every_seed
def test_logs_of_resumed_runs(seeds, check, tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(tmp_path, total_steps=4, quiet=True) as log:
        for step in range(1, 4):
            log.training(step, 0.1 * step, {"total": 2.0, "loss_box": 1.0}, 1e-3, 0.5)
        log.evaluation(3, 1.0, {"mAP": 0.5})
    whole = path.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    for seed in seeds:
        rng = np.random.default_rng([13, seed])
        if seed % 2:
            path.write_bytes(damaged_bytes(whole, rng))
        else:
            path.write_text("".join(json.dumps(line) + "\n" for line in damaged_tree(lines, rng)))

        def use():
            with RunLog(tmp_path, total_steps=4, start_step=2, quiet=True) as log:
                log.training(3, 0.3, {"total": 2.0, "loss_box": 1.0}, 1e-3, 0.5)

        check(seed, outcome(use), path.name)
