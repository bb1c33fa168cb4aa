"""Weights of others: what is no weights file is told in words of this library, and never executed."""

from __future__ import annotations

import zipfile
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from bevdet_core.checkpoint import CheckpointError
from bevdet_core.weights import read_weights

WEIGHTS = {"conv1.weight": torch.ones(4, 3), "conv1.bias": torch.zeros(4)}


def message(path: Path) -> str:
    """What is said about a file, which is its name and nothing of what PyTorch advises."""
    with pytest.raises(CheckpointError) as error:
        read_weights(path)
    told = str(error.value)
    assert told.startswith(f"{path}: ")
    assert "weights_only" not in told
    assert "torch." not in told
    assert len(told) < 300 + len(str(path))
    return told


@pytest.mark.parametrize("zipped", [True, False])
def test_python_objects_beside_the_weights_are_named(zipped, tmp_path: Path):
    path = tmp_path / "objects.pth"
    torch.save({"model": WEIGHTS, "best": Fraction(1, 3)}, path, _use_new_zipfile_serialization=zipped)
    told = message(path)
    assert "holds Python objects other than weights, such as 'fractions.Fraction', which are never executed" in told
    assert "what is needed is the state dict alone" in told


def cut(path: Path) -> None:
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:700])


def scripted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"archive/{name}", "3\n")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cut.pth", cut),
        ("empty.pth", lambda path: path.write_bytes(b"")),
        ("graph.onnx", lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" * 9)),
        ("scripted.pt", scripted),
        ("page.pth", lambda path: path.write_text("<!DOCTYPE html><html>404: not found</html>")),
    ],
)
def test_what_is_damaged_or_something_else_is_told(name: str, write, tmp_path: Path):
    write(tmp_path / name)
    assert "damaged, or no weights: these are read from PyTorch files (.pth, .pt, .bin) and" in message(tmp_path / name)


@pytest.mark.parametrize("content", [{"net": WEIGHTS}, torch.ones(3), {0: torch.ones(3)}, {"model": {"lr": 0.1}}])
def test_where_a_state_dict_is_looked_for_is_told(content, tmp_path: Path):
    torch.save(content, tmp_path / "other.pth")
    told = "holds no state dict (a dict of tensors), neither bare nor under state_dict, model, model_state_dict"
    assert told in message(tmp_path / "other.pth")


def test_a_folder_is_no_weights_file(tmp_path: Path):
    assert "a folder, not a weights file" in message(tmp_path)
