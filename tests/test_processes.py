"""Several processes train and evaluate as one would with the batch of all."""

import json
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from nursery import wait_until
from safetensors.torch import save_file
from test_engine import settings

from bevdet_core import checkpoint, launch
from bevdet_core.config import TrainConfig
from bevdet_core.models import build_backbone
from bevdet_core.runlog import read_log

# Without what differs by design: each process draws its own dropout and takes its own batch statistics.
ALIKE = {"model.dropout": 0.0, "model.backbone.norm": "affine", "train.epochs": 4, "train.accumulate": 2}


@pytest.fixture(scope="module")
def alike(synthetic_root, tmp_path_factory):
    """A configuration file for runs that are compared."""
    path = tmp_path_factory.mktemp("alike") / "alike.yaml"
    weights = path.with_name("backbone.safetensors")
    torch.manual_seed(0)
    save_file(build_backbone(settings(synthetic_root, **ALIKE).model.backbone).state_dict(), weights)
    path.write_text(yaml.safe_dump(settings(synthetic_root, model__backbone__weights=str(weights), **ALIKE).to_dict()))
    return path


@pytest.fixture(scope="module")
def alone(alike, nursery, tmp_path_factory):
    """The run of one process, with two frames in a batch."""
    run = tmp_path_factory.mktemp("alone") / "run"
    child = nursery.start(["train", alike, "--run", run, "--train.batch_size", 2])
    assert child.wait() == 0, child.told()
    return run


def assert_equal_weights(one, other):
    weights = [checkpoint.load(run / "model.safetensors").weights for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name


def assert_same_training(alone, together):
    ours, theirs = (read_log(run / "log.jsonl") for run in (together, alone))
    losses = [[line["losses"] | {"loss": line["loss"]} for line in log if "loss" in line] for log in (ours, theirs)]
    assert len(losses[0]) == 4
    for one, other in zip(*losses, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    weights = [checkpoint.load(run / "model.safetensors").weights for run in (together, alone)]
    worst = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[1])
    assert worst <= 1e-5


# As on a machine with GPUs, because "accelerate launch --cpu" starts one process whatever --num_processes says. What it
# asks for in place of train.precision must not count.
LAUNCHERS = {
    "torchrun": "torch.distributed.run --standalone --nproc_per_node 2",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 "
    "--mixed_precision bf16 --dynamo_backend no",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_of_a_launcher_train_as_one_with_the_doubled_batch(launcher, alike, alone, tmp_path):
    run = tmp_path / "run"
    start = [sys.executable, "-m", *LAUNCHERS[launcher].split()]
    words = ["-m", "bevdet_core.cli", "train", str(alike), "--run_folder", str(run), "--train.batch_size=1"]
    words += ["--train.evaluate_epochs=3"]  # an evaluation on the way as well
    finished = subprocess.run(start + words, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Warning" not in finished.stderr
    assert finished.stdout.count("nuScenes detection") == 1  # the main process speaks, and no other
    assert_same_training(alone, run)
    assert [line["step"] for line in read_log(run / "log.jsonl") if "metrics" in line] == [3, 4]


def test_an_evaluation_in_three_processes_is_that_of_one(alike, alone, nursery, synthetic_root, tmp_path):
    # Both scenes: of three processes two have one each, the third has nothing to do.
    both = ["--data.val_split", "scene-0061,scene-0103"]
    texts = []
    for count in (1, 3):
        out = tmp_path / str(count)
        children = nursery.start_together(count, ["evaluate", alone, "--out", out, *both])
        assert [child.wait() for child in children] == [0] * count, "".join(child.told() for child in children)
        texts.append([(out / name).read_text() for name in ("submission.json", "metrics.json")])
        assert len(json.loads(texts[-1][0])["results"]) == 8
    assert texts[0] == texts[1]


def test_a_stopped_run_of_two_processes_goes_on_with_the_dropout_of_each(alike, nursery, tmp_path):
    changed = ["--train.accumulate=1", "--model.dropout=0.2", "--train.epochs=3"]  # six steps
    runs = [tmp_path / "whole", tmp_path / "stopped"]
    words = [["train", alike, "--run", run, *changed] for run in runs]
    for child in nursery.start_together(2, words[0]):
        assert child.wait() == 0, child.told()
    children = nursery.start_together(2, words[1])
    wait_until(lambda: checkpoint.training_checkpoints(runs[1] / "checkpoints"), children[0])
    children[1].kill(signal.SIGTERM)  # one is told, all leave
    assert [child.wait() for child in children] == [143, 143], "".join(child.told() for child in children)
    assert len([line for line in read_log(runs[1] / "log.jsonl") if "loss" in line]) < 6
    for child in nursery.start_together(2, [*words[1], "--resume"]):
        assert child.wait() == 0, child.told()
    assert_equal_weights(*runs)
    alone = nursery.start([*words[1], "--resume"])
    assert alone.wait() == 1
    assert "processes from 2 to 1" in alone.told()


@pytest.mark.parametrize(
    ("count", "words", "told"),
    [
        (2, ["--train.batch_size=3"], "has 4 samples, too few for 2 processes with train.batch_size = 3"),
        (1, ["--train.accumulate=5"], "4 batches of 1 for each process, fewer than train.accumulate = 5"),
        (1, ["--train.precision=fp16"], "fp16 needs a GPU"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(alike, nursery, tmp_path, count, words, told):
    children = nursery.start_together(count, ["train", alike, "--run", tmp_path / "run", *words])
    assert [child.wait() for child in children] == [1] * count
    for child in children:
        assert told in child.told()
        assert "Traceback" not in child.told()
    assert not (tmp_path / "run").exists()


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(launch.LaunchError, match="process 2 of this machine has no GPU: there are 2"):
        launch.start()


def test_other_kinds_of_parallelism_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(launch.LaunchError, match="FSDP; training here is data parallel"):
        launch.start()


LOWER = "lower train.batch_size (and raise train.accumulate as much, to learn the same)"
SMALLER = "make the images (data.input_size, data.short_side) or the model smaller"


@pytest.mark.parametrize(
    ("batch_size", "recompute", "advice"),
    [
        (6, False, f"{LOWER} or set train.activation_checkpointing"),
        (6, True, LOWER),
        (1, False, f"{SMALLER} or set train.activation_checkpointing"),
    ],
)
def test_a_full_gpu_says_which_settings_help(monkeypatch, batch_size, recompute, advice):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 2**30))
    settings = TrainConfig(batch_size=batch_size, activation_checkpointing=recompute)
    with pytest.raises(launch.LaunchError) as told, launch.memory_advice(settings):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert str(told.value) == f"a batch of {batch_size} does not fit into the 80 GiB of the GPU: {advice}"
