"""Settings from files and command lines: every name and type is checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml

from ..documents import DocumentError, first_not_finite, parse_yaml, read_text
from .data import DATA, DataConfig, NuScenesConfig
from .errors import ConfigError
from .models import MODELS, Detr3dConfig, ModelConfig, RigModelConfig, streams
from .ranges import check_ranges
from .training import TrainConfig


@dataclass(frozen=True)
class Config:
    """All settings of a run: what the detector is, what it sees, how it learns."""

    model: ModelConfig = field(default_factory=Detr3dConfig)
    data: DataConfig = field(default_factory=NuScenesConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_ranges("model", self.model)
        check_ranges("data", self.data)
        if isinstance(self.model, RigModelConfig) != isinstance(self.data, NuScenesConfig):
            raise ConfigError(
                f"model.name {self.model.name!r} cannot learn from data.name {self.data.name!r}: 3D detectors need "
                "nuscenes, 2D detectors coco"
            )
        if self.model.embed_dim % self.model.num_heads:
            raise ConfigError(
                f"model.embed_dim = {self.model.embed_dim} must be a multiple of model.num_heads = "
                f"{self.model.num_heads}"
            )
        if streams(self.model) and isinstance(self.data, NuScenesConfig) and self.data.cbgs:
            raise ConfigError("model.queue_learn stream takes the frames of a scene in their order, data.cbgs does not")

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts and lists that YAML and JSON can hold, and that `load_config` takes back."""
        return _plain(asdict(self))

    def to_yaml(self) -> str:
        """The text of a configuration file with all settings."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load_config(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file (or take nested dicts), apply overrides, check every name and type.

    Args:
        source: the file, or its content. Where there is no such file, one of the configurations that come with the
            package is taken, such as "configs/nuscenes/detr3d_r50.yaml".
        overrides: dotted name -> value, such as {"model.num_queries": 300}; text is read as YAML.

    Raises:
        ConfigError: a file that is missing or no YAML, an unknown name (with the nearest valid ones), a wrong value.
    """
    origin = "the settings" if isinstance(source, Mapping) else str(source)
    tree = _plain(source) if isinstance(source, Mapping) else read_settings(Path(source))
    for name, value in (overrides or {}).items():
        _set(tree, name, _parsed(name, value) if isinstance(value, str) else value)
    types = {
        "model": _pick("model", MODELS, tree, "detr3d", origin),
        "data": _pick("data", DATA, tree, "nuscenes", origin),
        "train": TrainConfig,
    }
    _check_names(tree, types, origin)
    if (place := first_not_finite(tree)) is not None:
        raise ConfigError(f"{origin}: {place} must be a finite number")
    parser = settings_parser(types)
    try:
        return Config(**vars(parser.instantiate(parser.parse_object(tree))))
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse reports a wrong value through several exception types
        raise ConfigError(f"{origin}: {error}") from error


def settings_parser(types: Mapping[str, type] | None = None):
    """The jsonargparse parser that knows all settings, their types, defaults and meaning."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="settings", usage="--NAME VALUE ...", exit_on_error=False, add_help=False)
    for name, kind in (types or {"model": Detr3dConfig, "data": NuScenesConfig, "train": TrainConfig}).items():
        parser.add_argument(f"--{name}", type=kind, default=kind())
    return parser


def read_settings(path: Path) -> dict[str, Any]:
    """What a YAML file says, unchecked; a file of this name that came with the package where there is no other.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    try:
        tree = parse_yaml(read_text(_found(path)))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except DocumentError as error:
        raise ConfigError(f"{path}: not a YAML file that can be used: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the configuration must be a mapping with 'model', 'data' and 'train'")
    return tree


def _parsed(name: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except DocumentError as error:
        raise ConfigError(f"{name}: {text!r} cannot be read: {error}") from error


def _found(path: Path) -> Path:
    """The path, or that of a configuration of this name that came with the package."""
    if path.exists() or path.is_absolute():
        return path
    package = Path(__file__).parents[1]
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    bundled = [folder / name for folder in (package / "configs", package.parent / "configs")]  # wheel, checkout
    return next((file for file in bundled if ".." not in name.parts and file.is_file()), path)


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, leaf = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{name}: {parent!r} is a value, it has no settings of its own")
    tree[leaf] = value


def _pick(section: str, kinds: Mapping[str, type], tree: Mapping[str, Any], default: str, origin: str) -> type:
    content = tree.get(section, {})
    name = content.get("name", default) if isinstance(content, Mapping) else default
    if not isinstance(name, str) or name not in kinds:
        raise ConfigError(f"{origin}: {section}.name: no {section} {name!r}{_nearest(str(name), kinds)}")
    return kinds[name]


def _check_names(tree: Any, kinds: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for name, value in tree.items():
        if name not in kinds:
            nearest = _nearest(str(name), kinds, prefix)
            raise ConfigError(f"{origin}: no setting {prefix + str(name)!r}{nearest}")
        if is_dataclass(kinds[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {prefix + name} must be a mapping of settings, got {value!r}")
            hints = get_type_hints(kinds[name])
            _check_names(value, {f.name: hints[f.name] for f in fields(kinds[name])}, origin, f"{prefix}{name}.")
        elif value is None and NoneType not in get_args(kinds[name]):
            raise ConfigError(f"{origin}: {prefix}{name} must have a value")


def _nearest(name: str, valid: Mapping[str, Any], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5) or sorted(valid)
    return f"; nearest: {', '.join(prefix + other for other in close)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
