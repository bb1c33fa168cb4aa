"""What numbers and lists of settings may be: wide enough for all that is meant, no wider than a machine can take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from .errors import ConfigError
from .values import typed

PROBABILITIES = (
    *("dropout", "score_threshold", "flip", "photometric", "grid_mask", "mirror", "crop"),
    *("label_noise", "box_noise", "focal_alpha"),
)
POSITIVE = ("std", "resize", "scale", "history_gap")
SIGNED = ("mean", "_range")
MAY_BE_ZERO = ("frozen_stages", "workers", "warmup_steps")
PIXELS = ("input_size", "short_side", "long_side", "short_sides", "crop_short_sides", "crop_size")
LEAST_PIXELS = 16
PAIRS = ("resize", "scale", "crop_size")  # the first number must not be above the second
MOST_OFTEN = {  # upper bounds by the end of a setting's name; of other whole numbers `MOST`
    **{"_layers": 100, "_levels": 16, "_cameras": 100, "_points": 64, "_stages": 4, "depth": 1000, "queue_length": 100},
    **{"history_steps": 100, "_steps": 10**9, "epochs": 10**6, "workers": 1000, "seed": 2**63 - 1},
    **{"embed_dim": 8192, "num_heads": 8192, "width": 8192, "size_divisor": 4096, "stages": 8192, "bev_shape": 2000},
}
MOST = 100_000
LARGEST = 1e9  # of numbers with a fraction


def check_ranges(section: str, settings: object) -> None:
    """Check every number of a section of the settings, also those within lists, and what lists must be as a whole.

    Raises:
        ConfigError: one is out of range, or a list is empty, upside down or repeats a name; the message names it.
    """
    hints = get_type_hints(type(settings))
    for setting in fields(settings):  # type: ignore[arg-type]
        name, value = f"{section}.{setting.name}", getattr(settings, setting.name)
        if is_dataclass(value):
            check_ranges(name, value)
            continue
        typed(name, hints[setting.name], value)  # nobody has looked at settings that a program puts together
        if value == () and setting.default != ():
            raise ConfigError(f"{name} must not be empty")
        low, high = _range(setting.name, "int" in str(setting.type))
        if setting.default == 0:  # what can be left out counts from 0
            low = min(low, 0)
        for number in _numbers(value):
            if number < low:
                raise ConfigError(f"{name} must be at least {low:g}, got {number}")
            if number > high:
                raise ConfigError(
                    f"{name} must be at most {high if isinstance(high, int) else f'{high:g}'}, got {number}"
                )
        if isinstance(value, tuple):
            _check_list(name, value)


def _check_list(name: str, values: tuple) -> None:
    half = len(values) // 2
    if name.endswith("_range") and any(low >= high for low, high in zip(values[:half], values[half:], strict=True)):
        raise ConfigError(f"{name} must have each end above its start, got {values[:half]} to {values[half:]}")
    if name.endswith(PAIRS) and values[0] > values[1]:
        raise ConfigError(f"{name} must be (smallest, largest), got {list(values)}")
    twice = next((value for value in values if isinstance(value, str) and values.count(value) > 1), None)
    if twice is not None:
        raise ConfigError(f"{name} must name each once, {twice!r} comes twice")


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, (tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _range(name: str, whole: bool) -> tuple[float, float]:
    if name in PROBABILITIES:
        return 0, 1
    if name in POSITIVE:
        return 1e-6, LARGEST
    if not whole:
        return -LARGEST if name.endswith(SIGNED) else 0, LARGEST
    most = next((bound for end, bound in MOST_OFTEN.items() if name.endswith(end)), MOST)
    return 0 if name in MAY_BE_ZERO else LEAST_PIXELS if name in PIXELS else 1, most
