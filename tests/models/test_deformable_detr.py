"""Deformable DETR and DETR as built from settings: sizes, start values, denoising queries, edge cases."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bevdet_core.config import (
    BackboneConfig,
    ConfigError,
    DeformableDetrConfig,
    DenoisingConfig,
    DetrConfig,
    load_config,
)
from bevdet_core.losses import LossError
from bevdet_core.models import build_criterion, build_model
from bevdet_core.structures import ImageBatch, Targets

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "coco").glob("*.yaml"))
SMALL = DeformableDetrConfig(
    backbone=BackboneConfig(depth=18, width=8, norm="batch", frozen_stages=0),
    embed_dim=32,
    num_queries=9,
    encoder_layers=1,
    decoder_layers=2,
    num_heads=4,
    ffn_dim=32,
    dropout=0.0,
)
SMALL_DETR = DetrConfig(
    backbone=BackboneConfig(depth=18, width=8, out_stages=(4,)),
    embed_dim=32,
    num_queries=9,
    encoder_layers=1,
    decoder_layers=2,
    num_heads=4,
    ffn_dim=32,
)
SINGLE = BackboneConfig(out_stages=(4,))


def batch_of(*sizes: tuple[int, int]) -> ImageBatch:
    torch.manual_seed(0)
    sides = torch.tensor(sizes)[:, None]
    height, width = sides.amax((0, 1)).tolist()
    batch = ImageBatch(torch.randn(len(sizes), 1, 3, height, width), sides, original_sizes=2 * sides)
    batch.images.masked_fill_(batch.mask[:, :, None], 0.0)
    return batch


def objects(*counts: int) -> list[Targets]:
    torch.manual_seed(1)
    return [Targets(torch.randint(5, (n,)), torch.rand(n, 4) * 0.4 + 0.3) for n in counts]


@pytest.mark.parametrize(
    ("config", "classes", "parameters"),
    [
        (DeformableDetrConfig(num_levels=1, backbone=SINGLE), 91, 33_844_193),
        (DeformableDetrConfig(), 91, 39_847_265),
        (DeformableDetrConfig(), 4, 39_824_906),
        (DeformableDetrConfig(refine=True), 91, 40_627_260),
        (DeformableDetrConfig(refine=True, two_stage=True), 91, 40_959_129),
    ],
)
def test_number_of_trained_parameters_is_the_published_one(config, classes: int, parameters: int):
    model = build_model(config, classes)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_published_configuration_builds(path: Path):
    config = load_config(path)
    with torch.device("meta"):
        model = build_model(config.model, 80)
    assert sum(p.numel() for p in model.parameters()) > 4e6


@pytest.mark.parametrize(("refine", "two_stage", "sizes"), [(0, 0, [-2]), (1, 0, [-2, 0]), (1, 1, [0, 0])])
def test_start_values(refine: int, two_stage: int, sizes: list[int]):
    model = build_model(replace(SMALL, refine=bool(refine), two_stage=bool(two_stage)), 5)
    heads = list(dict.fromkeys(model.decoder.box_heads))
    assert [head[-1].bias.tolist() for head in heads] == [[0, 0, size, size] for size in sizes]
    assert all((head[-1].weight == 0).all() for head in heads)
    prior = model.decoder.class_heads[0].bias.sigmoid()
    torch.testing.assert_close(prior, torch.full_like(prior, 0.01))
    offsets = model.encoder.layers[0].self_attention.sampling_offsets
    assert (offsets.weight == 0).all()
    # Head 0 looks to the right, point p at p + 1 pixels.
    assert offsets.bias.view(4, 4, 4, 2)[0, 2].tolist() == [[p, 0.0] for p in (1.0, 2.0, 3.0, 4.0)]
    assert math.isclose(model.level_embed.std().item(), 1.0, rel_tol=0.3)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, refine=True, two_stage=True), SMALL_DETR])
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (12, 2)])
def test_learns_from_no_objects_and_from_more_than_queries(config, counts: tuple[int, ...]):
    model = build_model(config, 5).train()
    losses = build_criterion(config)(model(batch_of((96, 64), (64, 96))), objects(*counts))
    losses["total"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("two_stage", [False, True])
def test_what_features_hold_under_padding_changes_nothing(two_stage: bool):
    model = build_model(replace(SMALL, refine=two_stage, two_stage=two_stage), 5).eval()
    batch = batch_of((96, 64), (128, 128))
    outputs = []
    for filling in (0.0, 100.0):
        levels = [torch.randn(2, 32, side, side, generator=torch.manual_seed(2)) for side in (16, 8, 4, 2)]
        features, positions = model.tokens(levels, batch.mask[:, 0])
        features.tokens = features.tokens.masked_fill(features.mask[..., None], filling)
        memory = model.encoder(features, positions)
        outputs.append(memory.masked_fill(features.mask[..., None], 0.0))
        features.tokens = memory
        if two_stage:
            _, reference, query_pos, query = model.queries(features)
        else:
            reference, query_pos, query = model.queries(2)
        outputs.append(model.decoder(features, query, query_pos, reference).boxes[-1])
    torch.testing.assert_close(outputs[0], outputs[2], atol=0, rtol=0)
    torch.testing.assert_close(outputs[1], outputs[3], atol=0, rtol=0)


def test_detections_are_in_pixels_of_the_original_image():
    model = build_model(SMALL, 5).eval()
    batch = batch_of((96, 64), (64, 96))
    predictions = model(batch)
    predictions.boxes = torch.tensor([0.5, 0.5, 1.0, 0.5]).expand_as(predictions.boxes)
    (scores, labels, boxes), _ = model.decode(predictions, batch)
    assert scores.shape == labels.shape == (45,)  # all of 9 queries x 5 classes
    assert (scores.diff() <= 0).all()
    assert boxes[0].tolist() == [0.0, 48.0, 128.0, 144.0]


def test_rig_frames_are_refused():
    images = torch.zeros(1, 6, 3, 64, 64)
    with pytest.raises(ValueError, match="frames of 6 cameras"):
        build_model(SMALL, 5)(ImageBatch(images, torch.full((1, 6, 2), 64)))


def test_two_stage_names_too_small_images():
    config = replace(SMALL, refine=True, two_stage=True, num_queries=500)
    with pytest.raises(ValueError, match="500 queries cannot be chosen from 193 encoder cells"):
        build_model(config, 5).eval()(batch_of((96, 96)))


def test_two_stage_needs_refinement():
    with pytest.raises(ConfigError, match=r"two_stage needs model\.refine"):
        replace(SMALL, two_stage=True)


@pytest.mark.parametrize("two_stage", [False, True])
def test_denoising_queries_do_not_tell_the_learned_ones_anything(two_stage: bool):
    torch.manual_seed(0)
    config = replace(SMALL, refine=two_stage, two_stage=two_stage, denoising=DenoisingConfig(groups=3))
    model = build_model(config, 5)
    for module in model.modules():  # running statistics would move between two calls
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    batch = batch_of((96, 64), (64, 96))
    model.train()
    plain = model(batch)
    shown = model(replace(batch, targets=objects(4, 1)))
    torch.testing.assert_close(shown.logits, plain.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shown.boxes, plain.boxes, atol=1e-5, rtol=1e-5)
    denoising = shown.paired["denoising"]
    assert denoising.logits.shape == (2, 15, 5)
    assert denoising.targets.boxes.shape == (15, 4)
    model.eval()
    assert not model(replace(batch, targets=objects(4, 1))).paired


def test_denoising_groups_see_themselves_alone():
    torch.manual_seed(0)
    config = replace(SMALL, denoising=DenoisingConfig(groups=2))
    noisy = build_model(config, 5).denoising(objects(3, 1))
    mask = noisy.attention_mask(num_learned=2)
    assert mask.shape == (2, 1, 8, 8)
    assert not mask[:, :, :2, 2:].any()  # learned queries
    assert mask[:, :, :, :2].all()
    assert mask[0, 0, 2:, 2:].tolist() == torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool().tolist()
    own = torch.eye(6, dtype=torch.bool)
    own[:3, 0] = own[3:, 3] = True  # the only target of the second image
    assert torch.equal(mask[1, 0, 2:, 2:], own)


def test_denoising_noise_stays_within_its_limits():
    torch.manual_seed(0)
    wanted = objects(5, 2)
    generator = build_model(replace(SMALL, denoising=DenoisingConfig(groups=40, label_noise=0.0)), 5).denoising
    noisy = generator(wanted)
    truth, boxes = noisy.targets.boxes, noisy.boxes[noisy.present]
    assert torch.equal(noisy.targets.labels, torch.cat([wanted[0].labels.repeat(40), wanted[1].labels.repeat(40)]))
    shift = (boxes[:, :2] - truth[:, :2]).abs() / (truth[:, 2:] / 2)
    scale = (boxes[:, 2:] / truth[:, 2:] - 1).abs()
    for change in (shift, scale):
        assert change.max() <= 0.4 + 1e-5
        assert change.max() > 0.35
    assert torch.equal(noisy.query[noisy.present], generator.label_embed(noisy.targets.labels))


def test_denoising_has_losses_of_its_own():
    config = replace(SMALL, denoising=DenoisingConfig(groups=2))
    model = build_model(config, 5).train()
    for counts in ((3, 1), (0, 0)):
        wanted = objects(*counts)
        losses = build_criterion(config)(model(replace(batch_of((96, 64), (64, 96)), targets=wanted)), wanted)
        names = {"denoising/loss_class", "denoising/layer0/loss_giou", "loss_class", "layer0/loss_box"}
        assert names <= set(losses)
        losses["total"].backward()
        # Every parameter takes part in every step, which distributed training needs.
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        model.zero_grad()


def test_predictions_that_are_not_finite_are_named():
    model = build_model(SMALL, 5).train()
    predictions = model(batch_of((96, 64), (64, 96)))
    predictions.logits[1, 1, 3, 2] = torch.nan
    wanted = [*objects(1), Targets(torch.tensor([2]), torch.rand(1, 4))]
    with pytest.raises(LossError, match=r"sample 'second\.jpg', last layer"):
        build_criterion(SMALL)(predictions, wanted, ["first.jpg", "second.jpg"])


def test_a_small_set_is_learned_by_heart():
    torch.manual_seed(0)
    config = replace(SMALL, refine=True, two_stage=True, denoising=DenoisingConfig(groups=2))
    model, criterion = build_model(config, 5).train(), build_criterion(config)
    wanted = objects(2, 1)
    batch = replace(batch_of((96, 64), (64, 96)), targets=wanted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(60):
        losses = criterion(model(batch), wanted)
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(losses["total"].item())
    assert totals[-1] < 0.6 * totals[0]


@pytest.mark.parametrize("config", [SMALL, SMALL_DETR], ids=lambda config: config.name)
def test_boxes_in_pixels_need_the_sizes_of_the_images(config):
    model = build_model(config, 3).eval()
    batch = ImageBatch(torch.zeros(1, 1, 3, 96, 128), torch.tensor([[[96, 128]]]))
    with torch.no_grad(), pytest.raises(ValueError, match=r"decoding 2D boxes needs batch\.original_sizes"):
        model.decode(model(batch), batch)
