"""Whole checkpoints: from a file of an official release to one of this library, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import checkpoint
from ..checkpoint import Checkpoint, CheckpointError
from ..config import (
    BevFormerConfig,
    CocoConfig,
    Config,
    ConfigError,
    DeformableDetrConfig,
    Detr3dConfig,
    DetrConfig,
    ModelConfig,
    load_config,
)
from ..models import build_model
from ..weights import read_weights
from . import hf_config, infer, load_official
from .bevformer import BEVFORMER
from .coco_names import COCO_91
from .deformable_detr import deformable_detr, hf_deformable_detr
from .detr import DETR, HF_DETR
from .detr3d import DETR3D
from .layout import Layout

BACKBONE = "torchvision-resnet"
# release -> (kind of detector, key under which its files hold the state dict)
RELEASES: dict[str, tuple[type, str | None]] = {
    "deformable-detr": (DeformableDetrConfig, "model"),
    "detr": (DetrConfig, "model"),
    "hf-deformable-detr": (DeformableDetrConfig, None),
    "hf-detr": (DetrConfig, None),
    "detr3d": (Detr3dConfig, "state_dict"),
    "bevformer": (BevFormerConfig, "state_dict"),
}
# What the weights of a release ask for, unless somebody says otherwise.
ASKED_FOR: dict[str, dict[str, Any]] = {"bevformer": {"model.release_quirks": True}}
# Modules that only training has, under which an official layout has no place.
TRAINING_ONLY = ("denoising.", "perspective.")


def layout_of(release: str, config: ModelConfig) -> Layout:
    """How a release stores a detector.

    Raises:
        ConfigError: the release has no such detector.
    """
    kind = RELEASES[release][0]
    if not isinstance(config, kind):
        raise ConfigError(f"{release} weights need a {kind.__name__}, the settings are a {type(config).__name__}")
    if release in ("deformable-detr", "hf-deformable-detr"):
        build = deformable_detr if release == "deformable-detr" else hf_deformable_detr
        return build(cast(DeformableDetrConfig, config))
    return {"detr": DETR, "hf-detr": HF_DETR, "detr3d": DETR3D, "bevformer": BEVFORMER}[release]


def from_release(
    source: str | Path,
    release: str,
    settings: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> Checkpoint:
    """Read a checkpoint of an official release.

    Args:
        source: the file; for `transformers` also the folder that holds it. Its `config.json` must lie beside it.
        release: one of `RELEASES`.
        settings: YAML file with the settings; default: what the file tells. Those of 3D detectors tell nothing.
        overrides: dotted settings on top.
        class_names: in the order of the labels; default: what the file or the settings tell, or else COCO's by raw id.

    Raises:
        CheckpointError: the file cannot be read, or what is in it does not fit; names say what.
        ConfigError: settings that are not valid or belong to another detector.
    """
    path = _weights_file(Path(source))
    weights = read_weights(path)
    config, count, names = _settings(path, release, weights, settings)
    config = load_config(config.to_dict(), ASKED_FOR.get(release, {}) | dict(overrides or {}))
    names = tuple(class_names) if class_names is not None else names
    if names is None:
        names = COCO_91 if count == 91 else tuple(f"class {i}" for i in range(count))
    if len(names) != count:
        raise ConfigError(f"{path} tells {count} classes apart, but {len(names)} class names are given")
    if release == "hf-deformable-detr":
        weights = _with_tied_heads(weights, config.model)
    model = build_model(config.model, count, pretrained=False)
    load_official(model, weights, layout_of(release, config.model), str(path))
    return Checkpoint(model.state_dict(), config.to_dict(), names)


def to_release(saved: Checkpoint, release: str) -> dict[str, Tensor]:
    """The official state dict of one of our checkpoints.

    Raises:
        ConfigError: the release has no such detector.
        CheckpointError: weights that it has no place for, by name.
    """
    config = load_config(saved.config).model
    weights = {name: t for name, t in saved.weights.items() if not name.startswith(TRAINING_ONLY)}
    official = layout_of(release, config).to_official(weights)
    return {key: tensor for key, tensor in official.items() if not key.endswith("num_batches_tracked")}


def write_release(state_dict: Mapping[str, Tensor], release: str, path: Path) -> None:
    """Write an official state dict as the release does: `.safetensors` bare, anything else a PyTorch file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous().clone() for key, tensor in state_dict.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
        return
    wrapper = RELEASES[release][1]
    torch.save(tensors if wrapper is None else {wrapper: tensors}, path)


def convert(
    source: Path,
    out: Path,
    origin: str | None,
    target: str | None,
    settings: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> str:
    """Convert a file; returns a line that says what came out.

    Args:
        source: what to read.
        out: what to write.
        origin: the release that `source` comes from; None: this library.
        target: the release that `out` is for; None: this library.
        settings: see `from_release`.
        overrides: likewise.
        class_names: likewise.

    Raises:
        CheckpointError: see `from_release` and `to_release`.
        ConfigError: likewise.
    """
    if origin == BACKBONE:
        return _convert_backbone(source, out)
    if origin is None:
        saved = checkpoint.load(source)
    else:
        saved = from_release(source, origin, settings, overrides, class_names)
    if target is not None:
        state_dict = to_release(saved, target)
        write_release(state_dict, target, out)
        return f"{len(state_dict)} tensors in the layout of {target}: {out}"
    checkpoint.save(out, saved)
    return f"{saved.config['model']['name']} with {len(saved.class_names)} classes, {len(saved.weights)} tensors: {out}"


def _convert_backbone(source: Path, out: Path) -> str:
    """A backbone file for `model.backbone.weights`: a classifier's weights without its last layer."""
    weights = read_weights(source)
    if "conv1.weight" not in weights or "layer4.0.conv1.weight" not in weights:
        raise CheckpointError(f"{source}: no ResNet with torchvision's names: it has no 'conv1' or 'layer4'")
    kept = {name: t.contiguous() for name, t in weights.items() if not name.startswith("fc.")}
    left_out = sorted(set(weights) - set(kept))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, out)
    return f"backbone with {len(kept)} tensors, without {', '.join(left_out) or 'nothing'}: {out}"


def _weights_file(source: Path) -> Path:
    if not source.is_dir():
        return source
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (source / name).is_file():
            return source / name
    raise CheckpointError(f"{source}: neither model.safetensors nor pytorch_model.bin in this folder")


def _settings(
    path: Path, release: str, weights: Mapping[str, Tensor], settings: Path | None
) -> tuple[Config, int, tuple[str, ...] | None]:
    """Settings, number of classes, and class names if anything tells them."""
    if settings is not None:
        config = load_config(settings)
        names = config.data.classes
        if names is None:
            raise ConfigError(f"{settings}: data.classes must name the classes of {path}, in the order of its labels")
        return config, len(names), tuple(names)
    if release.startswith("hf-"):
        arguments = _hf_arguments(path)
        build = hf_config.deformable_detr_config if release == "hf-deformable-detr" else hf_config.detr_config
        labels = arguments.get("id2label")
        names = None
        count = arguments.get("num_labels", 91)
        if labels:
            count = len(labels)
            names = tuple(_unique(i, labels[str(i)]) for i in range(count))
        return Config(build(arguments), CocoConfig()), count, names
    if release in ("detr3d", "bevformer"):
        raise ConfigError(
            f"{release} files do not tell their settings: name a configuration, such as --config FILE.yaml"
        )
    model, count = (infer.deformable_detr if release == "deformable-detr" else infer.detr)(weights)
    return Config(model, CocoConfig()), count, None


def _hf_arguments(path: Path) -> dict[str, Any]:
    beside = path.parent / "config.json"
    try:
        return json.loads(beside.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{beside} is missing: it tells the settings of {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{beside}: not a JSON file: {error}") from error


def _with_tied_heads(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """With the heads of all layers: from version 5 on, `transformers` ties them and may store the first alone."""
    layers = cast(DeformableDetrConfig, config).decoder_layers
    first = [key for key in weights if key.startswith(("class_embed.0.", "bbox_embed.0."))]
    tied = {key.replace(".0.", f".{i}.", 1): weights[key] for key in first for i in range(1, layers)}
    return tied | dict(weights)


def _unique(label: int, name: str) -> str:
    return f"unused {label}" if name == "N/A" else name
