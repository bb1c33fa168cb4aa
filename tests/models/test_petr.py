"""PETR: tokens of all cameras, anchors, hidden cameras and padding, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bevdet_core.config import BackboneConfig, Config, ConfigError, PetrConfig
from bevdet_core.models import build_criterion, build_model
from bevdet_core.models.heads import inverse_sigmoid
from bevdet_core.structures import CameraRig, ImageBatch, Targets

from .test_detr3d import IMAGE_SIZE, RANGE, image_batch, rig

CONFIG = PetrConfig(
    backbone=BackboneConfig(depth=18, width=8, norm="batch", frozen_stages=0, out_stages=(3, 4)),
    embed_dim=32,
    num_queries=12,
    num_layers=2,
    num_heads=4,
    ffn_dim=32,
    dropout=0.0,
    num_depths=16,
    pc_range=RANGE,
    max_detections=20,
)


@pytest.fixture
def model() -> nn.Module:
    """A detector whose biases matter too."""
    torch.manual_seed(0)
    model = build_model(CONFIG, 4).eval()
    for name, parameter in model.head.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


def test_centres_lie_around_the_anchors_in_every_layer(model):
    predictions = model(image_batch())
    assert predictions.logits.shape == (2, 1, 12, 4)
    assert predictions.boxes.shape == (2, 1, 12, 10)
    head = model.head
    low, high = torch.tensor(RANGE).chunk(2)
    for layer in range(2):
        code = head.box_head(predictions.hidden[layer])
        centres = (code[..., [0, 1, 4]] + inverse_sigmoid(head.anchors.weight)).sigmoid() * (high - low) + low
        torch.testing.assert_close(predictions.boxes[layer][..., [0, 1, 4]], centres)
        torch.testing.assert_close(
            predictions.boxes[layer][..., [2, 3, 5, 6, 7, 8, 9]], code[..., [2, 3, 5, 6, 7, 8, 9]]
        )
        torch.testing.assert_close(predictions.logits[layer], head.class_head(predictions.hidden[layer]))
    (gradient,) = torch.autograd.grad(predictions.boxes[0].sum(), head.anchors.weight)
    assert gradient.any()  # the anchors learn


def test_the_decoder_reads_the_tokens_of_all_cameras(model):
    """Against nn.MultiheadAttention over all tokens of the rig, for the first layer."""
    batch = image_batch(2)
    (maps,) = model.neck(model.backbone(batch.images.flatten(0, 1)))
    head, layer = model.head, model.head.decoder.layers[0]
    tokens = head.input_proj(maps).view(2, 2, 32, 3, 5).permute(0, 1, 3, 4, 2).reshape(2, 30, 32)
    padding = torch.zeros(2, 2, 3, 5, dtype=torch.bool)
    positions = head.ray_embed((3, 5), rig(2), IMAGE_SIZE) + head.sine_embed(padding)
    positions = positions.permute(0, 1, 3, 4, 2).reshape(2, 30, 32)
    query_pos = head.query_embed(point_waves(head.anchors.weight)).expand(2, -1, -1)

    def attention(ours, query, key, value):
        theirs = nn.MultiheadAttention(32, 4, batch_first=True)
        theirs.load_state_dict(
            {
                "in_proj_weight": ours.in_proj.weight,
                "in_proj_bias": ours.in_proj.bias,
                "out_proj.weight": ours.out_proj.weight,
                "out_proj.bias": ours.out_proj.bias,
            }
        )
        return theirs(query, key, value)[0]

    query = layer.norm1(attention(layer.self_attention, query_pos, query_pos, torch.zeros_like(query_pos)))
    query = layer.norm2(query + attention(layer.cross_attention, query + query_pos, tokens + positions, tokens))
    query = layer.norm3(query + layer.ffn(query))
    torch.testing.assert_close(model(batch).hidden[0], head.decoder.norm(query), rtol=1e-4, atol=1e-4)


def point_waves(points: torch.Tensor) -> torch.Tensor:
    """The sine embedding of anchors, number by number."""
    numbers = []
    for axis in (1, 0, 2):
        for i in range(8):
            angle = 2 * torch.pi * points[:, axis] / 10000 ** (2 * i / 16)
            numbers += [angle.sin(), angle.cos()]
    return torch.stack(numbers, -1)


def test_padding_changes_nothing(model):
    """A frame gives the same whether it was padded for a larger one or not, whatever the features are there."""
    maps = torch.randn(1, 2, 32, 3, 5)
    narrow = model.head(maps, rig(), IMAGE_SIZE, torch.zeros(1, 2, *IMAGE_SIZE, dtype=torch.bool))
    padding = torch.ones(1, 2, 64, 112, dtype=torch.bool)
    padding[..., : IMAGE_SIZE[0], : IMAGE_SIZE[1]] = False
    wide = model.head(nn.functional.pad(maps, (0, 2, 0, 1), value=9.0), rig(), (64, 112), padding)
    torch.testing.assert_close(wide.logits, narrow.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wide.boxes, narrow.boxes, rtol=1e-4, atol=1e-4)


def test_frames_of_a_batch_do_not_see_each_other(model):
    batch = image_batch(2)
    together = model(batch)
    assert (together.logits[:, 0] - together.logits[:, 1]).abs().max() > 0.03
    for b in range(2):
        alone = model(ImageBatch(batch.images[b : b + 1], batch.sizes[b : b + 1], CameraRig(rig(2)[b : b + 1])))
        torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, b], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.logits[:, 0], together.logits[:, b], rtol=1e-4, atol=1e-4)


def test_rigs_with_different_numbers_of_cameras_share_a_batch(model):
    batch = image_batch(2)
    sizes = batch.sizes.clone()
    sizes[1, 1] = 0
    hidden = torch.tensor([[False, False], [False, True]])
    mixed = model(ImageBatch(batch.images, sizes, CameraRig(rig(2), hidden=hidden)))
    alone = model(ImageBatch(batch.images[1:, :1], batch.sizes[1:, :1], CameraRig(rig(2)[1:, :1])))
    both = model(ImageBatch(batch.images[:1], batch.sizes[:1], CameraRig(rig(2)[:1])))
    torch.testing.assert_close(mixed.logits[:, 1], alone.logits[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed.logits[:, 0], both.logits[:, 0], rtol=1e-4, atol=1e-4)


def test_a_hidden_camera_is_not_looked_at_and_keeps_its_place(model):
    batch = image_batch()
    answers = []
    for picture in (batch.images[:, 1], torch.full_like(batch.images[:, 1], 5.0)):
        images = torch.stack([batch.images[:, 0], picture], 1)
        answers.append(model(ImageBatch(images, batch.sizes, CameraRig(rig(), hidden=torch.tensor([[False, True]])))))
    assert torch.equal(answers[0].logits, answers[1].logits)
    alone = ImageBatch(batch.images[:, :1], batch.sizes[:, :1], CameraRig(rig()[:, :1]))
    # The first of two cameras is not the same as the only one.
    assert (model(alone).logits - answers[0].logits).abs().max() > 5e-4


def test_a_rig_without_any_working_camera_gives_finite_answers_and_gradients(model):
    model.train()
    batch = image_batch(2)
    batch.rig = CameraRig(rig(2), hidden=torch.tensor([[True, True], [False, True]]))
    targets = [Targets(torch.tensor([1]), torch.tensor([[2.0, 10, -0.5, 2, 4, 1.5, 0.3, 1, 0.5]]))] * 2
    predictions = model(batch)
    build_criterion(CONFIG)(predictions, targets)["total"].backward()
    assert predictions.boxes.isfinite().all()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 50
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_bfloat16_keeps_coordinates(model):
    exact = model(image_batch())
    with torch.autocast("cpu", torch.bfloat16):
        half = model(image_batch())
    assert half.boxes.dtype == torch.float32
    torch.testing.assert_close(half.boxes[..., [0, 1, 4]], exact.boxes[..., [0, 1, 4]], atol=0.5, rtol=0)


def test_initial_state_is_that_of_the_release():
    torch.manual_seed(0)
    head = build_model(CONFIG, 4).head
    assert 0 <= head.anchors.weight.min() < 0.1
    assert 0.9 < head.anchors.weight.max() <= 1
    torch.testing.assert_close(head.class_head[-1].bias.sigmoid(), torch.full((4,), 0.01))
    assert not any(m.bias.any() for m in head.decoder.modules() if isinstance(m, nn.Linear))


def test_without_a_pyramid_the_last_feature_map_is_read():
    config = PetrConfig(
        backbone=BackboneConfig(depth=18, width=8, out_stages=(4,)), fpn=False, embed_dim=32, num_layers=1
    )
    model = build_model(config, 4).eval()
    assert model.head.input_proj.in_channels == 64
    assert model(image_batch()).boxes.shape == (1, 1, 900, 10)


def test_the_published_network_has_its_size():
    backbone = BackboneConfig(depth=50, style="caffe", frozen_stages=0, out_stages=(3, 4), deformable_stages=(3, 4))
    with torch.device("meta"):
        model = build_model(PetrConfig(backbone=backbone), 10)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["head.ray_embed.encoder.0.weight"] == (1024, 192, 1, 1)
    assert shapes["head.sine_embed.encoder.0.weight"] == (1024, 384, 1, 1)
    assert shapes["head.query_embed.0.weight"] == (256, 384)
    assert shapes["head.decoder.layers.5.ffn.linear1.weight"] == (2048, 256)
    assert shapes["neck.lateral_convs.1.weight"] == (256, 2048, 1, 1)
    assert "neck.output_convs.1.weight" not in shapes
    assert shapes["backbone.layer3.5.conv2.conv_offset.weight"] == (27, 256, 3, 3)


@pytest.mark.parametrize("change", [{"embed_dim": 30}, {"num_depths": 0}, {"depth_start": 61.2}, {"depth_start": 0.0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        Config(PetrConfig(**change))


def test_it_says_what_input_it_needs(model):
    batch = image_batch()
    with pytest.raises(ValueError, match="PETR needs calibrated cameras: the batch has no rig"):
        model(ImageBatch(batch.images, batch.sizes))


def test_it_learns_a_frame_and_a_frame_without_objects():
    torch.manual_seed(0)
    model, criterion = build_model(CONFIG, 4), build_criterion(CONFIG)
    boxes = torch.tensor([[2.0, 10, -0.5, 2, 4, 1.5, 0.3, 1, 0.5], [-4.0, 12, 0.5, 1, 1, 2, -2, torch.nan, torch.nan]])
    targets = [Targets(torch.tensor([0, 1]), boxes), Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 9))]
    batch = image_batch(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(200):
        losses = criterion(model(batch), targets, batch.tokens)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        (scores, labels, found), (empty_scores, _, _) = model.eval().decode(model(batch), batch)
    assert scores[:2].min() > 0.5
    assert empty_scores.max() < 0.4
    order = labels[:2].argsort()
    assert labels[order].tolist() == [0, 1]
    assert (found[order, :3] - boxes[:, :3]).norm(dim=1).max() < 1.0
