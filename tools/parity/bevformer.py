"""BEVFormer: the release's model from its `model` dict, head alone over a chain of frames or full detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bevdet_core.config import BackboneConfig, BevFormerConfig
from bevdet_core.convert.bevformer import BEVFORMER
from bevdet_core.convert.layout import load_official
from bevdet_core.models import build_bevformer_head, build_model
from bevdet_core.models.bevformer import BevFormerHead, PastView
from bevdet_core.models.cameras import camera_features
from bevdet_core.models.ego_motion import EgoMotion, motion_of_signals
from bevdet_core.structures import CameraRig, ImageBatch, Predictions

from . import common, mmdet
from .detr3d import decoded_outputs, loss_outputs, prediction_outputs
from .settings import check_settings


def run(meta: dict, inputs: dict[str, np.ndarray], state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a `bevformer` record."""
    weights = {key: torch.from_numpy(value) for key, value in state_dict.items()}
    config = bevformer_config(meta["config"], weights["pts_bbox_head.code_weights"])
    num_classes = meta["config"]["pts_bbox_head"]["num_classes"]
    if "img_backbone" not in meta["config"]:
        head = build_bevformer_head(config, num_classes)
        adapt(head, meta["config"])
        model: nn.Module = nn.ModuleDict({"head": head})
        load_official(model, weights, BEVFORMER, meta["name"])
        return run_head(config, head, inputs) | common.gradient_outputs(model, BEVFORMER)
    model = build_model(config, num_classes)
    adapt(model.head, meta["config"])
    load_official(model, weights, BEVFORMER, meta["name"])
    mmdet.freeze_stem(model, meta["config"]["img_backbone"])
    out = run_video(config, model.eval(), inputs)
    if "train/img" in inputs:
        out |= run_queue(config, model, inputs) | common.gradient_outputs(model, BEVFORMER)
    return out


def bevformer_config(model: Mapping[str, Any], code_weights: Tensor) -> BevFormerConfig:
    """Our settings from the `model` dict of the release's config file.

    Raises:
        ValueError: a setting that our BEVFormer does not have.
    """
    head = model["pts_bbox_head"]
    transformer, encoder = head["transformer"], head["transformer"]["encoder"]
    decoder, bev_layer = transformer["decoder"], encoder["transformerlayers"]
    query_layer = decoder["transformerlayers"]
    mmdet.check_model(model, "video_test_mode")
    mmdet.check_head(head, "bev_h", "bev_w")
    on = ("rotate_prev_bev", "use_shift", "use_can_bus", "can_bus_norm", "use_cams_embeds")
    check_settings(
        transformer,
        "transformer",
        read=("encoder", "decoder", "embed_dims", "num_cams", "num_feature_levels", "rotate_center"),
        fixed=dict.fromkeys(on, True),
        inert=mmdet.INERT,
    )
    layers = ("num_layers", "transformerlayers")
    pillar = ("pc_range", "num_points_in_pillar")
    check_settings(
        encoder, "encoder", (*layers, *pillar), {"return_intermediate": False}, (*mmdet.INERT, "dataset_type")
    )
    check_settings(decoder, "decoder", layers, {"return_intermediate": True}, mmdet.INERT)
    mmdet.check_layer(bev_layer, "encoder.transformerlayers")
    mmdet.check_layer(query_layer, "decoder.transformerlayers")
    temporal, spatial = bev_layer["attn_cfgs"]
    self_attention, cross_attention = query_layer["attn_cfgs"]
    deformable = spatial["deformable_attention"]
    points = ("num_heads", "num_points")
    mmdet.check_attention(
        temporal, "TemporalSelfAttention", *points, batch_first=True, type="TemporalSelfAttention", num_levels=1,
        num_bev_queue=2,
    )  # fmt: skip
    mmdet.check_attention(
        spatial, "SpatialCrossAttention", "pc_range", "deformable_attention", "num_cams", type="SpatialCrossAttention"
    )
    mmdet.check_attention(
        deformable, "MSDeformableAttention3D", *points, "num_levels", batch_first=True, type="MSDeformableAttention3D"
    )
    mmdet.check_attention(self_attention, "MultiheadAttention", "num_heads", type="MultiheadAttention")
    mmdet.check_attention(
        cross_attention, "CustomMSDeformableAttention", *points, type="CustomMSDeformableAttention", num_levels=1
    )
    heads = {part.get("num_heads", 8) for part in (temporal, deformable, self_attention, cross_attention)}
    hidden = {part["feedforward_channels"] for part in (bev_layer, query_layer)}
    ranges = {tuple(part["pc_range"]) for part in (encoder, spatial, head["bbox_coder"])}
    if len(heads) > 1 or len(hidden) > 1 or len(ranges) > 1:
        raise ValueError("encoder and decoder must have the same num_heads, feedforward_channels and pc_range")
    shape = (head["bev_h"], head["bev_w"])
    position = head["positional_encoding"]
    check_settings(
        position,
        "positional_encoding",
        ("row_num_embed", "col_num_embed"),
        {"type": "LearnedPositionalEncoding", "num_feats": transformer["embed_dims"] // 2},
        mmdet.INERT,
    )
    if (position["row_num_embed"], position["col_num_embed"]) != shape:
        raise ValueError("positional_encoding must have a vector for each row and column of the view")
    coder = head["bbox_coder"]
    backbone = BackboneConfig()
    if "img_backbone" in model:
        backbone = mmdet.backbone_config(model["img_backbone"], model["img_neck"])
    return BevFormerConfig(
        backbone=backbone,
        num_cameras=transformer.get("num_cams", 6),
        num_levels=mmdet.num_levels(model["img_neck"]) if "img_neck" in model else deformable.get("num_levels", 4),
        embed_dim=transformer["embed_dims"],
        bev_shape=shape,
        num_queries=head["num_query"],
        encoder_layers=encoder["num_layers"],
        decoder_layers=decoder["num_layers"],
        num_heads=heads.pop(),
        pillar_points=encoder.get("num_points_in_pillar", 4),
        spatial_points=deformable.get("num_points", 8),
        temporal_points=temporal.get("num_points", 4),
        decoder_points=cross_attention.get("num_points", 4),
        ffn_dim=hidden.pop(),
        dropout=0.0,
        queue_length=2 if model.get("video_test_mode", False) else 1,
        pc_range=ranges.pop(),
        post_center_range=tuple(coder["post_center_range"]),
        max_detections=coder["max_num"],
        score_threshold=coder.get("score_threshold") or 0.0,
        release_quirks=True,
        loss=mmdet.loss_config(model, code_weights.tolist()),
    )


def adapt(head: BevFormerHead, model: Mapping[str, Any]) -> None:
    """Give a head what the release's transformer can be told and our settings leave as published."""
    transformer = model["pts_bbox_head"]["transformer"]
    rows, columns = head.grid.shape
    x, y = transformer.get("rotate_center", (100, 100))
    head.turn_centre = (x / columns, y / rows)
    levels = transformer.get("num_feature_levels", 4)
    head.level_embed = nn.Parameter(torch.zeros(levels, head.level_embed.shape[1]))


def run_head(config: BevFormerConfig, head: BevFormerHead, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A chain of frames, and losses of one of them; fills the gradients."""
    height, width = inputs["img_shape"].tolist()
    chosen = int(inputs["loss_frame"])
    out: dict[str, np.ndarray] = {}
    bev = None
    for k in range(_count(inputs)):
        frame = f"frame/{k}"
        features = [torch.from_numpy(inputs[f"{frame}/feats/{level}"]) for level in range(config.num_levels)]
        lidar2img = torch.from_numpy(inputs[f"{frame}/lidar2img"])
        # In double precision, as the release computes the shift.
        motion = motion_of_signals(torch.from_numpy(inputs[f"{frame}/can_bus"]).double())
        past = _past(bev, motion)
        with torch.set_grad_enabled(k == chosen):
            bev = head.encode(features, lidar2img, (height, width), motion.signals, past)
            predictions = head(bev)
        out |= _frame_outputs(frame, bev, predictions)
        out[f"{frame}/shift"] = (motion.shift / torch.tensor(head.grid.extent)).numpy()
        if k == chosen:
            locations, visible = head.grid.seen(lidar2img, (height, width))
            out[f"{frame}/bev_mask"] = visible.numpy()
            out[f"{frame}/reference_points_cam"] = locations.where(visible[..., None], 0.0).numpy()
            if past:
                out[f"{frame}/prev_bev_rotated_sum"] = head.align(past[0]).bev.sum(-1).numpy()
            out |= loss_outputs(config, predictions, inputs) | detections(config, predictions)
        bev = bev.detach()
    return out


def run_video(config: BevFormerConfig, model: nn.Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Frame after frame of one or more scenes."""
    out: dict[str, np.ndarray] = {}
    views: list[Tensor] = []
    hook = model.head.encoder.register_forward_hook(lambda _, __, bev: views.append(bev))
    memory = model.new_memory()
    for k in range(_count(inputs)):
        frame = f"frame/{k}"
        batch = _batch(inputs, inputs[f"{frame}/img"], inputs[f"{frame}/can_bus"])
        batch.scenes = [str(inputs[f"{frame}/scene"])]
        with torch.no_grad():
            predictions = model(batch, memory)
        out |= _frame_outputs(frame, views[-1], predictions)
        decoded = detections(config, predictions)
        out |= {
            f"{frame}/decoded/{name}": decoded[f"decoded/0/{name}"] for name in ("scores", "labels", "boxes_bottom")
        }
    hook.remove()
    return out


def run_queue(config: BevFormerConfig, model: nn.Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One training queue; fills the gradients."""
    size = tuple(inputs["img_shape"].tolist())
    images, can_bus = inputs["train/img"][0], inputs["train/can_bus"]
    bev = None
    for k, linked in enumerate(inputs["train/prev_bev_exists"].tolist()):
        batch = _batch(inputs, images[k : k + 1], can_bus[k : k + 1])
        # The recorded numbers are the motion itself, so that they go past the memory, which would compute it.
        motion = motion_of_signals(batch.rig.can_bus)
        last = k + 1 == len(images)
        model.train(last)
        with torch.set_grad_enabled(last):
            features = camera_features(model.backbone, model.neck, batch, None)
            past = _past(bev if linked else None, motion)
            bev = model.head.encode(features, batch.rig.lidar2img, size, motion.signals, past)
    predictions = model.head(bev)
    return _frame_outputs("train", bev, predictions) | loss_outputs(config, predictions, inputs, "train/")


def detections(config: BevFormerConfig, predictions: Predictions) -> dict[str, np.ndarray]:
    """Detections of the last layer.

    Raises:
        ValueError: none passes the threshold, which the release lowers then.
    """
    if config.score_threshold and predictions.logits[-1].sigmoid().max() <= config.score_threshold:
        raise ValueError(f"bbox_coder.score_threshold = {config.score_threshold}: no detection passes it")
    return decoded_outputs(config, predictions)


def _batch(inputs: Mapping[str, np.ndarray], images: np.ndarray, can_bus: np.ndarray) -> ImageBatch:
    """Frames [T, 6, 3, H, W] with CAN-bus numbers [T, 18], by the calibration of all frames."""
    T = len(images)
    height, width = inputs["img_shape"].tolist()
    lidar2img = torch.from_numpy(inputs["lidar2img"]).expand(T, -1, -1, -1)
    rig = CameraRig(lidar2img, can_bus=torch.from_numpy(can_bus).double())
    pictures = torch.from_numpy(images)
    return ImageBatch(pictures, torch.tensor([height, width]).expand(*pictures.shape[:2], 2), rig)


def _past(bev: Tensor | None, motion: EgoMotion) -> list[PastView]:
    """The view of the frame before, if there is one."""
    return [] if bev is None else [PastView(bev, motion.shift, motion.turn)]


def _frame_outputs(frame: str, bev: Tensor, predictions: Predictions) -> dict[str, np.ndarray]:
    kept = prediction_outputs(predictions)
    out = {f"{frame}/{name}": kept[name] for name in ("all_cls_scores", "all_bbox_preds")}
    return out | {f"{frame}/bev_embed": bev.detach().numpy()}


def _count(inputs: Mapping[str, np.ndarray]) -> int:
    """Frames of the record."""
    return 1 + max(int(name.split("/")[1]) for name in inputs if name.startswith("frame/"))
