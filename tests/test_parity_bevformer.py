"""Records of full BEVFormer detectors, made here: their two roads through the library must lead to the same numbers.

A record of the full detector gives poses as they are and lets the memory find out the motion; one of the head alone
gives feature maps and the motion itself.
"""

from __future__ import annotations

from pathlib import Path

import check_parity
import numpy as np
import pytest
import torch

from bevdet_core.convert.bevformer import BEVFORMER
from bevdet_core.models import build_model
from bevdet_core.models.cameras import camera_features
from bevdet_core.structures import Targets

BACKBONE = {
    "type": "ResNet",
    "depth": 50,
    "num_stages": 4,
    "out_indices": (1, 2, 3),
    "frozen_stages": 1,
    "norm_cfg": {"type": "BN2d", "requires_grad": False},
    "norm_eval": True,
    "style": "caffe",
    "with_cp": True,
    "base_channels": 4,
    "dcn": {"type": "DCNv2", "deform_groups": 1, "fallback_on_stride": False},
    "stage_with_dcn": (False, False, True, True),
}
NECK = {
    "type": "FPN",
    "in_channels": [32, 64, 128],
    "out_channels": 256,
    "start_level": 0,
    "add_extra_convs": "on_output",
    "num_outs": 4,
    "relu_before_extra_convs": True,
}
SIZE = (64, 96)


@pytest.fixture(scope="module")
def record(shared: Path):
    """(meta, inputs, state dict) of a detector with four levels; three frames, the last of another scene."""
    meta, head_inputs, _, _ = check_parity.load_record(shared / "parity" / "bevformer_tiny_like.npz")
    from parity import bevformer

    meta["config"] |= {"img_backbone": BACKBONE, "img_neck": NECK}
    layer = meta["config"]["pts_bbox_head"]["transformer"]["encoder"]["transformerlayers"]
    layer["attn_cfgs"][1]["deformable_attention"]["num_levels"] = 4
    config = bevformer.bevformer_config(meta["config"], torch.ones(10))
    assert (config.num_levels, config.release_quirks, config.backbone.deformable_stages) == (4, True, (3, 4))
    torch.manual_seed(0)
    official = BEVFORMER.to_official(build_model(config, 10).state_dict())
    generator = torch.Generator().manual_seed(1)
    state_dict = {key: tensor.numpy() for key, tensor in official.items()}
    for key in state_dict:
        if not state_dict[key].any() and state_dict[key].ndim:
            state_dict[key] = 0.1 * torch.randn(state_dict[key].shape, generator=generator).numpy()
    state_dict["pts_bbox_head.code_weights"] = np.ones(10, np.float32)
    random = np.random.RandomState(0)
    inputs = {"img_shape": np.array(SIZE), "lidar2img": head_inputs["frame/0/lidar2img"]}
    can_bus = random.standard_normal((3, 18)).astype(np.float32)
    for k, (x, degrees) in enumerate(((600.0, 350.0), (603.0, 356.5), (900.0, 10.0))):
        can_bus[k, :3], can_bus[k, 16:] = (x, 1500 - k, 0.5), (np.radians(degrees), degrees)
        inputs[f"frame/{k}/img"] = random.standard_normal((1, 6, 3, *SIZE)).astype(np.float32)
        inputs[f"frame/{k}/can_bus"] = can_bus[k][None]
        inputs[f"frame/{k}/scene"] = np.array(k // 2)
    inputs["train/img"] = random.standard_normal((1, 3, 6, 3, *SIZE)).astype(np.float32)
    relative = random.standard_normal((3, 18)).astype(np.float32)
    relative[0, :3] = relative[0, 17] = 0
    inputs["train/can_bus"], inputs["train/prev_bev_exists"] = relative, np.array([False, True, True])
    inputs |= {f"train/{name}": value for name, value in head_inputs.items() if name.startswith("targets/")}
    return meta, inputs, state_dict


@pytest.fixture(scope="module")
def computed(record):
    from parity import bevformer

    return bevformer.run(*record)


def loaded(record):
    from parity import bevformer

    from bevdet_core.convert.layout import load_official

    meta, _, state_dict = record
    config = bevformer.bevformer_config(meta["config"], torch.ones(10))
    model = build_model(config, 10)
    load_official(model, {key: torch.from_numpy(value) for key, value in state_dict.items()}, BEVFORMER, "record")
    return model.eval(), config


def test_every_output_is_there(computed, record):
    for k in range(3):
        assert computed[f"frame/{k}/bev_embed"].shape == (1, 256, 256)
        assert computed[f"frame/{k}/all_cls_scores"].shape == (2, 1, 30, 10)
        assert {f"frame/{k}/decoded/{name}" for name in ("scores", "labels", "boxes_bottom")} <= set(computed)
    assert {"train/bev_embed", "train/all_cls_scores", "train/all_bbox_preds"} <= set(computed)
    assert {"match/1/0/pred", "loss/total", "loss/d0.loss_bbox"} <= set(computed)
    assert all(np.isfinite(value).all() for value in computed.values())
    state_dict = record[2]
    trained = {key.removeprefix("grad_norm/") for key in computed if key.startswith("grad_norm/")}
    norms = {key for key in state_dict if ".bn" in key or "downsample.1" in key}
    frozen = {key for key in state_dict if key.startswith(("img_backbone.conv1", "img_backbone.layer1."))}
    assert trained == set(state_dict) - norms - frozen - {"pts_bbox_head.code_weights"}


def test_a_video_is_a_chain_of_heads(computed, record):
    from parity import bevformer

    model, config = loaded(record)
    _, inputs, _ = record
    chain = {"img_shape": inputs["img_shape"], "loss_frame": np.array(1)}
    chain |= {name.removeprefix("train/"): value for name, value in inputs.items() if name.startswith("train/targets")}
    for k in range(2):
        batch = bevformer._batch(inputs, inputs[f"frame/{k}/img"], inputs[f"frame/{k}/can_bus"])
        with torch.no_grad():
            maps = camera_features(model.backbone, model.neck, batch, None)
        chain |= {f"frame/{k}/feats/{level}": m.numpy() for level, m in enumerate(maps)}
        chain[f"frame/{k}/lidar2img"] = inputs["lidar2img"]
        signals = inputs[f"frame/{k}/can_bus"].copy()
        signals[:, [0, 1, 2, 17]] -= inputs["frame/0/can_bus"][:, [0, 1, 2, 17]]
        chain[f"frame/{k}/can_bus"] = signals
    expected = bevformer.run_head(config, model.head, chain)
    for name in ("bev_embed", "all_cls_scores", "all_bbox_preds"):
        for k in range(2):
            np.testing.assert_allclose(computed[f"frame/{k}/{name}"], expected[f"frame/{k}/{name}"], atol=1e-4)
    assert expected["frame/1/shift"].any()
    # The third frame begins a scene.
    alone = {name: value for name, value in inputs.items() if not name.startswith("frame/")}
    alone |= {name.replace("/2/", "/0/"): value for name, value in inputs.items() if name.startswith("frame/2/")}
    first = bevformer.run_video(config, model, alone)
    np.testing.assert_allclose(computed["frame/2/bev_embed"], first["frame/0/bev_embed"], atol=1e-5)


def test_a_recorded_queue_is_what_training_runs(computed, record):
    """With positions summed up from the recorded motion, the library's own queue gives the recorded numbers."""
    from parity import bevformer

    model, _ = loaded(record)
    _, inputs, _ = record
    can_bus = inputs["train/can_bus"].astype(np.float64)
    can_bus[:, [0, 1, 2, 17]] = can_bus[:, [0, 1, 2, 17]].cumsum(0)
    images = inputs["train/img"][0]
    batch = bevformer._batch(inputs, images[2:], can_bus[2:])
    batch.history = bevformer._batch(inputs, images[:2], can_bus[:2])
    batch.history.owners = [0, 0]
    batch.targets = [Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 9))]
    logits = model.train()(batch).logits.detach().numpy()
    np.testing.assert_allclose(logits, computed["train/all_cls_scores"], atol=1e-4)
    batch.history = None
    assert abs(model(batch).logits.detach().numpy() - computed["train/all_cls_scores"]).max() > 1e-2
