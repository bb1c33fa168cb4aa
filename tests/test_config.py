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


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot read"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("model: {num_queries: 3")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_config(tmp_path / "broken.yaml")
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
