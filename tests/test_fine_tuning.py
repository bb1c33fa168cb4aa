"""Training that starts from the weights of another detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from bevdet_core import checkpoint
from bevdet_core.checkpoint import CheckpointError
from bevdet_core.cli import main
from bevdet_core.config import ConfigError, load_config
from bevdet_core.fine_tuning import class_axes, load_start, require_start
from bevdet_core.models import build_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """DETR with the classes car, dog, cat."""
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, tiny.detector("detr").checkpoint())
    return path


@pytest.mark.parametrize("name", tiny.MODELS)
def test_what_counts_classes_is_found(name: str) -> None:
    detector = tiny.detector(name)
    axes = class_axes(detector.config.model, len(tiny.NAMES))
    read = {key: axis for key, axis in axes.items() if "proposal_embed" in key}  # what reads class logits
    said = {key: axis for key, axis in axes.items() if key not in read}
    assert all("class_head" in key for key in said)
    assert set(said.values()) == {0}
    assert {key.rpartition(".")[2] for key in said} == {"weight", "bias"}
    assert set(read.values()) == ({1} if tiny.MODELS[name].get("num_proposals") else set())


def test_the_same_detector_is_taken_whole(saved: Path) -> None:
    config = tiny.detector("detr").config.model
    model = build_model(config, 3)
    start = load_start(model, config, tiny.NAMES, saved)
    assert (start.anew, start.kept_classes) == ((), tiny.NAMES)
    weights = checkpoint.load(saved).weights
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_classes_of_the_same_name_keep_their_rows(saved: Path) -> None:
    config = tiny.detector("detr").config.model
    torch.manual_seed(1)
    model = build_model(config, 4)
    drawn = model.state_dict()["class_head.weight"].clone()
    start = load_start(model, config, ("bird", "cat", "car", "tree"), saved)
    assert start.kept_classes == ("cat", "car")
    assert start.anew == ()
    own, given = model.state_dict()["class_head.weight"], checkpoint.load(saved).weights["class_head.weight"]
    assert torch.equal(own[[1, 2, 4]], given[[2, 0, 3]])  # the last says that there is no object
    assert torch.equal(own[[0, 3]], drawn[[0, 3]])


def test_queries_read_proposals_by_the_names_of_the_classes(tmp_path: Path) -> None:
    detector = tiny.detector("detr3d_proposals")
    checkpoint.save(tmp_path / "model.safetensors", detector.checkpoint())
    config = detector.config.model
    model = build_model(config, 4)
    load_start(model, config, ("bird", "cat", "car", "tree"), tmp_path / "model.safetensors")
    name = "head.proposal_embed.0.weight"  # [D, C + what else is known of a box]
    own, given = model.state_dict()[name], detector.model.state_dict()[name]
    assert torch.equal(own[:, [1, 2]], given[:, [2, 0]])
    assert torch.equal(own[:, 4:], given[:, 3:])


def test_what_does_not_fit_is_told(saved: Path) -> None:
    config = replace(tiny.detector("detr").config.model, num_queries=9)
    start = load_start(build_model(config, 3), config, tiny.NAMES, saved)
    assert start.anew == ("query_embed.weight",)
    assert str(start).endswith("3 classes of the same name; anew: query_embed.weight")


def test_nothing_fits(saved: Path) -> None:
    config = load_config(
        {
            "model": {**tiny.PETR, "embed_dim": 24, "num_heads": 2, "backbone": {"depth": 18, "width": 4}},
            "data": tiny.NUSCENES,
        }
    ).model
    with pytest.raises(CheckpointError, match="none of its weights fits"):
        load_start(build_model(config, 3), config, ("a", "b", "c"), saved)
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such run folder or checkpoint file"):
        load_start(build_model(config, 3), config, ("a", "b", "c"), "none.safetensors")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("coco/deformable_detr_r50", "model.backbone.norm frozen and model.backbone.frozen_stages 1"),
        ("nuscenes/petr_r50", "model.backbone.norm frozen"),
    ],
)
def test_a_frozen_backbone_does_not_stay_random(name: str, kept: str, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert main(["train", f"configs/{name}.yaml", "--run", str(run)]) == 1
    assert capsys.readouterr().err == (
        f"bevdet train: {kept} would keep random weights as they are: name weights to start from with "
        "--model.backbone.weights FILE or --train.load_from RUN, or train all of it with --model.backbone.norm batch "
        "--model.backbone.frozen_stages 0\n"
    )
    assert not run.exists()


@pytest.mark.parametrize(
    "ways",
    [
        {"model.backbone.weights": "resnet50.pth"},
        {"train.load_from": "runs/r50"},
        {"model.backbone.norm": "batch", "model.backbone.frozen_stages": "0"},
    ],
)
def test_the_ways_out_are_ways_out(ways: dict[str, str]) -> None:
    path = "configs/nuscenes/bevformer_base.yaml"
    require_start(load_config(path, ways))
    for norm, frozen_stages in (("affine", "0"), ("batch", "1")):
        with pytest.raises(ConfigError, match="would keep random weights"):
            require_start(
                load_config(path, {"model.backbone.norm": norm, "model.backbone.frozen_stages": frozen_stages})
            )
