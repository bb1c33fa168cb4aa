"""Damage in what `convert` reads ends in an error that names it, or does no harm; see test_damaged_files.py."""

from __future__ import annotations

import numpy as np
import pytest
from damage import damaged_json, damaged_tensors, every_seed, outcome

from bevdet_core.checkpoint import Checkpoint
from bevdet_core.config import BackboneConfig, CocoConfig, Config, DeformableDetrConfig, DetrConfig
from bevdet_core.convert.coco_names import COCO_91
from bevdet_core.convert.hf_config import detr_config
from bevdet_core.convert.release import from_release, to_release, write_release
from bevdet_core.models import build_model

HF_DETR = {
    **{"model_type": "detr", "num_queries": 7, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"dropout": 0.1, "position_embedding_type": "sine", "class_cost": 1, "bbox_loss_coefficient": 5, "num_labels": 2},
    **{"id2label": {"0": "cat", "1": "dog"}, "use_timm_backbone": False, "activation_function": "relu"},
    "backbone_config": {
        **{"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
        **{"layer_type": "basic", "out_features": ["stage4"]},
    },
}


@every_seed
def test_settings_of_transformers(seeds, check, tmp_path):
    config = tmp_path / "config.json"
    model = detr_config(HF_DETR)
    weights = Checkpoint(build_model(model, 2).state_dict(), Config(model, CocoConfig()).to_dict(), ("cat", "dog"))
    write_release(to_release(weights, "hf-detr"), "hf-detr", tmp_path / "model.safetensors")
    for seed in seeds:
        config.write_bytes(damaged_json(HF_DETR, np.random.default_rng([11, seed])))
        check(seed, outcome(lambda: from_release(tmp_path, "hf-detr")), "config.json", str(tmp_path), "model.", "loss.")


@every_seed
@pytest.mark.parametrize("release", ["detr", "deformable-detr"])
def test_weights_of_releases(release, seeds, check, tmp_path):
    small = {"embed_dim": 32, "num_queries": 7, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 48}
    backbone = BackboneConfig(depth=18, width=8, out_stages=(4,))
    model = {
        "detr": DetrConfig(backbone=backbone, **small),
        "deformable-detr": DeformableDetrConfig(backbone=backbone, num_levels=1, **small),
    }[release]
    ours = Checkpoint(build_model(model, 91).state_dict(), Config(model, CocoConfig()).to_dict(), COCO_91)
    weights = to_release(ours, release)
    for seed in seeds:
        write_release(damaged_tensors(weights, np.random.default_rng([12, seed])), release, tmp_path / "weights.pth")
        check(seed, outcome(lambda: from_release(tmp_path / "weights.pth", release)), "weights.pth")
