"""The ranges of numeric settings: wide enough for all that is meant, and no wider than a machine can take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from .errors import ConfigError

PROBABILITIES = ("dropout", "score_threshold", "flip", "photometric", "grid_mask", "mirror", "crop")
POSITIVE = ("std", "resize", "scale", "history_gap")
MAY_BE_ZERO = ("frozen_stages",)
MOST_OFTEN = {  # upper bounds by the end of a setting's name; of other whole numbers `MOST`
    **{"_layers": 100, "_levels": 16, "_cameras": 100, "_points": 64, "_stages": 4, "depth": 1000, "queue_length": 100},
    "history_steps": 100,
    **{"embed_dim": 8192, "num_heads": 8192, "width": 8192, "size_divisor": 4096, "stages": 8192, "bev_shape": 2000},
}
MOST = 100_000
LARGEST = 1e9  # of numbers with a fraction


def check_ranges(section: str, settings: object) -> None:
    """Check every number of the settings of a detector or of an augmentation, also those within tuples.

    Raises:
        ConfigError: one is out of range; the message names it.
    """
    for setting in fields(settings):  # type: ignore[arg-type]
        name, value = setting.name, getattr(settings, setting.name)
        if is_dataclass(value):
            check_ranges(f"{section}.{name}", value)
            continue
        if value is None and "None" not in str(setting.type):
            raise ConfigError(f"{section}.{name} must have a value")
        low, high = _range(name, "int" in str(setting.type))
        if setting.default == 0:  # what can be left out counts from 0
            low = min(low, 0)
        for number in _numbers(value):
            if not low <= number <= high:
                raise ConfigError(f"{section}.{name} must lie between {low:g} and {high:g}, got {number!r}")


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _range(name: str, whole: bool) -> tuple[float, float]:
    if name in PROBABILITIES:
        return 0, 1
    if name in POSITIVE:
        return 1e-6, LARGEST
    if not whole:
        return -LARGEST, LARGEST
    most = next((bound for end, bound in MOST_OFTEN.items() if name.endswith(end)), MOST)
    return 0 if name in MAY_BE_ZERO else 1, most
