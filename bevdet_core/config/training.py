"""How the detectors learn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16", "auto"]  # see `TrainConfig.precision`


@dataclass(frozen=True)
class TrainConfig:
    """The training run.

    Args:
        load_from: run folder or .safetensors file of a detector whose weights training starts from, as far as they fit;
            what does not is said. Classes of the same name keep their rows, whatever their order.
        epochs: passes over the training split.
        batch_size: samples per step and process.
        accumulate: batches whose gradients are averaged before the weights change.
        workers: processes that load and augment data; 0 loads in the training process.
        lr: of AdamW, for everything that `lr_factors` does not name.
        lr_factors: part of a parameter's name -> factor on its learning rate; the first part found decides.
        weight_decay: of AdamW.
        clip_norm: largest gradient norm; 0 never clips.
        warmup_steps: the rate rises linearly from a third over this many steps.
        schedule: "cosine" falls to a thousandth, "step" is multiplied by 0.1 at each of the milestones.
        milestones: epochs, of the "step" schedule.
        ema: decay of the moving average of the weights, which is what is evaluated and kept; 0 keeps the last weights.
        activation_checkpointing: compute the inside of residual blocks and transformer layers again in the backward
            pass instead of keeping it: much less memory, about a third more time.
        precision: "fp32", or autocast to "bf16" or "fp16"; "auto" is bf16 where the hardware has units for it.
        deterministic: compute with algorithms that give the same bits in every run on the same machine, which may be
            slower.
        seed: of the initial weights, the order of the samples and their augmentation.
        log_steps: steps between two lines of the log.
        evaluate_epochs: epochs between two evaluations; 0 evaluates after the last epoch only.
        checkpoint_steps: steps between two checkpoints; 0 writes one after each epoch only.
        keep_checkpoints: older ones are removed.
    """

    load_from: str | None = None
    epochs: int = 24
    batch_size: int = 1
    accumulate: int = 1
    workers: int = 2
    lr: float = 2e-4
    lr_factors: dict[str, float] = field(default_factory=lambda: {"backbone": 0.1})
    weight_decay: float = 0.01
    clip_norm: float = 35.0
    warmup_steps: int = 500
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    ema: float = 0.0
    activation_checkpointing: bool = False
    precision: Precision = "fp32"
    deterministic: bool = False
    seed: int = 0
    log_steps: int = 10
    evaluate_epochs: int = 0
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise ConfigError(f"train.ema must lie in [0, 1), got {self.ema}")
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("train.schedule step needs train.milestones, the epochs at which the rate falls")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(f"train.milestones must rise, got {list(self.milestones)}")
