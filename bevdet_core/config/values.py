"""A value of a file or a command line as the type of its setting, and the words for what a type wants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from ..documents import is_text, shown
from .errors import ConfigError

SCALARS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("a text", "texts")}
TRUTH = {"true": True, "false": False}


def typed(name: str, kind: Any, value: Any) -> Any:
    """A value that YAML or JSON can hold as what a setting wants.

    A whole number is taken for one with a fraction. So is a text, where it is the way to write the value: YAML reads
    1e-3 as a text.

    Args:
        name: of the setting, for messages.
        kind: its type: int, float, bool, str, `Literal`, a tuple or a dict of them, or one of them or None.
        value: what was given.

    Raises:
        ConfigError: it does not fit; the message names the setting and what would.
    """
    kinds, wrong = get_args(kind), ConfigError(f"{name} must be {described(kind)}, got {shown(value)}")
    if NoneType in kinds:
        return None if value is None else typed(name, kinds[0], value)
    if value is None:
        raise ConfigError(f"{name} must have a value")
    if get_origin(kind) is Literal:
        found = [choice for choice in kinds if str(choice) == str(value)]
        if not found:
            raise wrong
        return found[0]
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise wrong
        return {typed(f"{name}: a key", kinds[0], k): typed(f"{name}.{k}", kinds[1], v) for k, v in value.items()}
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong
        if kinds[-1] is ...:
            kinds = kinds[:1] * len(value)
        if len(value) != len(kinds):
            raise ConfigError(f"{name} must be {described(kind)}, got a list of {len(value)}")
        return tuple(typed(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(kinds, value, strict=True)))
    if kind is str and value == "":
        raise ConfigError(f"{name} must not be empty")
    found = _scalar(kind, value)
    if found is None and kind is str and not isinstance(value, (str, list, dict)):
        raise ConfigError(f"{wrong}; within quotes it is one")
    if found is None:
        raise wrong
    if kind is float and not math.isfinite(found):
        raise ConfigError(f"{name} must be a finite number, got {found}")
    return found


def described(kind: Any, plural: bool = False) -> str:
    """What a type wants, in the words of its user: "a number", "one of fp32, bf16", "a list of 6 numbers"."""
    kinds = get_args(kind)
    if NoneType in kinds:
        return f"{described(kinds[0])} or null"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if get_origin(kind) is dict:
        return f"a mapping of names to {described(kinds[1], plural=True)}"
    if get_origin(kind) is tuple:
        count = "" if kinds[-1] is ... else f"{len(kinds)} "
        return f"{'lists' if plural else 'a list'} of {count}{described(kinds[0], plural=True)}"
    return SCALARS[kind][plural] if kind in SCALARS else "true or false"


def choices(kind: Any) -> tuple[str, ...]:
    """The words that a type takes, where there are only some."""
    kinds = get_args(kind)
    if NoneType in kinds:
        return choices(kinds[0])
    return tuple(map(str, kinds)) if get_origin(kind) is Literal else tuple(TRUTH) if kind is bool else ()


def _scalar(kind: type, value: Any) -> Any:
    """The value as int, float, bool or str; None where it is none."""
    if kind is bool:
        value = TRUTH.get(value.lower()) if isinstance(value, str) else value
        return value if isinstance(value, bool) else None
    if kind is str:
        return value if is_text(value) else None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, str))
        or (kind is int and isinstance(value, float))
    ):
        return None
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return None
