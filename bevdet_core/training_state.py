"""All that changes while a detector learns: how it goes into a checkpoint and comes back, so that nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from . import checkpoint, processes
from .checkpoint import Checkpoint, CheckpointError
from .config import Config, differences
from .documents import is_integer, listed, shown
from .models.bev_memory import BevMemory


@dataclass
class TrainingState:
    """What a training changes, step by step.

    The weights of its checkpoints are those that one would keep: averaged ones where there is an average. The order and
    the augmentation of the samples follow from the seed and the step, see `data.loader`.

    Attributes:
        model: the weights that learn.
        average: their moving average.
        optimizer: over the parameters of the model.
        scaler: of the gradients in fp16.
        config: all settings.
        class_names: of the detector.
        steps_per_epoch: what a step counts; differs with the number of processes, the batch and the data.
        memory: of the frames before those of the next step, where frames of a scene come one after the other.
        step: steps that are done.
    """

    model: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    config: Config
    class_names: tuple[str, ...]
    steps_per_epoch: int
    memory: BevMemory | None = None
    step: int = 0

    @property
    def kept(self) -> nn.Module:
        """The model that is evaluated and kept."""
        return self.model if self.average is None else self.average.module

    def save(self, folder: Path) -> None:
        """Write a checkpoint into a folder and remove the oldest ones; every process must call this.

        Raises:
            CheckpointError: the folder cannot be written or the disk is full; the checkpoints in it stay as they are.
        """
        own = processes.gather(self._own())
        if processes.is_main():
            checkpoint.save(checkpoint.step_path(folder, self.step), self._snapshot(own))
            checkpoint.rotate(folder, self.config.train.keep_checkpoints)

    def restore(self, folder: Path) -> list[str]:
        """Go back to the newest complete checkpoint of a folder, or stay as it is where there is none.

        Every process must call this.

        Returns:
            Lines that say what was found: damaged checkpoints, the step, settings that have changed since.

        Raises:
            CheckpointError: none can be read; the newest one belongs to another model, or to a training whose steps
                are not those of this one; or the processes do not see the same folder.
        """
        found = checkpoint.training_checkpoints(folder)
        damaged: list[str] = []
        told: list[str] = [] if found else [f"no checkpoint in {folder}: starting anew"]
        for path in reversed(found):
            try:
                saved = checkpoint.load(path, training=True)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            differing = "; ".join(differences(saved.config, self.config.to_dict()))
            changed = [f"settings that have changed: {differing}"] if differing else []
            try:
                self._load(saved, str(path))
            except CheckpointError as error:
                raise CheckpointError("\n".join([str(error), *changed])) from error
            told = [f"{problem}; trying the one before" for problem in damaged]
            told += [f"resuming after step {self.step}, from {path}", *changed]
            break
        if found and len(damaged) == len(found):
            raise CheckpointError(f"{folder}: none of the {len(found)} checkpoints can be read:{listed(damaged)}")
        steps = processes.gather(self.step)
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"{folder}: the processes found checkpoints of different steps, {steps}; the run folder must be the "
                "same for all of them"
            )
        return told

    def _own(self) -> dict[str, Tensor]:
        """What differs from process to process."""
        seen = {} if self.memory is None else self.memory.tensors()
        return _generators() | {f"memory/{name}": tensor.cpu() for name, tensor in seen.items()}

    def _snapshot(self, processes_own: list[dict[str, Tensor]]) -> Checkpoint:
        training = checkpoint.optimizer_tensors(self.optimizer)
        training |= {f"{name}/{rank}": t for rank, own in enumerate(processes_own) for name, t in own.items()}
        weights = self.model.state_dict()
        if self.average is not None:
            training |= {f"model/{name}": t for name, t in weights.items()}
            training["averaged"] = self.average.n_averaged
            weights = self.average.module.state_dict()
        progress: dict[str, Any] = {"step": self.step, **self._pace}
        if self.scaler is not None:
            progress["scaler"] = self.scaler.state_dict()
        return Checkpoint(weights, self.config.to_dict(), self.class_names, training, progress)

    @property
    def _pace(self) -> dict[str, int]:
        """What makes a step of one training the same as a step of another."""
        settings = self.config.train
        return {
            "processes": processes.count(),
            "batch_size": settings.batch_size,
            "accumulate": settings.accumulate,
            "steps_per_epoch": self.steps_per_epoch,
        }

    def _load(self, saved: Checkpoint, origin: str) -> None:
        weights, training = saved.weights, saved.training
        if self.average is not None and "averaged" in training:
            checkpoint.load_weights(self.average.module, weights, origin)
            weights = {n.removeprefix("model/"): t for n, t in training.items() if n.startswith("model/")}
        checkpoint.load_weights(self.model, weights, origin)
        differing = {n: (saved.progress.get(n), v) for n, v in self._pace.items() if saved.progress.get(n) != v}
        if differing:
            changes = ", ".join(f"{name} from {before} to {now}" for name, (before, now) in differing.items())
            raise CheckpointError(f"{origin}: a training cannot go on with other steps than it began with: {changes}")
        if (self.average is None) != ("averaged" not in training):
            began, remedy = "without", "set it to 0"
            if self.average is None:
                began, remedy = "with", "set it as in the run's config.yaml"
            now = self.config.train.ema
            raise CheckpointError(
                f"{origin}: this training began {began} train.ema, but train.ema is {now} now: {remedy}"
            )
        try:
            if self.average is not None:
                self.average.n_averaged.copy_(training["averaged"])
            checkpoint.load_optimizer(self.optimizer, training)
            if self.scaler is not None and "scaler" in saved.progress:
                if not _fits(saved.progress["scaler"], self.scaler.state_dict()):
                    raise ValueError(f"scaler {shown(saved.progress['scaler'])}")
                self.scaler.load_state_dict(saved.progress["scaler"])
            _set_generators(training)
            if self.memory is not None:
                found = {re.fullmatch(rf"memory/(.+)/{processes.index()}", name): t for name, t in training.items()}
                own = {match[1]: tensor for match, tensor in found.items() if match}
                self.memory.restore(own, next(self.model.parameters()).device)
        except KeyError as error:
            raise CheckpointError(f"{origin}: damaged training state: no entry {error}") from error
        except (TypeError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{origin}: damaged training state: {error}") from error
        if not is_integer(saved.progress.get("step")) or saved.progress["step"] < 0:
            raise CheckpointError(f"{origin}: damaged training state: step {shown(saved.progress.get('step'))}")
        self.step = saved.progress["step"]


def _fits(state: Any, own: Mapping[str, float]) -> bool:
    """Whether a scaler can take a state: the numbers that it has itself, none of them too large for its tensors."""
    limits = {int: torch.iinfo(torch.int32).max, float: torch.finfo(torch.float32).max}
    return isinstance(state, dict) and all(
        type(state.get(name)) is type(value) and 0 <= state[name] <= limits[type(value)] for name, value in own.items()
    )


def _generators() -> dict[str, Tensor]:
    """The states of the random number generators of this process."""
    states = {"generator": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["generator_cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(training: Mapping[str, Tensor]) -> None:
    rank = processes.index()
    torch.set_rng_state(training[f"generator/{rank}"])
    if torch.cuda.is_available() and f"generator_cuda/{rank}" in training:
        torch.cuda.set_rng_state(training[f"generator_cuda/{rank}"])
