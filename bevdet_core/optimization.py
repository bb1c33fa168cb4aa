"""What learns at which rate: parameter groups and the schedule of the published recipes."""

from __future__ import annotations

import math

from torch import nn

from .config import TrainConfig


def parameter_groups(model: nn.Module, settings: TrainConfig) -> list[dict]:
    """Parameters that learn, grouped by the learning-rate factor that their names ask for."""
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
