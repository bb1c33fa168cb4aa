"""The training loop, read from top to bottom."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import checkpoint, launch, processes
from .config import Config, ConfigError, queue_of, streams
from .data import build_dataset
from .data.index_file import describe_faults
from .data.loader import build_loader, worker_advice
from .detector import Detector
from .evaluation import Metrics, evaluate, require_metric
from .files import write_text
from .fine_tuning import load_start, require_start
from .interruption import GO_ON, Interrupted, StopSignals
from .models import build_criterion, build_model
from .models.bevformer import BevFormer
from .models.recomputation import recompute_blocks
from .optimization import learning_rate, parameter_groups
from .runlog import RunLog, read_log
from .training_state import TrainingState

LANES = 8  # for each sample of a batch, scenes by turns where frames of a scene come one after the other


def train(config: Config, run: Path, resume: bool = False, quiet: bool = False) -> Metrics:
    """Train a detector and evaluate it; everything that the run leaves lies in its folder.

    The folder holds `config.yaml`, `log.jsonl`, `tensorboard/`, `checkpoints/`, `model.safetensors` (the weights to
    keep) and `evaluation/`. Started by `torchrun` or `accelerate launch`, every process calls this, and they train
    together as one would with the batch of all; see `launch`.

    Args:
        config: all settings.
        run: the folder.
        resume: go on from the newest complete checkpoint in `run`; with none there, start.
        quiet: no progress bar.

    Returns:
        The metrics of the final weights on the validation split.

    Raises:
        ConfigError: a backbone that starts from random weights is frozen, or a resumed run is longer than it should be.
        FileExistsError: `run` holds a run already and `resume` is off.
        ValueError: a split without annotations.
        LaunchError: the run does not fit the processes and devices that it was started on.
        CheckpointError: no checkpoint can be read, it belongs to another model, or none can be written; complete ones
            stay as they are.
        LossError: a loss is not finite; the message names samples, layer and term. Checkpoints stay as they are.
        Interrupted: SIGTERM or Ctrl-C came; there is a checkpoint of the last step.
    """
    begun = bool(checkpoint.training_checkpoints(run / "checkpoints"))
    if begun and not resume:
        raise FileExistsError(f"{run} already holds a run: continue it with --resume or choose another --run")
    require_metric(config.data)
    if not begun:
        require_start(config)
    with launch.deterministic_algorithms(config.train.deterministic), launch.memory_advice(config.train):
        return _train(config, run, resume, begun, quiet)


def _train(config: Config, run: Path, resume: bool, begun: bool, quiet: bool) -> Metrics:
    settings = config.train
    accelerator = launch.start(settings)
    device, main = accelerator.device, processes.is_main()
    train_data = build_dataset(config.data, training=True, queue=queue_of(config.model))
    val_data = build_dataset(config.data, training=False)
    if not val_data.index.annotated:
        raise ValueError(
            f"data.val_split {val_data.split!r} of {config.data.root} has no annotations, by which the training could "
            "be scored: choose another one"
        )
    # Classes that only the annotation file named become a setting, so that all that follows keeps them in this order.
    config = replace(config, data=replace(config.data, classes=train_data.class_names))
    loader = build_loader(
        train_data,
        config.model.pixels,
        batch_size=settings.batch_size,
        workers=settings.workers,
        seed=settings.seed,
        training=True,
        rank=processes.index(),
        world_size=processes.count(),
        lanes=LANES * settings.batch_size if streams(config.model) else 0,
    )
    launch.check_batches(len(train_data), len(loader), settings, processes.count())
    steps_per_epoch = len(loader) // settings.accumulate
    torch.manual_seed(settings.seed)
    pretrained = settings.load_from is None and not begun  # what has begun has weights of its own
    model = build_model(config.model, len(train_data.class_names), pretrained)
    start = None
    if settings.load_from is not None and not begun:
        start = load_start(model, config.model, train_data.class_names, settings.load_from)
    model = model.to(device)
    criterion = build_criterion(config.model)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), weight_decay=settings.weight_decay, fused=True)
    average = None
    if settings.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
    if settings.activation_checkpointing:
        recompute_blocks(model)
    if not main:  # the same weights, but dropout and noise of its own
        torch.manual_seed(settings.seed + processes.index())
    memory = model.training_memory(loader.lanes) if isinstance(model, BevFormer) and loader.lanes else None
    state = TrainingState(
        model, average, optimizer, accelerator.scaler, config, train_data.class_names, steps_per_epoch, memory
    )
    told = state.restore(run / "checkpoints") if resume else []
    total_steps = settings.epochs * steps_per_epoch
    if state.step > total_steps:
        raise ConfigError(f"train.epochs {settings.epochs}: {run} has {state.step / steps_per_epoch:g} behind it")
    if state.step == total_steps:
        told.append("nothing is left to learn; the final weights are evaluated")
    if main:  # not before: what was refused leaves no trace
        run.mkdir(parents=True, exist_ok=True)
        write_text(run / "config.yaml", config.to_yaml())
    network, optimizer = accelerator.prepare(model, optimizer)
    # Where 16 bits are enough is said below; without this, an evaluation would compute with them too.
    accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    detector = Detector(state.kept, config, train_data.class_names)

    def run_evaluation(folder: Path, weights: Path) -> Metrics:
        processes.share_buffers(state.kept)
        with log.aside():
            metrics = evaluate(detector, val_data, folder, settings.batch_size, settings.workers, quiet, weights)
        log.evaluation(state.step, state.step / steps_per_epoch, metrics.summary())
        return metrics

    def evaluation_due(epochs: int) -> bool:
        """Whether so many epochs have just ended, an evaluation follows them, and the log does not hold it yet."""
        ended = epochs > 0 and state.step == epochs * steps_per_epoch
        if not ended or not settings.evaluate_epochs or epochs % settings.evaluate_epochs:
            return False
        lines = read_log(run / "log.jsonl") if main else []
        return not processes.from_main(any(line["step"] == state.step and "metrics" in line for line in lines))

    with (
        RunLog(run if main else None, total_steps, state.step, quiet) as log,
        contextlib.closing(loader),
    ):
        together = f" in each of {processes.count()} processes" if processes.count() > 1 else ""
        log.say(
            f"{len(train_data)} training samples in batches of {settings.batch_size}{together}, {len(val_data)} for "
            f"validation, {sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters to train, "
            f"run folder {run}"
        )
        for line in (*told, *([str(start)] if start is not None else [])):
            log.say(line)
        if train_data.index.faults:
            log.say(f"left out: {describe_faults(config.data.root, train_data.index.faults)}")
        if advice := worker_advice(settings.workers):
            log.say(advice)
        for epoch in range(state.step // steps_per_epoch, settings.epochs):
            if evaluation_due(epoch):  # before the next epoch: a run that was killed here makes up for it
                weights = checkpoint.step_path(run / "checkpoints", state.step)
                run_evaluation(run / "evaluation" / f"epoch-{epoch:03d}", weights)
            network.train()
            with StopSignals() as stop:
                loader.start(epoch, first_batch=state.step % steps_per_epoch * settings.accumulate)
                with log.waiting():
                    batches = iter(loader)
                if memory is not None and state.step % steps_per_epoch == 0:
                    memory.forget()
                for _ in range(state.step % steps_per_epoch, steps_per_epoch):
                    lr = learning_rate(settings, state.step, steps_per_epoch)
                    for group in optimizer.param_groups:
                        group["lr"] = lr * group["lr_factor"]
                    for part in range(1, settings.accumulate + 1):
                        with log.waiting():
                            batch, targets = next(batches)
                        assert targets is not None  # a data set for training has annotations, or is refused
                        batch, targets = batch.to(device), [t.to(device) for t in targets]
                        batch.targets = targets  # what some models learn from beside the criterion
                        last = part == settings.accumulate  # of the batches that make up the step
                        with contextlib.nullcontext() if last else accelerator.no_sync(network):
                            with accelerator.autocast():
                                predictions = network(batch) if memory is None else network(batch, memory)
                            losses = criterion(predictions, targets, batch.tokens)
                            accelerator.backward(losses["total"] / settings.accumulate)
                    grad_norm = accelerator.clip_grad_norm_(network.parameters(), settings.clip_norm or math.inf)
                    optimizer.step()
                    optimizer.zero_grad()
                    if average is not None:
                        average.update_parameters(model)
                    state.step += 1
                    images = batch.images.shape[:2].numel() * settings.accumulate * processes.count()
                    log.advance(f"{epoch + 1}/{settings.epochs}", images)
                    if state.step % settings.log_steps == 0 or state.step == total_steps:
                        values = processes.mean(torch.stack(list(losses.values())).detach()).tolist()
                        terms = dict(zip(losses, values, strict=True))
                        log.training(state.step, state.step / steps_per_epoch, terms, lr, float(grad_norm))
                    stopped = processes.largest(stop.received, device)
                    if stopped or (settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0):
                        state.save(run / "checkpoints")
                    if stopped:
                        raise Interrupted(stopped, f"stopped after step {state.step}; {GO_ON}")
                for line in loader.report():
                    log.say(line)
                state.save(run / "checkpoints")
        if log.pace.images:
            log.say(
                f"trained at {log.pace.rate:.1f} images/s, {log.pace.waiting:.1%} of the time waiting for the loader"
            )
        with StopSignals():
            if main:
                checkpoint.save(run / "model.safetensors", detector.checkpoint())
        return run_evaluation(run / "evaluation", run / "model.safetensors")
