"""Settings from the configuration of a `transformers` model."""

from __future__ import annotations

import pytest

from bevdet_core.config import ConfigError
from bevdet_core.convert.hf_config import deformable_detr_config, detr_config

RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1]}


@pytest.mark.parametrize(
    ("told", "stages"),
    [
        ({"out_features": ["stage2", "stage3", "stage4"]}, (2, 3, 4)),
        ({"out_features": ["stage3", "stage4"]}, (3, 4)),
        ({"out_indices": [1, 4]}, (1, 4)),
        ({}, (4,)),
    ],
)
def test_a_backbone_returns_the_stages_that_its_configuration_names(told, stages):
    config = deformable_detr_config({"use_timm_backbone": False, "backbone_config": RESNET | told})
    assert config.backbone.out_stages == stages
    assert config.backbone.stages == ((1, 8), (1, 16), (2, 32), (1, 64))


def test_a_timm_backbone_returns_what_the_levels_need():
    assert deformable_detr_config({}).backbone.out_stages == (2, 3, 4)
    assert deformable_detr_config({"num_feature_levels": 1}).backbone.out_stages == (4,)
    assert detr_config({"backbone": "resnet152"}).backbone.depth == 152


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone_config": RESNET | {"hidden_act": "gelu"}}, "hidden_act = 'gelu'"),
        ({"backbone_config": RESNET | {"out_features": ["stem", "stage4"]}}, "out_features"),
        ({"backbone_config": RESNET | {"downsample_in_first_stage": True}}, "downsample_in_first_stage"),
        ({"activation_function": "gelu"}, "activation_function = 'gelu'"),
        ({"backbone": "convnext_tiny"}, "backbone 'convnext_tiny'"),
        ({"encoder_ffn_dim": 8}, "encoder_ffn_dim = 8"),
        ({"position_embedding_type": "rope"}, "position_embedding_type = 'rope' is not supported, only 'sine' and"),
        ({"backbone_config": RESNET | {"model_type": "swin"}}, "a backbone of type 'swin' is not supported, only Res"),
    ],
)
def test_settings_that_our_detectors_do_not_have_are_named(arguments, message: str):
    with pytest.raises(ConfigError, match=message):
        deformable_detr_config(arguments)
