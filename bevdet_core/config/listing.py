"""All settings by their dotted names: with type, default and meaning, and the nearest to a wrong one."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, get_type_hints

from ..documents import shown
from .data import DATA
from .models import MODELS
from .training import TrainConfig
from .values import described


class Setting(NamedTuple):
    """One setting, or a group of them, the type of which is then a dataclass."""

    name: str  # dotted
    kind: Any
    default: Any
    meaning: str


def settings_of(kind: type, prefix: str) -> Iterator[Setting]:
    """The settings of a dataclass, each group before its own.

    Args:
        kind: such as `Detr3dConfig`.
        prefix: the dotted name that leads to it, such as "model".
    """
    yield from _settings(kind(), prefix)


def _settings(defaults: Any, prefix: str) -> Iterator[Setting]:
    hints, meanings = get_type_hints(type(defaults)), _meanings(type(defaults))
    for field in fields(defaults):
        name, default = f"{prefix}.{field.name}", getattr(defaults, field.name)
        yield Setting(name, hints[field.name], default, meanings[field.name])
        if is_dataclass(default):
            yield from _settings(default, name)


def all_kinds() -> list[tuple[str, type]]:
    """Every dataclass of settings with the section that it can be."""
    models, data = (("model", kind) for kind in MODELS.values()), (("data", kind) for kind in DATA.values())
    return [*models, *data, ("train", TrainConfig)]


def all_settings() -> dict[str, Setting]:
    """Every setting of every detector, data set and training by name; of those that have one name, the first."""
    found: dict[str, Setting] = {}
    for section, kind in all_kinds():
        for setting in settings_of(kind, section):
            found.setdefault(setting.name, setting)
    return found


def settings_help(kinds: Iterable[tuple[str, type]]) -> str:
    """What `--help_settings` prints: the settings of (section, dataclass) pairs."""
    lines = []
    for section, kind in kinds:
        summary = inspect.getdoc(kind).partition("\n")[0]  # type: ignore[union-attr]
        lines += [f"{section}: {summary}", ""]
        for setting in settings_of(kind, section):
            if not is_dataclass(setting.kind):
                default = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
                lines.append(f"  --{setting.name}  {described(setting.kind)}; default: {default}")
                lines += textwrap.wrap(setting.meaning, 112, initial_indent=" " * 8, subsequent_indent=" " * 8)
        lines.append("")
    return "\n".join(lines)


def nearest(name: str, valid: Iterable[str]) -> list[str]:
    """At most three dotted names whose last part is that of another name, or close to it; the closest first."""

    def likeness(other: str) -> tuple[float, float]:
        last, other_last = (text.rpartition(".")[2] for text in (name, other))
        return difflib.SequenceMatcher(None, last, other_last).ratio(), difflib.SequenceMatcher(
            None, name, other
        ).ratio()

    ranked = sorted(((*likeness(other), other) for other in valid), key=lambda row: (-row[0], -row[1], row[2]))
    least = 1.0 if ranked and ranked[0][0] == 1 else 0.6
    return [other for likely, _, other in ranked if likely >= least][:3]


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What has changed between two configurations, given as nested dicts: name, old and new value of each setting."""
    found = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} from {shown(old)} to {shown(new)}")
    return found


def plain(value: Any) -> Any:
    """Nested mappings and sequences as the dicts and lists that YAML and JSON can hold."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _meanings(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each of its fields."""
    _, _, arguments = inspect.getdoc(kind).partition("Args:\n")  # type: ignore[union-attr]
    found = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
