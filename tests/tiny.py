"""The smallest detector of every kind: all of its parts, in a few thousand numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bevdet_core import Detector
from bevdet_core.config import load_config
from bevdet_core.models import build_model

NAMES = ("car", "dog", "cat")
BACKBONE = {"depth": 18, "width": 8, "out_stages": [1], "stages": [[1, 8]] * 4, "frozen_stages": 0}
DEFORMABLE = {**BACKBONE, "depth": 50, "deformable_stages": [1]}
COMMON = {"backbone": BACKBONE, "embed_dim": 16, "num_queries": 6, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1}
RIG = {**COMMON, "num_cameras": 2, "num_levels": 1}

DETR = {"name": "detr", **COMMON, **LAYERS}
DEFORMABLE_DETR = {"name": "deformable_detr", **COMMON, **LAYERS, "embed_dim": 32, "num_levels": 2}
DETR3D = {"name": "detr3d", **RIG, "num_layers": 1}
PETR = {"name": "petr", **COMMON, "fpn": False, "num_layers": 1}
BEVFORMER = {"name": "bevformer", **RIG, **LAYERS, "bev_shape": [4, 6]}
PROPOSALS = {"perspective": True, "num_proposals": 3}

MODELS: dict[str, dict[str, Any]] = {
    "detr": DETR,
    "deformable_detr": DEFORMABLE_DETR,
    "refine": {**DEFORMABLE_DETR, "refine": True, "decoder_layers": 2},
    "two_stage": {**DEFORMABLE_DETR, "refine": True, "two_stage": True},
    "detr3d": DETR3D,
    "detr3d_proposals": {**DETR3D, **PROPOSALS, "backbone": DEFORMABLE},
    "petr": PETR,
    "bevformer_alone": {**BEVFORMER, "queue_length": 1},
    "bevformer_fusion": {
        **BEVFORMER,
        **PROPOSALS,
        "temporal": "convolution",
        "history_steps": [1, 3],
        "num_bev_proposals": 4,
    },
    "bevformer": BEVFORMER,
}
COCO = {"name": "coco", "short_side": 40, "long_side": 60}
NUSCENES = {
    "name": "nuscenes",
    "input_size": [32, 64],
    "cameras": ["CAM_FRONT", "CAM_BACK"],
    "classes": ["car", "truck", "bus"],
}


def detector(name: str) -> Detector:
    """An untrained detector of `MODELS`, every parameter of which matters: nothing is left at zero."""
    torch.manual_seed(0)
    model = MODELS[name]
    config = load_config({"model": model, "data": COCO if model["name"] in ("detr", "deformable_detr") else NUSCENES})
    made = Detector(build_model(config.model, len(NAMES)).eval(), config, NAMES)
    for parameter in made.model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return made
