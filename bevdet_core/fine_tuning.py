"""What a training starts from: weights of its backbone, or those of another detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoint
from .checkpoint import CheckpointError
from .config import Config, ConfigError, ModelConfig
from .models import build_model


@dataclass
class Start:
    """What a model took over."""

    origin: Path
    taken: int  # tensors
    kept_classes: tuple[str, ...]  # classes that both detectors have
    anew: tuple[str, ...]  # tensors that start as they were drawn

    def __str__(self) -> str:
        text = f"starts from {self.origin}: {self.taken} tensors, {len(self.kept_classes)} classes of the same name"
        if self.anew:
            more = f" and {len(self.anew) - 5} more" if len(self.anew) > 5 else ""
            text += f"; anew: {', '.join(self.anew[:5])}{more}"
        return text


def require_start(config: Config) -> None:
    """Check that a training does not keep backbone weights that nothing but chance has made.

    Raises:
        ConfigError: it would: the backbone is frozen, in whole or in part, and starts from random weights.
    """
    backbone = config.model.backbone
    frozen = [f"model.backbone.norm {backbone.norm}"] if backbone.norm != "batch" else []
    frozen += [f"model.backbone.frozen_stages {backbone.frozen_stages}"] if backbone.frozen_stages else []
    if frozen and backbone.weights is None and config.train.load_from is None:
        raise ConfigError(
            f"{' and '.join(frozen)} would keep random weights as they are: name weights to start from with "
            "--model.backbone.weights FILE or --train.load_from RUN, or train all of it with --model.backbone.norm "
            "batch --model.backbone.frozen_stages 0"
        )


def load_start(model: nn.Module, config: ModelConfig, class_names: Sequence[str], source: str | Path) -> Start:
    """Load the weights of another detector into a model as far as they fit.

    A tensor is taken where it has the same name and shape. Of one that has a row for each class, the rows of classes
    with the same name are, whatever their order; others stay as they were drawn.

    Args:
        model: as `build_model` made it.
        config: that it was made from.
        class_names: of the model.
        source: run folder or .safetensors file.

    Raises:
        CheckpointError: the file cannot be read, or nothing in it fits.
    """
    path = checkpoint.weights_of(Path(source))
    saved = checkpoint.load(path)
    axes = class_axes(config, len(class_names))
    own = model.state_dict()
    shared = [name for name in class_names if name in saved.class_names]
    anew = []
    for name, tensor in own.items():
        given = saved.weights.get(name)
        if given is None or given.is_floating_point() != tensor.is_floating_point():
            anew.append(name)
        elif name in axes:
            if not _take_classes(tensor, given, axes[name], class_names, saved.class_names):
                anew.append(name)
        elif given.shape == tensor.shape:
            tensor.copy_(given)
        else:
            anew.append(name)
    if not any(name not in anew for name, _ in model.named_parameters()):
        raise CheckpointError(f"{path}: none of its weights fits this model")
    return Start(path, len(own) - len(anew), tuple(shared), tuple(anew))


def class_axes(config: ModelConfig, num_classes: int) -> dict[str, int]:
    """The axis along which a tensor of a model counts classes, for those that do."""
    with torch.device("meta"):
        one, other = (
            build_model(config, count, pretrained=False).state_dict() for count in (num_classes, num_classes + 1)
        )
    axes: dict[str, int] = {}
    for name, tensor in one.items():
        differs = [a != b for a, b in zip(tensor.shape, other[name].shape, strict=True)]
        if any(differs):
            axes[name] = differs.index(True)
    return axes


def _take_classes(
    tensor: Tensor, given: Tensor, axis: int, class_names: Sequence[str], given_names: Sequence[str]
) -> bool:
    """Copy the rows of classes that both have, and those beyond all classes; whether anything fits."""
    tensor, given = tensor.movedim(axis, 0), given.movedim(axis, 0) if given.ndim > axis else given
    beyond = len(tensor) - len(class_names)  # such as the row of "no object"
    if given.shape[1:] != tensor.shape[1:] or len(given) - len(given_names) != beyond:
        return False
    pairs = [(i, given_names.index(name)) for i, name in enumerate(class_names) if name in given_names]
    pairs += [(len(class_names) + i, len(given_names) + i) for i in range(beyond)]
    for to, source in pairs:
        tensor[to] = given[source]
    return bool(pairs)
