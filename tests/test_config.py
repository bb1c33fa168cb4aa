"""Settings: what is read, what is refused, and with which words."""

import re
from pathlib import Path

import pytest

from bevdet_core.config import (
    BackboneConfig,
    CocoConfig,
    Config,
    ConfigError,
    DetrConfig,
    all_kinds,
    all_settings,
    load_config,
    settings_help,
)

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_configuration_is_valid(path):
    assert isinstance(load_config(path), Config)


def test_dictionary_round_trip_keeps_every_setting():
    config = load_config({}, {"model.backbone.depth": "18", "train.lr": "1e-3", "data.input_size": "[256, 704]"})
    assert (config.model.backbone.depth, config.train.lr, config.data.input_size) == (18, 1e-3, (256, 704))
    assert load_config(config.to_dict()) == config


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model: {num_queries: 5, num_layers: 2}")
    config = load_config(path, {"model.num_queries": "7"})
    assert (config.model.num_queries, config.model.num_layers) == (7, 2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.num_querys", 3, "model.num_querys: no such setting; nearest: model.num_queries, model.num"),
        ("model.backbone.deep", 3, "model.backbone.deep: no such setting; nearest: model.backbone.depth"),
        ("train.num_queries", 3, "train.num_queries: no such setting; nearest: model.num_queries"),
        ("model.lr", 3, "model.lr: no such setting; nearest: train.lr"),
        ("trian.lr", 3, "trian: no such setting; nearest: train"),
        ("model.queue_length", 3, "model.queue_length: no such setting here, but one of bevformer"),
        ("model.refine", True, "model.refine: no such setting here, but one of deformable_detr"),
        ("data.augment.short_sides", [3], "data.augment.short_sides: no such setting here, but one of coco"),
        ("train.xyzzy", 3, "train.xyzzy: no such setting"),
        (
            "model.name",
            "detr3",
            "model.name must be one of detr3d, petr, bevformer, detr, deformable_detr, got 'detr3'",
        ),
        ("model.name", 3, "model.name must be one of detr3d, petr, bevformer, detr, deformable_detr, got 3"),
        ("data.name", "coco", "model.name 'detr3d' cannot learn from data.name 'coco'"),
        ("model", 3, "model must be a mapping of settings, got 3"),
        ("model.backbone", [3], "model.backbone must be a mapping of settings, got [3]"),
        ("train.lr.minor", 1, "train.lr.minor: 'lr' is a value, it has no settings of its own"),
        ("train.lr", "fast", "train.lr must be a number, got 'fast'"),
        ("train.lr", True, "train.lr must be a number, got True"),
        ("train.lr", [1], "train.lr must be a number, got [1]"),
        ("train.lr", 10**400, "train.lr must be a number, got 1000"),
        ("train.epochs", 3.0, "train.epochs must be a whole number, got 3.0"),
        ("train.epochs", True, "train.epochs must be a whole number, got True"),
        ("train.deterministic", 1, "train.deterministic must be true or false, got 1"),
        ("train.precision", "fp8", "train.precision must be one of fp32, bf16, fp16, auto, got 'fp8'"),
        ("model.backbone.depth", 19, "model.backbone.depth must be one of 18, 34, 50, 101, 152, got 19"),
        ("data.root", "2017", "data.root must be a text, got 2017; within quotes it is one"),
        ("data.root", ["a"], "data.root must be a text, got ['a']"),
        ("data.root", '"a\\0b"', "data.root must be a text, got 'a\\x00b'"),
        ("data.root", '""', "data.root must not be empty"),
        ("train.load_from", '""', "train.load_from must not be empty"),
        ("model.backbone.weights", '""', "model.backbone.weights must not be empty"),
        ("data.classes", "car", "data.classes must be a list of texts, got 'car'"),
        ("data.classes", [1], "data.classes[0] must be a text, got 1"),
        ("data.classes", [None], "data.classes[0] must have a value"),
        ("data.input_size", "256", "data.input_size must be a list of 2 whole numbers, got 256"),
        ("data.input_size", [256, 7.5], "data.input_size[1] must be a whole number, got 7.5"),
        ("model.pc_range", [1.0, 2.0], "model.pc_range must be a list of 6 numbers, got a list of 2"),
        ("model.pc_range", "[-9, -9, -2, .inf, 9, 2]", "model.pc_range[3] must be a finite number, got inf"),
        ("model.backbone.stages", [1, 8], "model.backbone.stages[0] must be a list of 2 whole numbers, got 1"),
        ("train.lr_factors", 1, "train.lr_factors must be a mapping of names to numbers, got 1"),
        ("train.lr_factors", {"neck": "slow"}, "train.lr_factors.neck must be a number, got 'slow'"),
        ("train.lr_factors", {3: 0.1}, "train.lr_factors: a key must be a text, got 3"),
        ("train.lr_factors", {"": 0.1}, "train.lr_factors: a key must not be empty"),
    ],
)
def test_a_setting_of_another_type_is_named_with_what_it_wants(name, value, message):
    with pytest.raises(ConfigError) as error:
        load_config({"train": {"lr": 1e-4}}, {name: value})
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 200


def test_what_yaml_reads_in_another_way_is_taken_as_it_is_meant():
    config = load_config(
        {
            "train": {
                "lr": "1e-3",
                "epochs": "5",
                "clip_norm": 1,
                "deterministic": "True",
                "lr_factors": {"neck": "1e-1"},
            }
        },
        {"model.backbone.depth": '"18"', "train.load_from": "", "train.schedule": "step", "train.milestones": "[3]"},
    )
    train = config.train
    assert (train.lr, train.epochs, train.clip_norm, train.deterministic) == (1e-3, 5, 1.0, True)
    assert isinstance(train.clip_norm, float)
    assert (train.lr_factors, train.load_from, train.milestones) == ({"neck": 0.1}, None, (3,))
    assert config.model.backbone.depth == 18


def test_a_part_that_is_named_keeps_what_the_detector_sets_otherwise():
    backbone = load_config({"model": {"name": "petr", "backbone": {"depth": 18}}}).model.backbone
    assert (backbone.depth, backbone.out_stages) == (18, (3, 4))


def test_settings_that_a_program_puts_together_are_checked_too():
    for model, message in (
        (DetrConfig(embed_dim="wide"), "model.embed_dim must be a whole number, got 'wide'"),
        (
            DetrConfig(backbone=BackboneConfig(stages=((1, 8, 3),) * 4)),
            r"model.backbone.stages\[0\] must be a list of 2",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            Config(model, CocoConfig())


def test_the_file_is_named_where_it_holds_the_mistake(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train: {epochs: 0}")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: train\.epochs must be"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"^train\.epochs must be"):
        load_config(path, {"train.epochs": "-1"})
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: train\.epochs must be"):
        load_config(path, {"train.lr": "1"})


def test_what_is_written_is_read_by_people_too():
    text = load_config("configs/nuscenes/bevformer_base.yaml").to_yaml()
    assert "\n  pc_range: [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]\n" in text
    assert "\n    deformable_stages: [3, 4]\n" in text
    assert "\n  lr_factors:\n    backbone: 0.1\n" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("detr3d", {"data.augment.resize": [1.1, 0.9]}, "data.augment.resize must be (smallest, largest), got [1.1,"),
        ("detr3d", {"data.augment.scale": [2, 1]}, "data.augment.scale must be (smallest, largest), got [2.0, 1.0]"),
        ("detr3d", {"data.augment.flip": 2}, "data.augment.flip must be at most 1, got 2.0"),
        ("detr3d", {"data.classes": ["car", "bus", "car"]}, "data.classes must name each once, 'car' comes twice"),
        ("detr3d", {"data.cameras": []}, "data.cameras must not be empty"),
        ("detr3d", {"model.num_proposals": -1}, "model.num_proposals must be at least 0, got -1"),
        ("detr3d", {"model.pc_range": None}, "model.pc_range must have a value"),
        ("detr3d", {"model.backbone.width": 0}, "model.backbone.width must be at least 1, got 0"),
        ("detr3d", {"model.num_queries": "[1, 2"}, "model.num_queries: '[1, 2' cannot be read: "),
        ("detr3d", {"train.workers": 1001}, "train.workers must be at most 1000, got 1001"),
        ("detr3d", {"train.batch_size": 100_001}, "train.batch_size must be at most 100000, got 100001"),
        ("detr3d", {"train.seed": -1}, "train.seed must be at least 0, got -1"),
        ("detr3d", {"train.epochs": 0}, "train.epochs must be at least 1, got 0"),
        ("detr3d", {"train.lr": -1}, "train.lr must be at least 0, got -1.0"),
        ("detr3d", {"train.ema": 1}, "train.ema must lie in [0, 1), got 1.0"),
        ("detr3d", {"train.lr_factors": {"neck": -1}}, "train.lr_factors must be at least 0, got -1.0"),
        ("detr3d", {"train.milestones": [0, 3]}, "train.milestones must be at least 1, got 0"),
        ("detr3d", {"train.milestones": [3, 2]}, "train.milestones must rise, got [3, 2]"),
        ("detr3d", {"train.schedule": "step"}, "train.schedule step needs train.milestones, the epochs at which the"),
        (
            "detr3d",
            {"model.pc_range": [9, -9, -3, -9, 9, 3]},
            "model.pc_range must have each end above its start, got (9.0, -9.0, -3.0) to (-9.0, 9.0, 3.0)",
        ),
        ("detr3d", {"model.post_center_range": [0] * 6}, "model.post_center_range must have each end above its start"),
        ("petr", {"model.position_range": [-9, -9, 3, 9, 9, 3]}, "model.position_range must have each end above its"),
        ("detr3d", {"data.object_range": [-9, 9, 9, 9]}, "data.object_range must have each end above its start, got ("),
        ("detr3d", {"data.input_size": [1, 1]}, "data.input_size must be at least 16, got 1"),
        ("detr3d", {"data.augment.rotation": -1}, "data.augment.rotation must be at least 0, got -1.0"),
        ("detr3d", {"model.loss.box_weight": -1}, "model.loss.box_weight must be at least 0, got -1.0"),
        ("detr3d", {"model.loss.code_weights": [-1] * 10}, "model.loss.code_weights must be at least 0, got -1.0"),
        ("detr3d", {"model.backbone.out_stages": []}, "model.backbone.out_stages must not be empty"),
        (
            "detr3d",
            {"model.backbone.out_stages": [3, 2]},
            "model.backbone.out_stages must be stages that rise, got [3,",
        ),
        ("detr3d", {"model.backbone.stages": [[1, 8]]}, "model.backbone.stages must be four pairs of blocks and width"),
        ("detr3d", {"model.pixels.std": [1, 0, 1]}, "model.pixels.std must be at least 1e-06, got 0.0"),
        ("deformable_detr", {"model.loss.focal_alpha": 2}, "model.loss.focal_alpha must be at most 1, got 2.0"),
        ("detr", {"data.long_side": 600}, "data.long_side must be at least data.short_side = 800, got 600"),
        ("bevformer", {"model.pillar_points": 0}, "model.spatial_points = 8 must be a multiple of model.pillar_points"),
        ("bevformer", {"model.history_steps": [2, 3]}, "model.history_steps must begin with 1 and rise, got [2, 3]"),
        ("bevformer", {"model.num_bev_proposals": -1}, "model.num_bev_proposals must be at least 0, got -1"),
        ("petr", {"model.embed_dim": 30}, "model.embed_dim of PETR must be a multiple of 4, got 30"),
        ("petr", {"model.num_heads": 7}, "model.embed_dim = 256 must be a multiple of model.num_heads = 7"),
        ("deformable_detr", {"model.embed_dim": 48}, "of Deformable DETR must be a multiple of 32, got 48"),
        ("detr3d", {"train.lr": None}, "train.lr must have a value"),
        ("detr3d", {"model.loss.code_weights": [1, 1]}, "model.loss.code_weights must be a list of 10 numbers, got"),
        ("detr3d", {"data.augment.scale": None}, "data.augment.scale must have a value"),
        ("bevformer", {"model.bev_shape": None}, "model.bev_shape must have a value"),
        ("petr", {"model.num_depths": 0}, "model.num_depths must be at least 1, got 0"),
        (
            "petr",
            {"model.depth_start": 99},
            "model.depth_start must lie between 0 and the x1 = 61.2 of model.position_range",
        ),
        ("bevformer", {"model.bev_shape": [0, 50]}, "model.bev_shape must be at least 1, got 0"),
        ("bevformer", {"model.queue_learn": "stream", "data.cbgs": True}, "model.queue_learn stream takes the frames"),
        ("deformable_detr", {"model.denoising.groups": -1}, "model.denoising.groups must be at least 0, got -1"),
        ("deformable_detr", {"model.denoising.box_noise": 2}, "model.denoising.box_noise must be at most 1, got 2.0"),
        ("detr", {"data.augment.crop": 1.5}, "data.augment.crop must be at most 1, got 1.5"),
        ("detr", {"data.augment.short_sides": []}, "data.augment.short_sides must not be empty"),
        ("detr", {"data.augment.crop_size": [0, 600]}, "data.augment.crop_size must be at least 16, got 0"),
        (
            "detr",
            {"data.augment.crop_size": [90, 50]},
            "data.augment.crop_size must be (smallest, largest), got [90, 50]",
        ),
        ("detr", {"data.short_side": 0}, "data.short_side must be at least 16, got 0"),
        ("detr", {"data.val_limit": -5}, "data.val_limit must be at least 1, got -5"),
        ("detr", {"data.classes": []}, "data.classes must not be empty"),
        ("detr", {"data.classes": ["cat", "cat"]}, "data.classes must name each once, 'cat' comes twice"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_what_would(model, overrides, message):
    data = "coco" if model in ("detr", "deformable_detr") else "nuscenes"
    with pytest.raises(ConfigError) as error:
        load_config({"model": {"name": model}, "data": {"name": data}}, overrides)
    assert message in str(error.value)


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: no such configuration$"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=f"{tmp_path.name}: a folder, no configuration; that of a run is "):
        load_config(tmp_path)
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("model: {num_queries: 3")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"data: {root: M\xfcnchen}")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not a YAML file that can be used: no UTF-8 text"):
        load_config(tmp_path / "latin.yaml")
    (tmp_path / "code.yaml").write_text("model: !!python/object/apply:os.system ['echo hi']")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_config(tmp_path / "code.yaml")


def test_every_setting_has_its_meaning_in_the_help():
    text = settings_help(all_kinds())
    for words in (
        "--model.num_queries  a whole number; default: 900\n        objects that a frame can have.",
        "--data.input_size  a list of 2 whole numbers or null; default: null",
        '--train.lr_factors  a mapping of names to numbers; default: {"backbone": 0.1}',
        "--train.precision  one of fp32, bf16, fp16, auto; default: fp32",
        "--data.val_split  a text; default: val",
        "--model.two_stage  true or false; default: false",
    ):
        assert words in text
    assert all(setting.meaning for setting in all_settings().values())


def test_configurations_of_the_package_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = load_config("configs/nuscenes/detr3d_r50.yaml")
    assert named == load_config("nuscenes/detr3d_r50.yaml")
    assert named.model.name == "detr3d"
    (tmp_path / "nuscenes").mkdir()
    (tmp_path / "nuscenes" / "detr3d_r50.yaml").write_text("model: {name: detr3d, num_queries: 7}")
    assert load_config("nuscenes/detr3d_r50.yaml").model.num_queries == 7  # what is there comes first
    with pytest.raises(ConfigError, match="no such configuration"):
        load_config("configs/../pyproject.yaml")
    near = r"no such configuration; nearest: configs/nuscenes/detr3d_r50\.yaml, configs/nuscenes/detr3d_r101\.yaml, "
    with pytest.raises(ConfigError, match=near):
        load_config("configs/nuscenes/detr3d_r5.yaml")
