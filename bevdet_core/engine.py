"""The training loop, read from top to bottom."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import checkpoint
from .checkpoint import Checkpoint, CheckpointError
from .config import Config, TrainConfig
from .data import build_dataset
from .data.index_file import describe_faults
from .data.loader import build_loader
from .detector import Detector
from .evaluation import Metrics, evaluate, require_metric
from .models import build_criterion, build_model
from .runlog import RunLog


def train(config: Config, run: Path, resume: bool = False, quiet: bool = False) -> Metrics:
    """Train a detector and evaluate it; everything that the run leaves lies in its folder.

    The folder holds `config.yaml`, `log.jsonl`, `tensorboard/`, `checkpoints/`, `model.safetensors` (the weights to
    keep) and `evaluation/`.

    Args:
        config: all settings.
        run: the folder.
        resume: go on from the newest complete checkpoint in `run`; with none there, start.
        quiet: no progress bar.

    Returns:
        The metrics of the final weights on the validation split.

    Raises:
        FileExistsError: `run` holds a run already and `resume` is off.
        CheckpointError: no checkpoint can be read, or it belongs to another model.
        LossError: a loss is not finite; the message names samples, layer and term. Checkpoints stay as they are.
    """
    settings = config.train
    checkpoints = run / "checkpoints"
    if not resume and checkpoint.training_checkpoints(checkpoints):
        raise FileExistsError(f"{run} already holds a run: continue it with --resume or choose another --run")
    require_metric(config.data)
    train_data = build_dataset(config.data, training=True)
    # Classes that only the annotation file named become a setting, so that all that follows keeps them in this order.
    config = replace(config, data=replace(config.data, classes=train_data.class_names))
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))

    precision = native_precision() if settings.precision == "auto" else settings.precision
    accelerator = Accelerator(mixed_precision=precision)
    torch.manual_seed(settings.seed)
    val_data = build_dataset(config.data, training=False)
    loader = build_loader(
        train_data,
        config.model.pixels,
        batch_size=settings.batch_size,
        workers=settings.workers,
        seed=settings.seed,
        training=True,
    )
    steps_per_epoch = len(loader) // settings.accumulate
    if steps_per_epoch == 0:
        raise ValueError(
            f"the training split has {len(loader)} batches of {settings.batch_size}, fewer than train.accumulate = "
            f"{settings.accumulate}"
        )

    model = build_model(config.model, len(train_data.class_names)).to(accelerator.device)
    criterion = build_criterion(config.model)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), weight_decay=settings.weight_decay, fused=True)
    average = None
    if settings.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
    step = _restore(checkpoints, model, average, optimizer) if resume else 0
    network, optimizer = accelerator.prepare(model, optimizer)
    kept = average.module if average is not None else model
    detector = Detector(kept, config, train_data.class_names)

    def save_checkpoint() -> None:
        path = checkpoint.step_path(checkpoints, step)
        checkpoint.save(path, _snapshot(model, average, optimizer, config, train_data.class_names, step))
        checkpoint.rotate(checkpoints, settings.keep_checkpoints)

    def run_evaluation(folder: Path) -> Metrics:
        metrics = evaluate(detector, val_data, folder, settings.batch_size, settings.workers, quiet=quiet)
        log.evaluation(step, step / steps_per_epoch, metrics.summary())
        return metrics

    with RunLog(run, settings.epochs * steps_per_epoch, step, quiet) as log:
        log.say(
            f"{len(train_data)} training samples, {len(val_data)} for validation, "
            f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters to train, run folder {run}"
        )
        if train_data.index.faults:
            log.say(f"left out: {describe_faults(config.data.root, train_data.index.faults)}")
        for epoch in range(step // steps_per_epoch, settings.epochs):
            network.train()
            loader.start(epoch, first_batch=step % steps_per_epoch * settings.accumulate)
            batches = iter(loader)
            for _ in range(step % steps_per_epoch, steps_per_epoch):
                lr = learning_rate(settings, step, steps_per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["lr_factor"]
                for _ in range(settings.accumulate):
                    batch, targets = next(batches)
                    if targets is None:
                        raise ValueError(f"the training split has samples without annotations: {list(batch.tokens)}")
                    batch, targets = batch.to(accelerator.device), [t.to(accelerator.device) for t in targets]
                    batch.targets = targets  # what some models learn from beside the criterion
                    with accelerator.autocast():
                        predictions = network(batch)
                    losses = criterion(predictions, targets, batch.tokens)
                    accelerator.backward(losses["total"] / settings.accumulate)
                grad_norm = accelerator.clip_grad_norm_(network.parameters(), settings.clip_norm or math.inf)
                optimizer.step()
                optimizer.zero_grad()
                if average is not None:
                    average.update_parameters(model)
                step += 1
                log.advance(f"{epoch + 1}/{settings.epochs}", batch.images.shape[:2].numel() * settings.accumulate)
                if step % settings.log_steps == 0:
                    terms = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
                    log.training(step, step / steps_per_epoch, terms, lr, float(grad_norm))
                if settings.checkpoint_steps and step % settings.checkpoint_steps == 0:
                    save_checkpoint()
            for line in loader.report():
                log.say(line)
            save_checkpoint()
            last = epoch + 1 == settings.epochs
            if not last and settings.evaluate_epochs and (epoch + 1) % settings.evaluate_epochs == 0:
                run_evaluation(run / "evaluation" / f"epoch-{epoch + 1:03d}")
        checkpoint.save(run / "model.safetensors", detector.checkpoint())
        return run_evaluation(run / "evaluation")


def native_precision() -> Literal["no", "bf16"]:
    """bf16 where the device computes with it natively, which is about twice as fast; float32 elsewhere."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "no"
    features: dict = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
    return "bf16" if any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16")) else "no"


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


def _snapshot(
    model: nn.Module,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    config: Config,
    class_names: tuple[str, ...],
    step: int,
) -> Checkpoint:
    """All that a run needs to go on as if nothing had happened; its weights are those that one would keep."""
    training = checkpoint.optimizer_tensors(optimizer)
    training["generator"] = torch.get_rng_state()
    if torch.cuda.is_available():
        training["generator_cuda"] = torch.cuda.get_rng_state()
    weights = model.state_dict()
    if average is not None:
        training |= {f"model/{name}": t for name, t in weights.items()}
        training["averaged"] = average.n_averaged
        weights = average.module.state_dict()
    return Checkpoint(weights, config.to_dict(), class_names, training, {"step": step})


def _restore(
    folder: Path,
    model: nn.Module,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Load the newest complete checkpoint of a folder; returns its step, 0 where there is none."""
    for path in reversed(checkpoint.training_checkpoints(folder)):
        try:
            saved = checkpoint.load(path, training=True)
        except CheckpointError as error:
            print(f"{error}; trying the one before")
            continue
        weights: dict[str, Tensor] = saved.weights
        if average is not None:
            checkpoint.load_weights(average.module, weights, str(path))
            average.n_averaged.copy_(saved.training["averaged"])
            weights = {n.removeprefix("model/"): t for n, t in saved.training.items() if n.startswith("model/")}
        checkpoint.load_weights(model, weights, str(path))
        checkpoint.load_optimizer(optimizer, saved.training)
        torch.set_rng_state(saved.training["generator"])
        if "generator_cuda" in saved.training and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved.training["generator_cuda"])
        return saved.progress["step"]
    return 0
