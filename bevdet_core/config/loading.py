"""Settings from files and command lines: every name and type is checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ..documents import DocumentError, parse_yaml, read_text, shown
from .data import DATA, DataConfig, NuScenesConfig
from .errors import ConfigError
from .listing import nearest, plain, settings_of
from .models import MODELS, Detr3dConfig, ModelConfig, RigModelConfig, streams
from .ranges import check_ranges
from .training import TrainConfig
from .values import typed


@dataclass(frozen=True)
class Config:
    """All settings of a run: what the detector is, what it sees, how it learns."""

    model: ModelConfig = field(default_factory=Detr3dConfig)
    data: DataConfig = field(default_factory=NuScenesConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for section in ("model", "data", "train"):
            check_ranges(section, getattr(self, section))
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
        return plain(asdict(self))

    def to_yaml(self) -> str:
        """The text of a configuration file with all settings."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, width=120)


def load_config(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file (or take nested dicts), apply overrides, check every name and type.

    Args:
        source: the file, or its content. Where there is no such file, one of the configurations that come with the
            package is taken, such as "configs/nuscenes/detr3d_r50.yaml".
        overrides: dotted name -> value, such as {"model.num_queries": 300}; text is read as YAML.

    Raises:
        ConfigError: a file that is missing or no YAML, an unknown name (with the nearest valid ones), a wrong value.
    """
    tree = plain(source) if isinstance(source, Mapping) else read_settings(Path(source))
    try:
        for name, value in (overrides or {}).items():
            _set(tree, name, _parsed(name, value) if isinstance(value, str) else plain(value))
        kinds = kinds_of(tree)
        for name in tree:
            if name not in kinds:
                raise ConfigError(f"{name}: no such setting{_near(str(name), kinds)}")
        return Config(**{name: _built(kind(), tree.get(name, {}), name, kinds) for name, kind in kinds.items()})
    except ConfigError as error:
        subject = re.split(r"[^\w.]", str(error))[0] + "."
        given = any(subject.startswith(f"{name}.") or f"{name}.".startswith(subject) for name in overrides or ())
        if given or isinstance(source, Mapping):  # no file is to blame
            raise
        raise ConfigError(f"{source}: {error}") from error


def kinds_of(tree: Mapping[str, Any]) -> dict[str, type]:
    """The dataclasses that the three parts of a configuration become, by the names that it has for them.

    Raises:
        ConfigError: no detector or data set has this name.
    """
    sections = {"model": (MODELS, "detr3d"), "data": (DATA, "nuscenes")}
    found: dict[str, type] = {}
    for section, (kinds, default) in sections.items():
        content = tree.get(section, {})
        name = content.get("name", default) if isinstance(content, Mapping) else default
        if not isinstance(name, str) or name not in kinds:
            raise ConfigError(f"{section}.name must be one of {', '.join(kinds)}, got {shown(name)}")
        found[section] = kinds[name]
    return found | {"train": TrainConfig}


def read_settings(path: Path) -> dict[str, Any]:
    """What a YAML file says, unchecked; a file of this name that came with the package where there is no other.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    try:
        tree = parse_yaml(read_text(_found(path)))
    except FileNotFoundError:
        close = difflib.get_close_matches(str(path), [f"configs/{name.as_posix()}" for name in _shipped()])
        raise ConfigError(f"{path}: no such configuration{_told(close)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder, no configuration; that of a run is its config.yaml") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except DocumentError as error:
        raise ConfigError(f"{path}: not a YAML file that can be used: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the configuration must be a mapping with 'model', 'data' and 'train'")
    return tree


class _Dumper(yaml.SafeDumper):
    """Lists on one line, however deep."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def _parsed(name: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except DocumentError as error:
        raise ConfigError(f"{name}: {text!r} cannot be read: {error}") from error


def _found(path: Path) -> Path:
    """The path, or that of a configuration of this name that came with the package."""
    if path.exists() or path.is_absolute():
        return path
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    return _shipped().get(name, path)


def _shipped() -> dict[Path, Path]:
    """The configurations that came with the package, by their place below `configs`."""
    package = Path(__file__).parents[1]
    folders = [package.parent / "configs", package / "configs"]  # checkout, wheel
    return {file.relative_to(folder): file for folder in folders for file in sorted(folder.rglob("*.yaml"))}


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, leaf = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{name}: {parent!r} is a value, it has no settings of its own")
    tree[leaf] = value


def _built(default: Any, tree: Any, prefix: str, kinds: Mapping[str, type]) -> Any:
    """A dataclass with what its part of a configuration changes; `kinds` as `kinds_of` told them."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix} must be a mapping of settings, got {shown(tree)}")
    hints = get_type_hints(type(default))
    values = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}"
        if key not in hints:
            raise ConfigError(f"{name}: no such setting{_near(name, kinds)}")
        part = getattr(default, key)
        values[key] = _built(part, value, name, kinds) if is_dataclass(part) else typed(name, hints[key], value)
    return replace(default, **values)


def _near(name: str, kinds: Mapping[str, type]) -> str:
    section = name.partition(".")[0]
    others: Mapping[str, type] = {"model": MODELS, "data": DATA}.get(section, {})
    having = [of for of, kind in others.items() if name in {setting.name for setting in settings_of(kind, section)}]
    if having:
        return f" here, but one of {', '.join(having)}"
    names = [*kinds, *(setting.name for section, kind in kinds.items() for setting in settings_of(kind, section))]
    return _told(nearest(name, names))


def _told(close: list[str]) -> str:
    return f"; nearest: {', '.join(close)}" if close else ""
