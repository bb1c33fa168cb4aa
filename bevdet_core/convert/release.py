"""Whole checkpoints: from a file of an official release to one of this library, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
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
    PetrConfig,
    load_config,
    read_settings,
)
from ..documents import DocumentError, is_text, parse_json, read_text, shown
from ..files import written_aside
from ..models import build_model
from ..weights import read_weights
from . import hf_config, infer
from .bevformer import bevformer
from .coco_names import COCO_91
from .deformable_detr import deformable_detr, hf_deformable_detr
from .detr import DETR, HF_DETR
from .detr3d import detr3d
from .layout import Layout, load_official, naming
from .names import BACKBONE, BoxConvention
from .nuscenes_names import RELEASE_CLASSES
from .petr import petr

# release -> (kinds of detectors, key under which its files hold the state dict)
KINDS: dict[str, tuple[tuple[type[ModelConfig], ...], str | None]] = {
    "deformable-detr": ((DeformableDetrConfig,), "model"),
    "detr": ((DetrConfig,), "model"),
    "hf-deformable-detr": ((DeformableDetrConfig,), None),
    "hf-detr": ((DetrConfig,), None),
    "detr3d": ((Detr3dConfig,), "state_dict"),
    "petr": ((PetrConfig,), "state_dict"),
    "bevformer": ((BevFormerConfig,), "state_dict"),
    "mmdet3d": ((Detr3dConfig, PetrConfig), "state_dict"),
}
# The 3D releases, with the convention of their boxes: that of mmdet3d before 1.0, or what its projects have since.
CONVENTIONS: dict[str, dict[type, BoxConvention]] = {
    "detr3d": {Detr3dConfig: "old"},
    "petr": {PetrConfig: "old"},
    "bevformer": {BevFormerConfig: "old"},
    "mmdet3d": {Detr3dConfig: "new", PetrConfig: "mixed"},
}
# What the weights of a release ask for, unless somebody says otherwise.
ASKED_FOR: dict[str, dict[str, Any]] = {"bevformer": {"model.release_quirks": True}}
# Modules that only training has, under which an official layout has no place.
TRAINING_ONLY = ("denoising.", "perspective.")


def layout_of(release: str, config: ModelConfig, box_convention: BoxConvention | None = None) -> Layout:
    """How a release stores a detector.

    Args:
        release: one of `RELEASES`.
        config: the detector.
        box_convention: of the boxes that a 3D detector regresses, see `box_code`; default: see `CONVENTIONS`.

    Raises:
        ConfigError: the release has no such detector, or its boxes no such convention.
    """
    kinds = KINDS[release][0]
    if not isinstance(config, kinds):
        names = " or ".join(kind.name for kind in kinds)
        raise ConfigError(f"{release} weights are of model.name {names}, the settings are of {config.name}")
    if release in CONVENTIONS:
        convention = box_convention or CONVENTIONS[release][type(config)]
        if isinstance(config, PetrConfig):
            return petr(config.num_layers, convention)
        return (detr3d if isinstance(config, Detr3dConfig) else bevformer)(convention)
    if box_convention is not None:
        raise ConfigError(f"{release} weights have 2D boxes, --box_convention is for those of 3D detectors")
    if release in ("deformable-detr", "hf-deformable-detr"):
        build = deformable_detr if release == "deformable-detr" else hf_deformable_detr
        return build(cast(DeformableDetrConfig, config))
    return {"detr": DETR, "hf-detr": HF_DETR}[release]


def from_release(
    source: str | Path,
    release: str,
    settings: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    box_convention: BoxConvention | None = None,
) -> Checkpoint:
    """Read a checkpoint of an official release.

    Args:
        source: the file; for `transformers` also the folder that holds it. Its `config.json` must lie beside it.
        release: one of `RELEASES`.
        settings: YAML file with the settings; default: what the file tells. Those of 3D detectors tell nothing.
        overrides: dotted settings on top.
        class_names: in the order of the labels; default: what the file or the settings tell, or else COCO's by raw id,
            of 3D detectors those of nuScenes in the order that releases have them.
        box_convention: see `layout_of`.

    Raises:
        CheckpointError: the file cannot be read, or what is in it does not fit; names say what.
        ConfigError: settings that are not valid or belong to another detector.
    """
    path = _weights_file(Path(source))
    weights = read_weights(path)
    overrides = ASKED_FOR.get(release, {}) | dict(overrides or {})
    config, names, whence = _settings(path, release, weights, settings, overrides)
    config = load_config(config.to_dict(), overrides)
    with naming(settings or path):
        layout = layout_of(release, config.model, box_convention)
    with naming(path):
        count = infer.num_classes(weights, release)
    if class_names is not None:
        names, whence = tuple(class_names), "--classes"
    elif "data.classes" in overrides:
        names, whence = config.data.classes, "data.classes"
    if names is None and settings is not None:
        raise ConfigError(
            f"{settings}: data.classes must name the classes of {path}, in the order of its labels, or --classes FILE"
        )
    if names is None:
        names = COCO_91 if count == 91 else tuple(f"class {i}" for i in range(count))
    if len(names) != count:
        raise ConfigError(
            f"{path} tells {count} classes apart, but {whence} names {len(names)}; --classes FILE may name all of them"
        )
    if config.data.classes is not None:  # data are read with the labels of the weights
        config = replace(config, data=replace(config.data, classes=names))
    if release == "hf-deformable-detr":
        weights = _with_tied_heads(weights, config.model)
    model = build_model(config.model, count, pretrained=False)
    load_official(model, weights, layout, str(path))
    return Checkpoint(model.state_dict(), config.to_dict(), names)


def to_release(saved: Checkpoint, release: str, box_convention: BoxConvention | None = None) -> dict[str, Tensor]:
    """The official state dict of one of our checkpoints.

    Args:
        saved: the checkpoint.
        release: one of `RELEASES`.
        box_convention: see `layout_of`.

    Raises:
        ConfigError: the release has no such detector.
        CheckpointError: weights that it has no place for, by name.
    """
    config = load_config(saved.config).model
    weights = {name: t for name, t in saved.weights.items() if not name.startswith(TRAINING_ONLY)}
    official = layout_of(release, config, box_convention).to_official(weights)
    return {key: tensor for key, tensor in official.items() if not key.endswith("num_batches_tracked")}


def write_release(state_dict: Mapping[str, Tensor], release: str, path: Path) -> None:
    """Write an official state dict as the release does: `.safetensors` bare, anything else a PyTorch file.

    Raises:
        CheckpointError: the file cannot be written; what was at `path` is untouched.
    """
    _write(state_dict, path, KINDS[release][1])


def _write(state_dict: Mapping[str, Tensor], path: Path, wrapper: str | None = None) -> None:
    """Write a state dict; that of a PyTorch file stands under the wrapper, if there is one."""
    tensors = {key: tensor.contiguous().clone() for key, tensor in state_dict.items()}
    try:
        with written_aside(path) as aside:
            if path.suffix == ".safetensors":
                save_file(tensors, aside, metadata={"format": "pt"})
            else:
                content = BytesIO()  # torch.save reports a full disk in no way that can be told from a defect
                torch.save(tensors if wrapper is None else {wrapper: tensors}, content)
                aside.write_bytes(content.getbuffer())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot write the weights: {error}") from error


def convert(
    source: Path,
    out: Path,
    origin: str | None,
    target: str | None,
    settings: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    box_convention: BoxConvention | None = None,
) -> str:
    """Convert a file; returns a line that says what came out.

    Args:
        source: what to read; a file, a run folder of this library or a folder of `transformers`.
        out: the file to write; another one than what is read.
        origin: the release that `source` comes from, or `BACKBONE`; None: this library.
        target: the release that `out` is for; None: this library.
        settings: see `from_release`.
        overrides: likewise.
        class_names: likewise.
        box_convention: see `layout_of`; of the release that is read, or else of the one that is written.

    Raises:
        CheckpointError: `out` cannot be written; what was there is untouched. See also `from_release`, `to_release`.
        ConfigError: likewise.
    """
    path = checkpoint.weights_of(source) if origin is None else _weights_file(source)
    if out.is_dir():
        raise CheckpointError(f"{out}: a folder, --out must name the file to write")
    if out.exists() and path.exists() and out.samefile(path):
        raise CheckpointError(f"{out}: the very file that is converted, --out must name another one")
    if origin == BACKBONE:
        return _convert_backbone(path, out)
    if origin is None:
        if path.is_file() and path.suffix != ".safetensors":
            raise CheckpointError(
                f"{path}: no checkpoint of this library (a run folder or .safetensors file), which --to takes; "
                "weights of a release need --from as well"
            )
        saved, written = checkpoint.load(path), box_convention
    else:
        saved, written = from_release(path, origin, settings, overrides, class_names, box_convention), None
    if target is not None:
        with naming(path):
            state_dict = to_release(saved, target, written)
        write_release(state_dict, target, out)
        told = f"written: {out}, {len(state_dict)} tensors in the layout of {target}"
        if other := [name for name, value in ASKED_FOR.get(target, {}).items() if _setting(saved, name) != value]:
            told += f"; the release computes with {', '.join(other)}, without which these weights were trained"
        return told
    checkpoint.save(out, saved)
    name, count = saved.config["model"]["name"], len(saved.class_names)
    return f"written: {out}, a {name} with {count} classes, {len(saved.weights)} tensors"


def _setting(saved: Checkpoint, name: str) -> Any:
    section, _, key = name.partition(".")
    return saved.config[section].get(key)


def _convert_backbone(path: Path, out: Path) -> str:
    """A backbone file for `model.backbone.weights`: a classifier's weights without its last layer."""
    weights = read_weights(path)
    if "conv1.weight" not in weights or "layer4.0.conv1.weight" not in weights:
        raise CheckpointError(f"{path}: no ResNet with torchvision's names: it has no 'conv1' or 'layer4'")
    kept = {name: t for name, t in weights.items() if not name.startswith("fc.")}
    left_out = sorted(set(weights) - set(kept))
    _write(kept, out)
    return f"written: {out}, a backbone with {len(kept)} tensors, without {', '.join(left_out) or 'nothing'}"


def _weights_file(source: Path) -> Path:
    if not source.is_dir():
        return source
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (source / name).is_file():
            return source / name
    raise CheckpointError(
        f"{source}: neither model.safetensors nor pytorch_model.bin in this folder; name the weights file itself"
    )


def _settings(
    path: Path, release: str, weights: Mapping[str, Tensor], settings: Path | None, overrides: Mapping[str, Any]
) -> tuple[Config, tuple[str, ...] | None, str]:
    """Settings, class names if anything tells them, and what tells them."""
    if settings is not None:
        config = load_config(settings, overrides)
        if release not in CONVENTIONS or "classes" in (read_settings(settings).get("data") or {}):
            return config, config.data.classes, f"data.classes of {settings}"
        return config, RELEASE_CLASSES, f"the release of {release}"  # the default is the order of the data set
    if release in CONVENTIONS:
        raise ConfigError(
            f"{release} files do not tell their settings: name a configuration, such as --config FILE.yaml"
        )
    if release.startswith("hf-"):
        return _hf_settings(path, release)
    with naming(path):
        model = infer.deformable_detr(weights) if release == "deformable-detr" else infer.detr(weights)
        return Config(model, CocoConfig()), None, ""


def _hf_settings(path: Path, release: str) -> tuple[Config, tuple[str, ...] | None, str]:
    """What `config.json` beside the weights tells; see `_settings`."""
    beside = path.parent / "config.json"
    try:
        arguments = parse_json(read_text(beside))
    except FileNotFoundError:
        raise CheckpointError(f"{beside} is missing: it tells the settings of {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{beside}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise CheckpointError(f"{beside}: not a JSON file: {error}") from error
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{beside}: must be a JSON object, got {shown(arguments)}")
    (kind,) = KINDS[release][0]
    with naming(beside):
        if arguments.get("model_type", kind.name) != kind.name:
            raise ConfigError(f"model_type {shown(arguments['model_type'])}, {release} has {kind.name!r}")
        try:
            build = hf_config.deformable_detr_config if release == "hf-deformable-detr" else hf_config.detr_config
            model = build(arguments)
            labels = arguments.get("id2label") or {}
            names = tuple(_unique(i, labels[str(i)]) for i in range(len(labels)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"no settings of such a detector: {type(error).__name__} {error}") from error
        if not all(map(is_text, names)):
            raise ConfigError(f"id2label must name every class, got {shown(labels)}")
        # Through the door that checks every type: nobody has looked at these numbers yet.
        settings = load_config({"model": asdict(model), "data": {"name": "coco"}})
        return settings, names or None, f"id2label of {beside}"


def _with_tied_heads(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """With the heads of all layers: from version 5 on, `transformers` ties them and may store the first alone."""
    layers = cast(DeformableDetrConfig, config).decoder_layers
    first = [key for key in weights if key.startswith(("class_embed.0.", "bbox_embed.0."))]
    tied = {key.replace(".0.", f".{i}.", 1): weights[key] for key in first for i in range(1, layers)}
    return tied | dict(weights)


def _unique(label: int, name: str) -> str:
    return f"unused {label}" if name == "N/A" else name
