"""Settings: what is read, what is refused, and with which words."""

from pathlib import Path

import pytest

from bevdet_core.config import Config, ConfigError, load_config, settings_parser

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
    ("overrides", "words"),
    [
        ({"model.num_querys": 3}, ["model.num_querys", "nearest: model.num_queries"]),
        ({"model.backbone.deep": 3}, ["model.backbone.deep", "model.backbone.depth"]),
        ({"trian.lr": 3}, ["'trian'", "nearest: train"]),
        ({"model.name": "detr3"}, ["model.name", "'detr3'", "detr3d"]),
        ({"data.name": "coco"}, ["model.name 'detr3d'", "data.name 'coco'"]),
        ({"model": 3}, ["model must be a mapping", "3"]),
        ({"train.lr": "fast"}, ["train.lr", "float", "fast"]),
        ({"train.epochs": 0}, ["train.epochs", "at least 1", "0"]),
        ({"train.lr": -1.0}, ["train.lr", "negative"]),
        ({"train.ema": 1.0}, ["train.ema", "[0, 1)"]),
        ({"train.lr.minor": 1}, ["train.lr.minor", "no settings of its own"]),
        ({"model.backbone.depth": 19}, ["model.backbone.depth", "19"]),
        ({"model.pc_range": [1.0, 2.0]}, ["model.pc_range", "6 elements"]),
    ],
)
def test_a_wrong_setting_is_named(overrides, words):
    with pytest.raises(ConfigError) as error:
        load_config({"train": {"lr": 1e-4}}, overrides)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("detr3d", {"data.augment.resize": [1.1, 0.9]}, "data.augment.resize must be (smallest, largest), got [1.1,"),
        ("detr3d", {"data.augment.scale": [2, 1]}, "data.augment.scale must be (smallest, largest), got [2.0, 1.0]"),
        ("detr3d", {"data.augment.flip": 2}, "data.augment.flip must lie between 0 and 1, got 2.0"),
        ("detr3d", {"data.classes": ["car", "bus", "car"]}, "data.classes must name each once, got ['car', 'bus'"),
        ("detr3d", {"data.cameras": []}, "data.cameras must name each once, got []"),
        ("detr3d", {"model.num_proposals": -1}, "model.num_proposals must not be negative, got -1"),
        ("detr3d", {"model.pc_range": None}, "model.pc_range must have a value"),
        ("detr3d", {"model.backbone.width": 0}, "model.backbone.width must lie between 1 and 8192, got 0"),
        ("detr3d", {"model.pc_range": "[-9, -9, -2, .inf, 9, 2]"}, "the settings: model.pc_range.3 must be a finite"),
        ("detr3d", {"model.num_queries": "[1, 2"}, "model.num_queries: '[1, 2' cannot be read: "),
        ("detr3d", {"train.workers": 1001}, "train.workers must be at most 1000, got 1001"),
        ("detr3d", {"train.batch_size": 100_001}, "train.batch_size must be at most 100000, got 100001"),
        ("detr3d", {"train.seed": -1}, "train.seed must lie between 0 and 2^63, got -1"),
        ("petr", {"model.embed_dim": 30}, "model.embed_dim of PETR must be a multiple of 4, got 30"),
        ("petr", {"model.num_heads": 7}, "model.embed_dim = 256 must be a multiple of model.num_heads = 7"),
        ("deformable_detr", {"model.embed_dim": 48}, "of Deformable DETR must be a multiple of 32, got 48"),
        ("detr3d", {"train.lr": None}, "train.lr must have a value"),
        ("detr3d", {"model.loss.code_weights": [1, 1]}, "model.loss.code_weights must be 10 numbers, got 2"),
        ("detr3d", {"data.augment.scale": None}, "data.augment.scale must have a value"),
        ("bevformer", {"model.bev_shape": None}, "model.bev_shape must have a value"),
        ("petr", {"model.num_depths": 0}, "model.num_depths must be at least 1 and model.depth_start"),
        ("petr", {"model.depth_start": 99}, "the range's 61.2 m, got 64 and 99.0"),
        ("bevformer", {"model.bev_shape": [0, 50]}, "model.bev_shape must be (rows, columns) of at least 1, got [0,"),
        ("bevformer", {"model.queue_learn": "stream", "data.cbgs": True}, "model.queue_learn stream takes the frames"),
        ("deformable_detr", {"model.denoising.groups": -1}, "model.denoising.groups must not be negative, got -1"),
        ("deformable_detr", {"model.denoising.box_noise": 2}, "model.denoising.box_noise must lie in [0, 1], got 2.0"),
        ("detr", {"data.augment.crop": 1.5}, "data.augment.crop is a probability, got 1.5"),
        ("detr", {"data.augment.short_sides": []}, "data.augment.short_sides must be sizes in pixels, got []"),
        ("detr", {"data.augment.crop_size": [0, 600]}, "data.augment.crop_size must be sizes in pixels, got [0, 600]"),
        ("detr", {"data.augment.crop_size": [9, 5]}, "data.augment.crop_size must be (smallest, largest), got [9, 5]"),
        ("detr", {"data.short_side": 0}, "data.short_side must be at least 1, got 0"),
        ("detr", {"data.val_limit": -5}, "data.val_limit must be at least 1, got -5"),
        ("detr", {"data.classes": []}, "data.classes must name each class once, got []"),
        ("detr", {"data.classes": ["cat", "cat"]}, "data.classes must name each class once, got ['cat', 'cat']"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_what_would(model, overrides, message):
    data = "coco" if model in ("detr", "deformable_detr") else "nuscenes"
    with pytest.raises(ConfigError) as error:
        load_config({"model": {"name": model}, "data": {"name": data}}, overrides)
    assert message in str(error.value)


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot read"):
        load_config(tmp_path / "missing.yaml")
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


def test_help_explains_settings():
    text = settings_parser().format_help()
    for words in ("--model.num_queries", "objects that a frame can have", "--train.clip_norm", "--data.root"):
        assert words in text


def test_configurations_of_the_package_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = load_config("configs/nuscenes/detr3d_r50.yaml")
    assert named == load_config("nuscenes/detr3d_r50.yaml")
    assert named.model.name == "detr3d"
    (tmp_path / "nuscenes").mkdir()
    (tmp_path / "nuscenes" / "detr3d_r50.yaml").write_text("model: {name: detr3d, num_queries: 7}")
    assert load_config("nuscenes/detr3d_r50.yaml").model.num_queries == 7  # what is there comes first
    with pytest.raises(ConfigError, match="cannot read"):
        load_config("configs/../pyproject.yaml")
