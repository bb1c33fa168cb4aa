"""What the settings of a training promise, seen in what a run does."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_config import CONFIGS
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from bevdet_core import checkpoint, engine
from bevdet_core.cli import main
from bevdet_core.config import Config, ConfigError, TrainConfig, load_config
from bevdet_core.engine import train
from bevdet_core.evaluation import nuscenes
from bevdet_core.files import written_aside
from bevdet_core.models import build_model
from bevdet_core.models.resnet import ResNet
from bevdet_core.optimization import learning_rate, parameter_groups
from bevdet_core.runlog import read_log
from bevdet_core.training_state import TrainingState

ADAM_EPS = 1e-8  # below which Adam no longer makes up for the size of a gradient
SMALL = {
    "model": {**tiny.DETR3D, "perspective": True, "backbone": {**tiny.BACKBONE, "norm": "batch"}},
    "data": {**tiny.NUSCENES, "version": "v1.0-mini", "train_split": "mini_train", "val_split": "mini_val"},
    # Four steps. The rate is so large that a wrong step is not lost in rounding.
    "train": {"epochs": 1, "workers": 0, "lr": 0.01, "warmup_steps": 0, "log_steps": 1},
}


def settings(root: Path, **overrides: Any) -> Config:
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config(SMALL, {"data.root": str(root), **dotted})


@dataclass
class Step:
    """What an optimizer was given, and what it did."""

    rates: dict[float, float]  # by factor
    gradients: list[Tensor]
    before: list[Tensor]
    after: list[Tensor] = field(default_factory=list)

    @property
    def norm(self) -> float:
        return float(torch.cat([gradient.double().flatten() for gradient in self.gradients]).norm())

    @property
    def farthest(self) -> float:
        """By how much the weight has changed that has changed most."""
        return max(float((after - before).abs().max()) for before, after in zip(self.before, self.after, strict=True))


@pytest.fixture(scope="module", autouse=True)
def no_curves() -> Iterator[None]:
    """Leaves out a picture that takes longer than all else in these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuscenes, "draw_curves", lambda *arguments: None)
        yield


@pytest.fixture
def steps() -> Iterator[list[Step]]:
    """Every step that an optimizer takes during the test."""
    seen: list[Step] = []

    def learned(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def before(optimizer: torch.optim.Optimizer, *arguments: object) -> None:
        rates = {group["lr_factor"]: group["lr"] for group in optimizer.param_groups}
        gradients = [parameter.grad.clone() for parameter in learned(optimizer)]
        seen.append(Step(rates, gradients, [parameter.detach().clone() for parameter in learned(optimizer)]))

    def after(optimizer: torch.optim.Optimizer, *arguments: object) -> None:
        seen[-1].after = [parameter.detach().clone() for parameter in learned(optimizer)]

    with register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after):
        yield seen


def weights_of(run: Path) -> dict[str, Tensor]:
    return checkpoint.load(run / "model.safetensors").weights


def told(run: Path) -> list[dict[str, Any]]:
    """The log without what a clock has said."""
    clocks = ("images_per_second", "loader_wait")
    return [{name: value for name, value in line.items() if name not in clocks} for line in read_log(run / "log.jsonl")]


@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_parameter_that_learns_is_in_one_group_with_its_factor(name):
    model = tiny.detector(name).model
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)
    groups = parameter_groups(model, TrainConfig(lr=2e-4, lr_factors={"backbone": 0.1, ".weight": 0.5}))
    expected = {}
    for of, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected[id(parameter)] = 0.1 if of.startswith("backbone") else 0.5 if of.endswith(".weight") else 1.0
    assert {id(parameter): g["lr_factor"] for g in groups for parameter in g["params"]} == expected
    assert sum(len(group["params"]) for group in groups) == len(expected)
    assert [group["lr"] for group in groups] == pytest.approx([2e-4 * group["lr_factor"] for group in groups])


def test_the_first_part_that_is_found_decides_the_factor():
    model = tiny.detector("detr").model
    groups = parameter_groups(model, TrainConfig(lr_factors={"weight": 0.5, "backbone": 0.1}))
    factors = {id(parameter): group["lr_factor"] for group in groups for parameter in group["params"]}
    assert factors[id(model.get_parameter("backbone.conv1.weight"))] == 0.5


def test_a_factor_of_what_is_frozen_is_no_mistake():
    model = tiny.detector("detr").model
    model.backbone.requires_grad_(False)
    (group,) = parameter_groups(model, TrainConfig(lr_factors={"backbone": 0.1}))
    assert group["lr_factor"] == 1.0


def test_a_factor_of_nothing_is_named():
    model = tiny.detector("detr").model
    with pytest.raises(ConfigError, match=r"train\.lr_factors: no parameter .* 'bakcbone' .*; nearest: backbone$"):
        parameter_groups(model, TrainConfig(lr_factors={"class_head": 0.1, "bakcbone": 0.1}))


def test_a_factor_of_nothing_ends_a_training_in_one_line(synthetic_root, tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings(synthetic_root).to_dict()))
    words = ["train", str(tmp_path / "small.yaml"), "--run", str(tmp_path / "run")]
    assert main([*words, "--train.lr_factors={sampling_ofsets: 0.1}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bevdet train: train.lr_factors: no parameter of this model has 'sampling_ofsets'")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_factor_of_a_shipped_configuration_has_parameters_that_learn(path):
    config = load_config(path)
    with torch.device("meta"):  # the full size, in no memory
        model = build_model(config.model, 10, pretrained=False)
    factors = {group["lr_factor"] for group in parameter_groups(model, config.train)}
    assert factors == {1.0, *config.train.lr_factors.values()}


def test_the_rates_follow_schedule_and_factors_step_by_step(synthetic_root, tmp_path, steps):
    config = settings(synthetic_root, train__warmup_steps=2, train__lr_factors={"backbone": 0.1, "head": 0.5})
    train(config, tmp_path / "run", quiet=True)
    rates = [learning_rate(config.train, step, steps_per_epoch=4) for step in range(4)]
    assert [line["lr"] for line in told(tmp_path / "run") if "lr" in line] == rates
    assert [step.rates for step in steps] == [{1.0: rate, 0.1: rate * 0.1, 0.5: rate * 0.5} for rate in rates]


def test_gradients_are_clipped_to_the_norm_that_is_set(synthetic_root, tmp_path, steps):
    clip = 1e-12
    for norm in (0.0, 1e9, clip):
        once = {"train.accumulate": 4, "train.weight_decay": 0.0, "train.lr_factors": {}, "train.clip_norm": norm}
        train(settings(synthetic_root, **once), tmp_path / str(norm), quiet=True)
    free, loose, clipped = steps
    for norm in (0.0, 1e9, clip):  # the log tells what came, not what was left
        assert told(tmp_path / str(norm))[0]["grad_norm"] == pytest.approx(free.norm, rel=1e-5)
    assert clipped.norm == pytest.approx(clip, rel=1e-5, abs=0)
    for ours, same, full in zip(clipped.gradients, loose.gradients, free.gradients, strict=True):
        assert torch.equal(same, full)
        torch.testing.assert_close(ours * (free.norm / clip), full, rtol=1e-4, atol=1e-9)
    # The first step of Adam is g / (|g| + eps): the rate itself for any gradient that is not tiny.
    lr = SMALL["train"]["lr"]
    assert free.farthest == pytest.approx(lr, rel=1e-3)
    assert 0 < clipped.farthest <= lr * clip / ADAM_EPS


def test_gradients_are_averaged_over_the_batches_of_a_step(synthetic_root, tmp_path, steps):
    # With a rate of 0 the weights stay, and the same batches can be made one, two or four to a step.
    for count in (1, 2, 4):
        still = settings(synthetic_root, train__lr=0.0, train__clip_norm=0.0, train__accumulate=count)
        train(still, tmp_path / str(count), quiet=True)
    single, pairs, (four,) = steps[:4], steps[4:6], steps[6:]
    assert not torch.equal(single[0].gradients[0], single[1].gradients[0])
    for step, parts in [(pairs[0], single[:2]), (pairs[1], single[2:]), (four, single)]:
        for gradient, *each in zip(step.gradients, *(part.gradients for part in parts), strict=True):
            torch.testing.assert_close(gradient, sum(each) / len(parts), rtol=1e-5, atol=1e-9)


def test_the_kept_weights_are_the_moving_average_of_those_that_learn(synthetic_root, tmp_path):
    often = {"train.checkpoint_steps": 1, "train.keep_checkpoints": 4}
    config = settings(synthetic_root, train__ema=0.7, **often)
    train(config, tmp_path / "run", quiet=True)
    found = checkpoint.training_checkpoints(tmp_path / "run" / "checkpoints")
    saved = [checkpoint.load(path, training=True) for path in found]
    assert len(saved) == 4
    names = [name for name, tensor in saved[0].weights.items() if tensor.is_floating_point()]
    assert any(name.endswith("running_mean") for name in names)  # statistics are averaged too
    average = {name: saved[0].training[f"model/{name}"].double() for name in names}
    for number, state in enumerate(saved):
        for name in names:
            learned = state.training[f"model/{name}"].double()
            average[name] = average[name] if number == 0 else 0.7 * average[name] + 0.3 * learned
            torch.testing.assert_close(state.weights[name].double(), average[name], rtol=1e-6, atol=1e-8, msg=name)
    kept = weights_of(tmp_path / "run")
    assert all(torch.equal(kept[name], saved[-1].weights[name]) for name in kept)


def test_bfloat16_is_for_the_training_alone(synthetic_root, tmp_path):
    seen = []

    def look(module: nn.Module, inputs: object, outputs: Any) -> None:
        if isinstance(module, ResNet):
            seen.append((torch.is_grad_enabled(), outputs[0].dtype))

    config = settings(synthetic_root, train__precision="bf16", train__epochs=2, train__evaluate_epochs=1)
    with register_module_forward_hook(look):
        train(config, tmp_path / "run", quiet=True)
    learns, looks = (True, torch.bfloat16), (False, torch.float32)
    assert [phase for phase, _ in groupby(seen)] == [learns, looks, learns, looks]
    assert {tensor.dtype for tensor in weights_of(tmp_path / "run").values()} <= {torch.float32, torch.int64}
    log = [line for line in told(tmp_path / "run") if "loss" in line]
    assert len(log) == 8
    assert all(np.isfinite([line["loss"], line["grad_norm"], *line["losses"].values()]).all() for line in log)
    train(settings(synthetic_root), tmp_path / "exact", quiet=True)
    first, exact = log[0]["losses"], told(tmp_path / "exact")[0]["losses"]  # of the same weights
    assert first != exact
    assert first == pytest.approx(exact, rel=2**-7)  # bfloat16 has 8 bits


def test_activation_checkpointing_learns_the_same_weights(synthetic_root, tmp_path):
    ran: dict[bool, list[nn.Module]] = {False: [], True: []}
    for wanted, modules in ran.items():
        config = settings(synthetic_root, train__activation_checkpointing=wanted, model__dropout=0.2, train__ema=0.9)
        with register_module_forward_hook(lambda module, *_, modules=modules: modules.append(module)):
            train(config, tmp_path / str(wanted), quiet=True)
    assert len(ran[True]) > len(ran[False])  # it did compute again
    ours, same = weights_of(tmp_path / "False"), weights_of(tmp_path / "True")
    assert ours.keys() == same.keys()
    for name in ours:
        assert torch.equal(ours[name], same[name]), name


def stop_at(step: int) -> RemovableHandle:
    """Ends a run, as a kill would, where the optimizer has taken so many steps; a context manager."""
    count = iter(range(1, step + 1))

    def stop(*arguments: object) -> None:
        if next(count) == step:
            raise KeyboardInterrupt

    return register_optimizer_step_post_hook(stop)


def test_tensorboard_shows_what_the_log_says_after_a_kill_as_well(synthetic_root, tmp_path):
    run = tmp_path / "run"
    config = settings(synthetic_root, train__epochs=2, train__evaluate_epochs=1, train__checkpoint_steps=5)
    with stop_at(7), pytest.raises(KeyboardInterrupt):  # when six are told, and five are in a checkpoint
        train(config, run, quiet=True)
    assert told(run)[-1]["step"] == 6
    train(config, run, resume=True, quiet=True)
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in told(run):
        losses = line.get("losses", {})
        shown = {f"train/{name}": line[name] for name in ("loss", "lr", "grad_norm") if name in line}
        shown |= {f"train/{name}": value for name, value in losses.items()}
        shown |= {f"val/{name}": value for name, value in line.get("metrics", {}).items()}
        for tag, value in shown.items():
            expected.setdefault(tag, []).append((line["step"], float(np.float32(value))))
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert {"train/loss", "train/perspective/loss_box", "val/NDS"} <= found.keys()
    assert [step for step, _ in found["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in found["val/NDS"]] == [4, 8]
    assert found == expected


def test_an_evaluation_that_a_kill_prevented_is_made_up_for_once(synthetic_root, tmp_path, monkeypatch):
    evaluations = {"train.epochs": 2, "train.accumulate": 4, "train.evaluate_epochs": 1}
    config = settings(synthetic_root, model__dropout=0.2, **evaluations)
    train(config, tmp_path / "whole", quiet=True)
    run = tmp_path / "killed"

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, run, quiet=True)
    assert [line["step"] for line in told(run)] == [1]
    with stop_at(1), pytest.raises(KeyboardInterrupt):  # the evaluation is done, the checkpoint is that from before it
        train(config, run, resume=True, quiet=True)
    assert [(line["step"], "metrics" in line) for line in told(run)] == [(1, False), (1, True)]
    assert (run / "evaluation" / "epoch-001" / "metrics.json").exists()
    train(config, run, resume=True, quiet=True)
    assert told(run) == told(tmp_path / "whole")
    ours, same = weights_of(tmp_path / "whole"), weights_of(run)
    assert all(torch.equal(ours[name], same[name]) for name in ours)


def test_the_scale_of_16_bit_gradients_goes_on_where_it_was(tmp_path):
    def training(scale: float) -> TrainingState:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        return TrainingState(model, None, optimizer, scaler, Config(), ("car",), steps_per_epoch=10)

    def step(state: TrainingState, factor: float = 1.0) -> float:
        loss = state.model(torch.ones(1, 3)).square().sum() * factor
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.step += 1
        return state.scaler.get_scale()

    whole = training(1024.0)
    assert [step(whole), step(whole, float("inf")), step(whole)] == [1024.0, 512.0, 512.0]
    whole.save(tmp_path)
    resumed = training(65536.0)
    resumed.restore(tmp_path)
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    # The second good step in a row: one before the checkpoint, one after it.
    assert [step(whole), step(resumed)] == [1024.0, 1024.0]
    assert torch.equal(whole.model.weight, resumed.model.weight)


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        status = os.fstat(handle)
        (name,) = [path.name for path in [tmp_path, *tmp_path.iterdir()] if os.path.samestat(path.stat(), status)]
        done.append(("sync", name, None if stat.S_ISDIR(status.st_mode) else status.st_size))
        sync(handle)

    def replaced(source: Path, target: Path) -> None:
        done.append(("replace", Path(source).name, Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with written_aside(tmp_path / "weights") as aside:
        aside.write_bytes(b"complete")
        assert done == []
    assert done == [("sync", aside.name, 8), ("replace", aside.name, "weights"), ("sync", tmp_path.name, None)]
    assert (tmp_path / "weights").read_bytes() == b"complete"
