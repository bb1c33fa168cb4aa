"""What learns at which rate: parameter groups and the schedule of the published recipes."""

from __future__ import annotations

import difflib
import math

from torch import nn

from .config import ConfigError, TrainConfig


def parameter_groups(model: nn.Module, settings: TrainConfig) -> list[dict]:
    """Parameters that learn, grouped by the learning-rate factor that their names ask for.

    Raises:
        ConfigError: no parameter of the model, frozen ones included, has a part that `lr_factors` names in its name.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in settings.lr_factors:
        if not any(part in name for name in names):
            words = sorted({word for name in names for word in name.split(".") if not word.isdigit()})
            nearest = difflib.get_close_matches(part, words, cutoff=0.5) or sorted(dict(model.named_children()))
            raise ConfigError(
                f"train.lr_factors: no parameter of this model has {part!r} in its name; nearest: {', '.join(nearest)}"
            )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next((f for part, f in settings.lr_factors.items() if part in name), 1.0)
            groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "lr": settings.lr * f, "lr_factor": f} for f, parameters in groups.items()]


def learning_rate(settings: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The base rate of a step: warm-up, then the schedule."""
    if step < settings.warmup_steps:
        warm = (1 + 2 * step / settings.warmup_steps) / 3
    else:
        warm = 1.0
    if settings.schedule == "step":
        return settings.lr * warm * 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in settings.milestones)
    progress = step / max(settings.epochs * steps_per_epoch - 1, 1)
    return settings.lr * warm * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * progress)) / 2)
