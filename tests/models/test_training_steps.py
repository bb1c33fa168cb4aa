"""What every detector must be able to do in a training step."""

from __future__ import annotations

import pytest
import torch

from bevdet_core.config import Config, load_config
from bevdet_core.models import build_criterion, build_model
from bevdet_core.models.recomputation import recompute_blocks
from bevdet_core.structures import CameraRig, ImageBatch, Targets

BACKBONE = {"depth": 18, "width": 8, "norm": "affine", "frozen_stages": 1}
WIDTH = {"embed_dim": 32, "num_heads": 4, "ffn_dim": 32, "num_queries": 7, "dropout": 0.1}
PLAIN = {**WIDTH, "encoder_layers": 2, "decoder_layers": 2}
RIGS = ("detr3d", "bevformer", "petr")
DETECTORS = {
    "detr": {"name": "detr", **PLAIN, "backbone": {**BACKBONE, "out_stages": [4]}},
    "deformable": {"name": "deformable_detr", **PLAIN, "backbone": BACKBONE},
    "two-stage": {
        **{"name": "deformable_detr", **PLAIN, "backbone": BACKBONE},
        **{"refine": True, "two_stage": True, "denoising": {"groups": 2}},
    },
    "detr3d": {
        **{"name": "detr3d", **WIDTH, "backbone": BACKBONE},
        **{"num_layers": 2, "num_levels": 3, "num_cameras": 2, "perspective": True},
    },
    "bevformer": {
        **{"name": "bevformer", **WIDTH, "backbone": BACKBONE, "encoder_layers": 2, "decoder_layers": 2},
        **{"num_levels": 3, "num_cameras": 2, "bev_shape": [6, 6]},
    },
    "petr": {"name": "petr", **WIDTH, "backbone": {**BACKBONE, "out_stages": [3, 4]}, "num_layers": 2},
}


@pytest.fixture(params=DETECTORS)
def config(request) -> Config:
    data = {"name": "nuscenes" if DETECTORS[request.param]["name"] in RIGS else "coco", "classes": ["car", "bus"]}
    return load_config({"model": DETECTORS[request.param], "data": data})


def example(config: Config, objects: tuple[int, int]) -> tuple[ImageBatch, list[Targets]]:
    """Two samples with so many objects."""
    torch.manual_seed(1)
    rig, numbers = None, 4
    if config.model.name in RIGS:
        lidar2img = torch.tensor([[32.0, -32, 0, 0], [16, 0, -32, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
        rig, numbers = CameraRig(lidar2img.expand(2, 2, 4, 4)), 9
    cameras = 1 if rig is None else 2
    sizes = torch.tensor([64, 64]).expand(2, cameras, 2)
    batch = ImageBatch(torch.randn(2, cameras, 3, 64, 64), sizes, rig, ("one", "two"), original_sizes=sizes)
    boxes = [torch.rand(count, numbers) * 0.5 + 0.25 for count in objects]
    if rig is not None:
        boxes = [box * torch.tensor([30.0, 5, 2, 4, 8, 3, 3, 1, 1]) for box in boxes]
    batch.targets = [Targets(torch.zeros(len(box), dtype=torch.int64), box) for box in boxes]
    return batch, batch.targets


def step(config: Config, objects: tuple[int, int], recompute: bool = False):
    """Loss, gradients by name, and bytes kept for the backward pass."""
    torch.manual_seed(0)
    model = build_model(config.model, 2).train()
    if recompute:
        assert recompute_blocks(model) >= 6
    batch, targets = example(config, objects)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        losses = build_criterion(config.model)(model(batch), targets, batch.tokens)
    losses["total"].backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return losses["total"].item(), gradients, sum(kept)


@pytest.mark.parametrize("objects", [(3, 0), (0, 0), (9, 12)], ids=["some", "none", "more than queries"])
def test_every_parameter_gets_a_finite_gradient_whatever_the_batch_holds(config, objects):
    # Processes that average their gradients wait for every one of them.
    _, gradients, _ = step(config, objects)
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []


def test_activation_checkpointing_keeps_the_gradients_and_saves_memory(config):
    loss, gradients, kept = step(config, (3, 2))
    same_loss, same, less = step(config, (3, 2), recompute=True)
    assert same_loss == loss  # dropout included
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=0, atol=0, msg=name)
    assert less < 0.7 * kept
