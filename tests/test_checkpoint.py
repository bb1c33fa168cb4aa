"""Checkpoints: complete or absent, never half; clear words about what does not fit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bevdet_core import checkpoint
from bevdet_core.checkpoint import Checkpoint, CheckpointError


def example(step: int = 3) -> Checkpoint:
    weights = nn.Linear(3, 2).state_dict()
    return Checkpoint(weights, {"model": {"name": "x"}}, ("car", "bus"), {"a/b": torch.ones(2)}, {"step": step})


def test_round_trip(tmp_path):
    saved = example()
    checkpoint.save(tmp_path / "a.safetensors", saved)
    back = checkpoint.load(tmp_path / "a.safetensors", training=True)
    assert (back.config, back.class_names, back.progress) == (saved.config, saved.class_names, saved.progress)
    assert set(back.weights) == {"weight", "bias"}
    assert torch.equal(back.weights["weight"], saved.weights["weight"])
    assert torch.equal(back.training["a/b"], torch.ones(2))
    assert checkpoint.load(tmp_path / "a.safetensors").training == {}


def test_tied_weights_are_stored(tmp_path):
    tied = torch.arange(4.0)
    checkpoint.save(tmp_path / "a.safetensors", Checkpoint({"x": tied, "y": tied}, {}, ("car",)))
    back = checkpoint.load(tmp_path / "a.safetensors").weights
    assert torch.equal(back["x"], tied)
    assert torch.equal(back["y"], tied)


def test_truncated_missing_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no such"):
        checkpoint.load(path)
    checkpoint.save(path, example())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: not a complete"):
        checkpoint.load(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="holds no bevdet settings"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"format": 1', "damaged metadata: "),
        ("[]", r"damaged metadata: checkpoint format \[\]; this version reads 1"),
        ('{"format": 2}', "checkpoint format 2; this version reads 1"),
        ('{"format": 1, "config": 3}', "no config, or of the wrong kind: 3"),
        ('{"format": 1, "config": {}, "class_names": ["car"]}', "no progress, or of the wrong kind: None"),
        ('{"format": 1, "config": {}, "class_names": [], "progress": {}}', r"one or more texts, got \[\]"),
        ('{"format": 1, "config": {}, "class_names": ["car", 3], "progress": {}}', r"texts, got \['car', 3\]"),
    ],
)
def test_what_is_wrong_with_the_settings_in_a_file_is_named(tmp_path, metadata, message):
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors", {checkpoint.KEY: metadata})
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: .*{message}"):
        checkpoint.load(tmp_path / "a.safetensors")


def test_weights_of_another_model_are_refused_by_name():
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    weights = {"weight": torch.zeros(4, 3), "scale": torch.ones(1)}
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_weights(model, weights, "other.safetensors")
    for words in ("other.safetensors", "bias: missing", "scale: not in this model", "(4, 3)", "(2, 3)"):
        assert words in str(error.value)
    assert torch.equal(model.weight, before)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, example(step=1))
    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoint.save(tmp_path / "a.safetensors" / "b.safetensors", example(step=2))
    assert checkpoint.load(path).progress == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_rotation_keeps_the_newest(tmp_path):
    for step in (1, 2, 10):
        checkpoint.save(checkpoint.step_path(tmp_path, step), example(step))
    (tmp_path / ".step-00000011.safetensors.123.part").write_bytes(b"half")
    checkpoint.rotate(tmp_path, keep=2)
    assert [checkpoint.load(p).progress["step"] for p in checkpoint.training_checkpoints(tmp_path)] == [2, 10]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_while_writing_leaves_only_complete_checkpoints(tmp_path):
    program = (
        "import torch, sys; from pathlib import Path; from bevdet_core import checkpoint as c\n"
        "for step in range(100000):\n"
        "    c.save(c.step_path(Path(sys.argv[1]), step % 3), c.Checkpoint({'x': torch.full((300000,), float(step))},\n"
        "           {}, ('car',), {}, {'step': step}))\n"
        "    print(step, flush=True)\n"
    )
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4):
            process.stdout.readline()
        time.sleep(0.003 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = checkpoint.training_checkpoints(tmp_path)
        assert found
        for path in found:
            saved = checkpoint.load(path)
            assert (saved.weights["x"] == saved.progress["step"]).all()
