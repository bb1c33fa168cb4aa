"""DETR3D: what a query sees, how boxes come about, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevdet_core import boxes3d
from bevdet_core.config import BackboneConfig, ConfigError, Detr3dConfig
from bevdet_core.geometry import locate_in_images
from bevdet_core.models import build_criterion, build_detr3d_head, build_model
from bevdet_core.models.detr3d import CameraCrossAttention, Detr3dHead
from bevdet_core.models.query_head import Proposals
from bevdet_core.models.rig_detector import decode
from bevdet_core.structures import CameraRig, ImageBatch, Predictions, Targets

RANGE = (-20.0, -20.0, -3.0, 20.0, 20.0, 3.0)
CONFIG = Detr3dConfig(
    backbone=BackboneConfig(depth=18, width=8, norm="batch", frozen_stages=0, out_stages=(2, 3)),
    num_cameras=2,
    num_levels=3,
    embed_dim=32,
    num_queries=12,
    num_layers=2,
    num_heads=4,
    ffn_dim=32,
    dropout=0.0,
    pc_range=RANGE,
    max_detections=20,
)
IMAGE_SIZE = (48, 80)


def rig(batch_size: int = 1) -> Tensor:
    """[B, 2, 4, 4]: a camera that looks along y (forward) and one that looks back; a little different per sample."""
    out = torch.zeros(batch_size, 2, 4, 4)
    for b in range(batch_size):
        focal = 40.0 + 4 * b
        for n, sign in enumerate((1.0, -1.0)):
            camera = torch.tensor([[sign, 0, 0, 0], [0, 0, -1, 0], [0, sign, 0, 0], [0, 0, 0, 1.0]])
            intrinsic = torch.tensor([[focal, 0, 40, 0], [0, focal, 24, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
            out[b, n] = intrinsic @ camera
    return out


def image_batch(batch_size: int = 1, seed: int = 0) -> ImageBatch:
    images = torch.randn(batch_size, 2, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))
    sizes = torch.tensor(IMAGE_SIZE).expand(batch_size, 2, 2)
    return ImageBatch(images, sizes, CameraRig(rig(batch_size)), [f"frame-{b}" for b in range(batch_size)])


def features(batch_size: int = 1, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, 10), (3, 5), (2, 3))
    return [torch.randn(batch_size, 2, 32, h, w, generator=generator) for h, w in shapes]


def make_head(config: Detr3dConfig = CONFIG) -> Detr3dHead:
    """A head whose every parameter matters: nothing is left at zero."""
    torch.manual_seed(0)
    head = build_detr3d_head(config, num_classes=4)
    for parameter in head.parameters():
        if parameter.ndim == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return head


@pytest.mark.parametrize(
    ("point", "camera", "place"),
    [
        ((0.0, 10.0, 0.0), 0, (0.5, 0.5)),
        ((5.0, 10.0, 0.0), 0, (0.75, 0.5)),  # right of the front camera
        ((0.0, 10.0, 3.0), 0, (0.5, 0.25)),  # above
        ((5.0, -10.0, 0.0), 1, (0.25, 0.5)),  # for the rear camera, x is left
        ((15.0, 10.0, 0.0), None, None),  # between the cameras
        ((0.0, 0.0, 0.0), None, None),  # depth 0
        ((10.0, 10.0, 0.0), None, None),  # exactly on the border, which is outside
    ],
)
def test_where_cameras_see_a_point(point, camera, place):
    head = make_head()
    low, high = torch.tensor(RANGE).chunk(2)
    reference = ((torch.tensor(point) - low) / (high - low)).view(1, 1, 3)
    locations, visible = locate_in_images(head.to_metres(reference), rig(), IMAGE_SIZE)
    assert visible[0, :, 0].tolist() == [camera == n for n in range(2)]
    if camera is not None:
        torch.testing.assert_close(locations[0, camera, 0], torch.tensor(place))


def test_cross_attention_is_grid_sample_with_sigmoid_weights():
    """Against a plain restatement: one bilinear sample per camera and level, hidden cameras left out."""
    torch.manual_seed(0)
    layer = CameraCrossAttention(32, 2, 3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    maps = features(2)
    query, query_pos, reference = torch.randn(2, 9, 32), torch.randn(2, 9, 32), torch.rand(2, 9, 3)
    locations, visible = torch.rand(2, 2, 9, 2) * 1.4 - 0.2, torch.rand(2, 2, 9) > 0.4
    weights = layer.attention_weights(query + query_pos).sigmoid().view(2, 9, 2, 3)
    total = torch.zeros(2, 9, 32)
    for camera in range(2):
        for level, feature in enumerate(maps):
            grid = 2 * locations[:, camera, :, None] - 1
            sampled = F.grid_sample(feature[:, camera], grid, align_corners=False)[..., 0].transpose(1, 2)
            total += sampled * (weights[:, :, camera, level] * visible[:, camera])[..., None]
    expected = layer.output_proj(total) + layer.position_encoder(reference.logit(1e-5))
    value = torch.cat([f.flatten(3).transpose(2, 3) for f in maps], 2).unsqueeze(3)
    shapes = tuple(tuple(f.shape[-2:]) for f in maps)
    ours = layer(query, query_pos, value, shapes, reference, locations, visible)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_centres_are_the_refined_references_in_metres():
    predictions = make_head()(features(), rig(), IMAGE_SIZE)
    assert predictions.logits.shape == (2, 1, 12, 4)
    assert predictions.boxes.shape == (2, 1, 12, 10)
    assert predictions.references.shape == (3, 1, 12, 3)
    assert predictions.hidden.shape == (2, 1, 12, 32)
    low, high = torch.tensor(RANGE).chunk(2)
    centres = predictions.references[1:] * (high - low) + low
    torch.testing.assert_close(predictions.boxes[..., [0, 1, 4]], centres)


def test_references_are_detached_between_layers():
    head = make_head()
    boxes = head(features(), rig(), IMAGE_SIZE).boxes
    parameters = [head.reference_points.weight, head.layers[0].ffn.linear1.weight, *head.box_heads[0].parameters()]
    first, queries, *box_head = torch.autograd.grad(boxes[1].sum(), parameters)
    # A later box reaches the first references and the queries before it, never the box head in between.
    assert first.any()
    assert queries.any()
    assert not any(grad.any() for grad in box_head)


def test_frames_of_a_batch_do_not_see_each_other():
    model = build_model(CONFIG, 4).eval()
    batch = image_batch(2)
    together = model(batch)
    for b in range(2):
        alone = model(ImageBatch(batch.images[b : b + 1], batch.sizes[b : b + 1], CameraRig(rig(2)[b : b + 1])))
        torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, b], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.logits[:, 0], together.logits[:, b], rtol=1e-4, atol=1e-4)


def test_nothing_is_read_from_a_hidden_camera():
    """A rig whose second camera failed gives what the rig without it gives, whatever picture and pose it has."""
    model = build_model(CONFIG, 4).eval()
    batch = image_batch()
    alone = model(ImageBatch(batch.images[:, :1], batch.sizes[:, :1], CameraRig(rig()[:, :1])))
    failed = CameraRig(rig()[:, [0, 0]], hidden=torch.tensor([[False, True]]))
    without = model(ImageBatch(batch.images, batch.sizes, failed))
    torch.testing.assert_close(without.boxes, alone.boxes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(without.logits, alone.logits, rtol=1e-4, atol=1e-4)
    assert (model(batch).logits - alone.logits).abs().max() > 1e-3


def test_a_rig_without_any_working_camera_gives_finite_answers_and_gradients():
    torch.manual_seed(0)
    model, criterion = build_model(replace(CONFIG, perspective=True), 4), build_criterion(CONFIG)
    batch = image_batch(2)
    batch.rig = CameraRig(rig(2), hidden=torch.ones(2, 2, dtype=torch.bool))
    batch.targets = [Targets(torch.tensor([1]), torch.tensor([[2.0, 10, -0.5, 2, 4, 1.5, 0.3, 1, 0.5]]))] * 2
    predictions = model(batch)
    assert not len(predictions.paired["perspective"].queries)  # no camera saw the object
    criterion(predictions, batch.targets)["total"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    found = model.eval()(batch)
    assert found.boxes.isfinite().all()
    assert found.logits.isfinite().all()


def test_proposed_queries_start_where_the_perspective_head_sees_objects():
    torch.manual_seed(0)
    model = build_model(replace(CONFIG, perspective=True, num_proposals=5), 4).eval()
    batch = image_batch(2)
    seen: list[Proposals] = []
    model.perspective.register_forward_hook(lambda module, inputs, cells: seen.append(cells.best(5)))
    found = model(batch)
    assert found.logits.shape == (2, 2, 17, 4)
    low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
    starts = found.references[0][:, 12:] * (high - low) + low
    torch.testing.assert_close(starts, seen[0].codes[..., [0, 1, 4]].maximum(low).minimum(high), rtol=1e-4, atol=1e-4)
    assert not found.paired  # that is for training


def test_proposals_need_the_head_that_proposes():
    with pytest.raises(ConfigError, match=r"num_proposals needs model\.perspective"):
        replace(CONFIG, num_proposals=5)


def test_bfloat16_keeps_coordinates():
    """Under autocast, features may lose digits; the projection and the first references may not."""
    head = make_head()
    exact = head(features(), rig(), IMAGE_SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        half = head(features(), rig(), IMAGE_SIZE)
    assert half.boxes.dtype == torch.float32
    assert torch.equal(half.references[0], exact.references[0])
    torch.testing.assert_close(half.references[1], exact.references[1], atol=0.02, rtol=0)


def test_initial_state_is_that_of_the_release():
    torch.manual_seed(0)
    head = build_detr3d_head(CONFIG, num_classes=4)
    for class_head, layer in zip(head.class_heads, head.layers, strict=True):
        torch.testing.assert_close(class_head[-1].bias.sigmoid(), torch.full((4,), 0.01))
        attention = layer.cross_attention
        assert not attention.attention_weights.weight.any()
        assert not attention.output_proj.bias.any()
        assert layer.self_attention.in_proj.weight.abs().max() <= math.sqrt(6 / (4 * 32))
    assert not head.reference_points.bias.any()
    assert all(box_head[-1].weight.any() for box_head in head.box_heads)


def test_decoding_takes_the_best_pairs_and_filters_them():
    logits = torch.full((1, 2, 3, 2), -9.0)
    logits[0, 0, 2, 1], logits[0, 0, 0, 0], logits[0, 0, 2, 0] = 3.0, 2.0, 1.0
    logits[0, 1, 1, 1] = 0.0
    box = torch.tensor([1.0, 2.0, 0.5, 1.5, 4.0, 2.0, 0.3, -0.2, 0.7])
    boxes = boxes3d.encode(box.expand(1, 2, 3, 9).clone())
    boxes[0, 0, 0, 0] = 61.3  # outside
    found = decode(Predictions(logits, boxes), 3, (-61.2, -61.2, -10, 61.2, 61.2, 10), score_threshold=0.4)
    scores, labels, kept = found[0]
    torch.testing.assert_close(scores, torch.tensor([3.0, 1.0]).sigmoid())
    assert labels.tolist() == [1, 0]
    torch.testing.assert_close(kept, box.expand(2, 9))
    assert [len(part) for part in found[1]] == [1, 1, 1]
    everything = decode(Predictions(logits, boxes), 300, (-100,) * 3 + (100,) * 3)
    assert [len(scores) for scores, _, _ in everything] == [6, 6]


def test_detectors_say_what_input_they_need():
    model = build_model(CONFIG, 4)
    batch = image_batch()
    with pytest.raises(ValueError, match="the batch has no rig"):
        model(ImageBatch(batch.images, batch.sizes))
    with pytest.raises(ValueError, match="reads up to 2 cameras at 3 levels, got 3 cameras at 3 levels"):
        model(ImageBatch(batch.images[:, [0, 1, 0]], batch.sizes[:, [0, 1, 0]], CameraRig(rig()[:, [0, 1, 0]])))


def test_it_learns_a_frame_and_a_frame_without_objects():
    """From random weights, two fixed frames: one with three objects, of which one has no known velocity, one empty."""
    torch.manual_seed(0)
    model, criterion = build_model(CONFIG, 4), build_criterion(CONFIG)
    boxes = torch.tensor(
        [
            [2.0, 10, -0.5, 2, 4, 1.5, 0.3, 1, 0.5],
            [-4.0, 12, 0.5, 1, 1, 2, -2, 0, 0],
            [3.0, -8, 0, 2, 6, 3, 1, torch.nan, torch.nan],
        ]
    )
    targets = [Targets(torch.tensor([0, 1, 2]), boxes), Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 9))]
    batch = image_batch(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(150):
        losses = criterion(model(batch), targets, batch.tokens)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        (scores, labels, found), (empty_scores, _, _) = model.decode(model(batch), batch)
    assert scores[:3].min() > 0.5
    assert scores[3:].max() < 0.4
    assert empty_scores.max() < 0.4
    order = labels[:3].argsort()
    assert labels[order].tolist() == [0, 1, 2]
    assert (found[order, :3] - boxes[:, :3]).norm(dim=1).max() < 1.0
    assert (found[order, 3:6] / boxes[:, 3:6]).log().abs().max() < 0.3
