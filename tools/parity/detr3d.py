"""DETR3D: the release's model from its `model` dict, head alone or full detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bevdet_core import boxes3d
from bevdet_core.config import BackboneConfig, Detr3dConfig
from bevdet_core.convert.detr3d import DETR3D, turn_code
from bevdet_core.convert.layout import load_official
from bevdet_core.models import build_criterion, build_detr3d_head, build_model
from bevdet_core.models.rig_detector import decode
from bevdet_core.structures import CameraRig, ImageBatch, Predictions, Targets

from . import common, mmdet
from .settings import check_settings


def run(meta: dict, inputs: dict[str, np.ndarray], state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a `detr3d` record."""
    weights = {key: torch.from_numpy(value) for key, value in state_dict.items()}
    config = detr3d_config(meta["config"], weights["pts_bbox_head.code_weights"])
    num_classes = meta["config"]["pts_bbox_head"]["num_classes"]
    lidar2img = torch.from_numpy(inputs["lidar2img"])
    height, width = inputs["img_shape"].tolist()
    if "img_backbone" in meta["config"]:
        model = build_model(config, num_classes)
        load_official(model, weights, DETR3D, meta["name"])
        images = torch.from_numpy(inputs["img"])
        batch = ImageBatch(images, torch.tensor([height, width]).expand(*images.shape[:2], 2), CameraRig(lidar2img))
        out, predictions = run_detector(meta["config"], model, batch)
    else:
        model = nn.ModuleDict({"head": build_detr3d_head(config, num_classes)})
        load_official(model, weights, DETR3D, meta["name"])
        features = [torch.from_numpy(inputs[f"feats/{level}"]) for level in range(config.num_levels)]
        out, predictions = {}, model["head"](features, lidar2img, (height, width))
    out |= prediction_outputs(predictions)
    out |= loss_outputs(config, predictions, inputs)
    out |= common.gradient_outputs(model, DETR3D)
    out |= decoded_outputs(config, predictions)
    return out


def detr3d_config(model: Mapping[str, Any], code_weights: Tensor) -> Detr3dConfig:
    """Our settings from the `model` dict of the release's config file.

    Raises:
        ValueError: a setting that our DETR3D does not have.
    """
    head = model["pts_bbox_head"]
    transformer, coder = head["transformer"], head["bbox_coder"]
    decoder = transformer["decoder"]
    layer = decoder["transformerlayers"]
    self_attention, cross_attention = layer["attn_cfgs"]
    mmdet.check_model(model)
    mmdet.check_head(head)
    check_settings(transformer, "transformer", ("decoder",), inert=(*mmdet.INERT, "num_feature_levels", "num_cams"))
    check_settings(decoder, "decoder", ("num_layers", "transformerlayers"), {"return_intermediate": True}, mmdet.INERT)
    mmdet.check_layer(layer, "decoder.transformerlayers")
    mmdet.check_attention(self_attention, "attn_cfgs.0", "num_heads", type="MultiheadAttention")
    # Its number of heads has no influence.
    mmdet.check_attention(
        {name: value for name, value in cross_attention.items() if name != "num_heads"},
        "attn_cfgs.1",
        "num_levels",
        "num_cams",
        "pc_range",
        type="Detr3DCrossAtten",
        num_points=1,
    )
    if cross_attention.get("num_points", 5) != 1:
        raise ValueError("attn_cfgs.1.num_points must be 1")
    backbone, num_levels = BackboneConfig(), cross_attention.get("num_levels", 4)
    if "img_backbone" in model:
        backbone = mmdet.backbone_config(model["img_backbone"], model["img_neck"])
        num_levels = mmdet.num_levels(model["img_neck"])
    return Detr3dConfig(
        backbone=backbone,
        num_cameras=cross_attention.get("num_cams", 6),
        num_levels=num_levels,
        embed_dim=self_attention["embed_dims"],
        num_queries=head["num_query"],
        num_layers=decoder["num_layers"],
        num_heads=self_attention["num_heads"],
        ffn_dim=layer["feedforward_channels"],
        dropout=0.0,
        pc_range=tuple(cross_attention["pc_range"]),
        post_center_range=tuple(coder["post_center_range"]),
        max_detections=coder["max_num"],
        score_threshold=coder.get("score_threshold") or 0.0,
        loss=mmdet.loss_config(model, code_weights.tolist()),
    )


def run_detector(
    config: Mapping[str, Any], model: nn.Module, batch: ImageBatch
) -> tuple[dict[str, np.ndarray], Predictions]:
    """The intermediate feature maps and the predictions of a full detector."""
    stages: list[Tensor] = []
    levels: list[Tensor] = []
    for index in config["img_backbone"].get("out_indices", (0, 1, 2, 3)):
        model.backbone.stage(index + 1).register_forward_hook(lambda _, __, out: stages.append(out))
    model.neck.register_forward_hook(lambda _, __, out: levels.extend(out))
    mmdet.freeze_stem(model, config["img_backbone"])
    predictions = model(batch)
    maps = {f"backbone/{i}": m for i, m in enumerate(stages)} | {f"fpn/{i}": m for i, m in enumerate(levels)}
    rigs = batch.images.shape[:2]
    return {name: m.detach()[:, :8].unflatten(0, rigs).numpy() for name, m in maps.items()}, predictions


def prediction_outputs(predictions: Predictions) -> dict[str, np.ndarray]:
    """Decoder outputs, with box codes in the release's yaw convention."""
    codes = turn_code(predictions.boxes.detach().movedim(-1, 0)).movedim(0, -1)
    references = predictions.references.detach()
    return {
        "hs": predictions.hidden.detach().numpy(),
        "reference/init": references[0].numpy(),
        "reference/inter": references[1:].numpy(),
        "all_cls_scores": predictions.logits.detach().numpy(),
        "all_bbox_preds": codes.numpy(),
    }


def loss_outputs(
    config: Detr3dConfig, predictions: Predictions, inputs: Mapping[str, np.ndarray], prefix: str = ""
) -> dict[str, np.ndarray]:
    """Assignment and losses; fills the gradients."""
    targets = [
        Targets(labels, boxes3d.from_convention(boxes, "mmdet3d-0", "gravity"))
        for labels, boxes in common.split_targets(inputs, "boxes_gravity", prefix)
    ]
    criterion = build_criterion(config)
    sets = criterion.layer_sets(predictions, targets)
    assignments = criterion.matcher(sets)
    losses = criterion.losses(sets, assignments)
    losses["total"].backward()
    layers = range(len(predictions.logits))
    out = common.match_outputs(assignments[0], [str(layer) for layer in layers], len(targets))
    for ours, theirs in (("class", "cls"), ("box", "bbox")):
        out[f"loss/loss_{theirs}"] = losses[f"loss_{ours}"].numpy()
        for layer in layers[:-1]:
            out[f"loss/d{layer}.loss_{theirs}"] = losses[f"layer{layer}/loss_{ours}"].numpy()
    out["loss/total"] = losses["total"].detach().numpy()
    return out


def decoded_outputs(config: Detr3dConfig, predictions: Predictions) -> dict[str, np.ndarray]:
    """Detections of the last layer in the release's convention."""
    out = {}
    decoded = decode(predictions, config.max_detections, config.post_center_range, config.score_threshold)
    for sample, (scores, labels, boxes) in enumerate(decoded):
        out[f"decoded/{sample}/scores"], out[f"decoded/{sample}/labels"] = scores.numpy(), labels.numpy()
        for origin in ("gravity", "bottom"):
            theirs = boxes3d.to_convention(boxes, "mmdet3d-0", origin)
            theirs[:, 6] = torch.remainder(theirs[:, 6] + torch.pi, 2 * torch.pi) - torch.pi  # as atan2 gives it
            out[f"decoded/{sample}/boxes_{origin}"] = theirs.numpy()
    return out
