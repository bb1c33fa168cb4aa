"""A record's settings are read or refused: none that changes results is passed over in silence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def check_settings(
    settings: Mapping[str, Any],
    where: str,
    read: Collection[str] = (),
    fixed: Mapping[str, Any] | None = None,
    inert: Collection[str] = (),
) -> None:
    """Check that there is nothing in a part of a record's settings that we do not know.

    Args:
        settings: the part.
        where: its place, for messages.
        read: settings that are translated.
        fixed: settings that our models take for granted, with their only value.
        inert: settings without influence on a record: they concern starting values, schedules or speed.

    Raises:
        ValueError: a setting that is in none of these, or has another value than the fixed one; the message names it.
    """
    fixed = fixed or {}
    for name, value in settings.items():
        if name in fixed and plain(value) != plain(fixed[name]):
            raise ValueError(f"{where}.{name} = {value!r} is not supported, only {fixed[name]!r}")
        if name not in fixed and name not in read and name not in inert:
            raise ValueError(f"{where}.{name} = {value!r} is not known")


def plain(value: Any) -> Any:
    """With lists for tuples, as JSON gives them."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value
