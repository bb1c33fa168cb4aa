"""Checkpoints: one safetensors file with the weights, the settings and, while training, all that a resumed run needs.

The weights stand under their own names, so every checkpoint is also a weights file. What only training needs stands
under `train/`. The file's metadata hold one JSON document. No pickle is ever written or read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .documents import DocumentError, is_text, listed, parse_json, shown
from .files import PART, written_aside

FORMAT = 1
TRAIN = "train/"
KEY = "bevdet_core"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, is incomplete, or belongs to another model."""


@dataclass
class Checkpoint:
    """What a checkpoint file holds."""

    weights: dict[str, Tensor]
    config: dict[str, Any]  # see config.Config.to_dict
    class_names: tuple[str, ...]
    training: dict[str, Tensor] = field(default_factory=dict)  # optimiser, generators, unaveraged weights
    progress: dict[str, Any] = field(default_factory=dict)  # JSON values: step, epoch, ...


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that at any moment `path` holds either the old one or the new one, complete.

    Raises:
        CheckpointError: the folder cannot be written or the disk is full; what was at `path` is untouched.
    """
    path = Path(path)
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.weights.items()}
    tensors |= {TRAIN + name: t.detach().cpu().contiguous() for name, t in checkpoint.training.items()}
    document = {
        "format": FORMAT,
        "config": checkpoint.config,
        "class_names": list(checkpoint.class_names),
        "progress": checkpoint.progress,
    }
    try:
        with written_aside(path) as aside:
            save_file(_without_shared_memory(tensors), aside, metadata={KEY: json.dumps(document)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error}") from error


def load(path: str | Path, training: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: the file.
        training: read also what only a resumed training needs.

    Raises:
        CheckpointError: the file is missing, truncated, or not one of this library.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such run folder or checkpoint file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise CheckpointError(
                    f"{path}: holds no bevdet settings; weights of other projects are taken in with "
                    "'bevdet convert --from', those of a backbone with model.backbone.weights"
                )
            names = [name for name in file.keys() if training or not name.startswith(TRAIN)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
        document = _checked(parse_json(metadata[KEY]))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file: {error}") from error
    except DocumentError as error:
        raise CheckpointError(f"{path}: damaged metadata: {error}") from error
    return Checkpoint(
        {name: t for name, t in tensors.items() if not name.startswith(TRAIN)},
        document["config"],
        tuple(document["class_names"]),
        {name.removeprefix(TRAIN): t for name, t in tensors.items() if name.startswith(TRAIN)},
        document["progress"],
    )


def _checked(document: Any) -> dict[str, Any]:
    """The metadata document, if it has all its parts; raises `DocumentError` otherwise."""
    parts = {"config": dict, "class_names": list, "progress": dict}
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else document
        raise DocumentError(f"checkpoint format {shown(found)}; this version reads {FORMAT}")
    for name, kind in parts.items():
        if not isinstance(document.get(name), kind):
            raise DocumentError(f"no {name}, or of the wrong kind: {shown(document.get(name))}")
    if not document["class_names"] or not all(map(is_text, document["class_names"])):
        raise DocumentError(f"class names must be one or more texts, got {shown(document['class_names'])}")
    return document


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load a complete state dict into a model.

    Raises:
        CheckpointError: names or shapes that do not fit, each by name (the first few).
    """
    own = model.state_dict()
    problems = [f"{name}: missing" for name in own if name not in weights]
    problems += [f"{name}: not in this model" for name in weights if name not in own]
    problems += [
        f"{name}: shape {tuple(weights[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems += [
        f"{name}: {weights[name].dtype}, the model has {own[name].dtype}"
        for name in own
        if name in weights and weights[name].is_floating_point() != own[name].is_floating_point()
    ]
    if problems:
        raise CheckpointError(f"{origin}: a checkpoint of another model:{listed(problems)}")
    model.load_state_dict(dict(weights))


def step_path(folder: Path, step: int) -> Path:
    """Where the training checkpoint of a step lies."""
    return folder / f"step-{step:08d}.safetensors"


def training_checkpoints(folder: Path) -> list[Path]:
    """The training checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d{8,}\.safetensors", p.name))


def weights_of(source: Path) -> Path:
    """The weights that a path means: itself; of a run folder the final ones, or else the newest checkpoint."""
    if not source.is_dir():
        return source
    if (source / "model.safetensors").is_file():
        return source / "model.safetensors"
    found = training_checkpoints(source / "checkpoints")
    if not found:
        raise CheckpointError(f"{source}: no model.safetensors and no checkpoint in this folder")
    return found[-1]


def rotate(folder: Path, keep: int) -> None:
    """Remove all training checkpoints but the newest `keep`, and what interrupted writes left behind."""
    for old in training_checkpoints(folder)[:-keep]:
        old.unlink()
    for part in folder.glob(f".*{PART}"):
        part.unlink()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as named tensors: `optimizer/<parameter index>/<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer/{index}/{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, training: Mapping[str, Tensor]) -> None:
    """Put what `optimizer_tensors` gave back into an optimiser over the same parameters.

    Raises:
        CheckpointError: a state of other parameters; the message does not name the file.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in training.items():
        if name.startswith("optimizer/"):
            match = re.fullmatch(r"optimizer/(\d{1,9})/(\w+)", name)
            if match is None or int(match[1]) >= len(parameters):
                raise CheckpointError(
                    f"{name}: no state of this optimiser, which has the parameters 0 to {len(parameters) - 1}"
                )
            shape = () if match[2] == "step" else tuple(parameters[int(match[1])].shape)
            if tuple(value.shape) != shape:
                raise CheckpointError(f"{name}: of shape {tuple(value.shape)}, must be of {shape}")
            state.setdefault(int(match[1]), {})[match[2]] = value
    for index, values in state.items():
        if missing := sorted({"step", "exp_avg", "exp_avg_sq"} - values.keys()):  # of AdamW
            raise CheckpointError(f"optimizer/{index}: no {', '.join(missing)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory with another one, which the file format does not allow."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        out[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return out
