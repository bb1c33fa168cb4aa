"""The criterion: each term against its formula, the whole against transformers, and the limits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bevdet_core import boxes3d
from bevdet_core.losses import (
    BoxL1Loss,
    CardinalityError,
    ClassError,
    FocalLoss,
    GIoULoss,
    LossError,
    MatchedLayers,
    SetCriterion,
    SoftmaxLoss,
)
from bevdet_core.matching import Assignment, BoxL1Cost, FocalClassCost, GIoUCost, HungarianMatcher, SoftmaxClassCost
from bevdet_core.structures import Predictions, Targets

L, B, Q, C = 3, 3, 8, 4


def predictions(classes: int = C, numbers: int = 4, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    return Predictions(
        torch.randn(L, B, Q, classes, generator=generator).requires_grad_(),
        torch.rand(L, B, Q, numbers, generator=generator).mul(0.4).add(0.3).requires_grad_(),
    )


def targets(counts=(3, 0, 2), numbers: int = 4, seed: int = 1) -> list[Targets]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Targets(torch.randint(C, (n,), generator=generator), torch.rand(n, numbers, generator=generator) * 0.3 + 0.3)
        for n in counts
    ]


def focal_criterion(**options) -> SetCriterion:
    matcher = HungarianMatcher([FocalClassCost(), BoxL1Cost(), GIoUCost()])
    metrics = [CardinalityError(no_object=False), ClassError()]
    return SetCriterion(matcher, [FocalLoss(), BoxL1Loss(), GIoULoss(), *metrics], **options)


def matched(logits: Tensor, boxes: Tensor, wanted: list[Targets]) -> MatchedLayers:
    """Layers in which query i of every image is paired with its target i."""
    images = torch.tensor([image for image, target in enumerate(wanted) for _ in range(len(target))], dtype=torch.int64)
    index = torch.cat([torch.arange(len(target)) for target in wanted]).expand(len(logits), -1)
    return MatchedLayers(logits, boxes, wanted, Assignment(images, index, index), 2.0)


def test_focal_loss_is_its_formula():
    p = predictions()
    wanted = targets()
    present = torch.zeros(L, B, Q, C, dtype=torch.float64)
    for image, target in enumerate(wanted):
        present[:, image, torch.arange(len(target)), target.labels] = 1
    x = p.logits.double()
    score = x.sigmoid()
    right = score * present + (1 - score) * (1 - present)
    alpha = 0.25 * present + 0.75 * (1 - present)
    expected = (-alpha * (1 - right) ** 2 * right.log()).sum((1, 2, 3)) / 2
    torch.testing.assert_close(FocalLoss()(matched(p.logits, p.boxes, wanted)).double(), expected, rtol=1e-5, atol=0)


def test_focal_loss_is_finite_for_extreme_logits():
    p = predictions()
    logits = torch.full_like(p.logits, 200.0).requires_grad_()
    with torch.no_grad():
        logits[:, :, ::2] = -200.0
    loss = FocalLoss()(matched(logits, p.boxes, targets()))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_softmax_loss_is_weighted_cross_entropy():
    p = predictions()
    wanted = [Targets(t.labels % (C - 1), t.boxes) for t in targets()]
    labels = torch.full((B, Q), C - 1)
    for image, target in enumerate(wanted):
        labels[image, : len(target)] = target.labels
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = torch.stack([F.cross_entropy(x.transpose(1, 2), labels, weight) for x in p.logits])
    torch.testing.assert_close(SoftmaxLoss()(matched(p.logits, p.boxes, wanted)), expected)


def test_unknown_velocity_leaves_out_the_number_or_the_box():
    p = predictions(numbers=10)
    wanted = targets((2, 1, 0), numbers=9)
    wanted[0].boxes[1, 7:] = torch.nan
    weights = (1.0,) * 8 + (0.2,) * 2
    codes = boxes3d.encode(torch.cat([t.boxes for t in wanted]))
    ours = torch.stack([p.boxes[:, 0, 0], p.boxes[:, 0, 1], p.boxes[:, 1, 0]], 1)
    distance = ((ours - codes).abs() * torch.tensor(weights)).detach()  # [L, 3, 10]
    for unknown, expected in (
        ("number", distance.nansum((1, 2)) / 2),
        ("box", distance[:, [0, 2]].sum((1, 2)) / 2),
    ):
        loss = BoxL1Loss(0.25, boxes3d.encode, weights, unknown)(matched(p.logits, p.boxes, wanted))
        torch.testing.assert_close(loss, expected)
        (grad,) = torch.autograd.grad(loss.sum(), p.boxes)
        assert grad.isfinite().all()
        assert (grad[:, 0, 1, :8] != 0).all() == (unknown == "number")
        assert (grad[:, 0, 1, 8:] == 0).all()


@pytest.mark.parametrize("family", ["detr", "deformable-detr"])
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0), (12, 1, 0)])
def test_agrees_with_transformers(family, counts):
    """Losses of every layer, cardinality and gradients; with empty images and more targets than queries."""
    from transformers.loss import loss_deformable_detr, loss_for_object_detection

    p, wanted = predictions(C if family == "deformable-detr" else C + 1), targets(counts)
    if family == "detr":
        matcher = HungarianMatcher([SoftmaxClassCost(1.0), BoxL1Cost(5.0), GIoUCost(2.0)])
        criterion = SetCriterion(matcher, [SoftmaxLoss(1.0), BoxL1Loss(5.0), GIoULoss(2.0), CardinalityError()])
        their_matcher = loss_for_object_detection.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
        theirs = loss_for_object_detection.ImageLoss(their_matcher, C, 0.1, ["labels", "boxes", "cardinality"])
    else:
        criterion = focal_criterion()
        their_matcher = loss_deformable_detr.DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
        theirs = loss_deformable_detr.DeformableDetrImageLoss(
            their_matcher, C, 0.25, ["labels", "boxes", "cardinality"]
        )
    ours = criterion(p, wanted)
    ours["total"].backward()
    outputs = [{"logits": x, "pred_boxes": b} for x, b in zip(p.logits, p.boxes, strict=True)]
    gradients = [x.grad.clone() for x in (p.logits, p.boxes)]
    p.logits.grad = p.boxes.grad = None
    expected = theirs(
        outputs[-1] | {"auxiliary_outputs": outputs[:-1]},
        [{"class_labels": t.labels, "boxes": t.boxes} for t in wanted],
    )
    total = torch.zeros(())
    for layer in range(L):
        prefix, suffix = ("", "") if layer == L - 1 else (f"layer{layer}/", f"_{layer}")
        if family == "detr":  # versions of transformers disagree on what it is for sigmoid classifiers
            torch.testing.assert_close(ours[f"{prefix}cardinality_error"], expected[f"cardinality_error{suffix}"])
        for name, key, weight in (
            ("class", "loss_ce", 1.0 if family == "detr" else 2.0),
            ("box", "loss_bbox", 5.0),
            ("giou", "loss_giou", 2.0),
        ):
            torch.testing.assert_close(ours[f"{prefix}loss_{name}"], weight * expected[f"{key}{suffix}"].detach())
            total = total + weight * expected[f"{key}{suffix}"]
    total.backward()
    for mine, x in zip(gradients, (p.logits, p.boxes), strict=True):
        torch.testing.assert_close(mine, x.grad, rtol=1e-4, atol=1e-6)


def test_total_is_the_sum_of_the_losses_and_metrics_stay_out():
    losses = focal_criterion()(predictions(), targets())
    summands = [value for name, value in losses.items() if "loss_" in name]
    assert len(summands) == 3 * L
    torch.testing.assert_close(losses["total"].detach(), torch.stack(summands).sum())
    assert losses["total"].requires_grad
    assert not any(value.requires_grad for name, value in losses.items() if name != "total")


@pytest.mark.parametrize(("no_object", "expected"), [(True, (2 + 8 + 0) / 3), (False, (1 + 3 + 1) / 3)])
def test_cardinality_error(no_object, expected):
    """Image 0 has 3 targets, image 1 none, image 2 two."""
    logits = torch.full((1, B, Q, C), -1.0)
    logits[0, 0, :5, 0], logits[0, 0, 5:, -1] = -0.5, -0.5  # best class 0 five times, the last one three times
    logits[0, 0, :4, 0] = 0.5
    logits[0, 1, :3, 1] = 2.0  # ties elsewhere go to the first class
    logits[0, 2, :2, 0], logits[0, 2, 2:, -1] = -0.5, -0.5
    logits[0, 2, 0, 0] = 1.0
    layers = matched(logits, torch.zeros(1, B, Q, 4), targets())
    assert CardinalityError(no_object)(layers).item() == pytest.approx(expected)


def test_class_error():
    p, wanted = predictions(), targets((2, 0, 2))
    with torch.no_grad():
        p.logits.zero_()
        p.logits[:, 0, 0, wanted[0].labels[0]] = p.logits[:, 2, 1, wanted[2].labels[1]] = 5
        p.logits[:, 0, 1, (wanted[0].labels[1] + 1) % C] = p.logits[:, 2, 0, (wanted[2].labels[0] + 1) % C] = 5
    assert ClassError()(matched(p.logits, p.boxes, wanted)).tolist() == [50.0] * L
    assert ClassError()(matched(p.logits, p.boxes, targets((0, 0, 0)))).tolist() == [100.0] * L


def test_proposals_are_supervised_as_one_class():
    p, wanted = predictions(), targets()
    proposals = predictions(seed=3)
    p.proposals = Predictions(proposals.logits[:1], proposals.boxes[:1])
    with_proposals = focal_criterion()(p, wanted)
    agnostic = [Targets(torch.zeros_like(t.labels), t.boxes) for t in wanted]
    alone = focal_criterion()(p.proposals, agnostic)
    for term in ("loss_class", "loss_box", "loss_giou", "cardinality_error"):
        torch.testing.assert_close(with_proposals[f"proposals/{term}"], alone[term])


@pytest.mark.parametrize(("count", "divisor"), [("targets", 12), ("pairs", Q)])
def test_normaliser_where_targets_outnumber_queries(count, divisor):
    p = Predictions(predictions().logits[:, :1], predictions().boxes[:, :1])
    wanted = targets((12,))
    one = focal_criterion(count=count)
    (assignment,) = one.matcher(one.layer_sets(p, wanted))
    boxes = wanted[0].boxes[assignment.targets[-1]]
    expected = 5 * (p.boxes[-1, 0, assignment.queries[-1]] - boxes).abs().sum().detach() / divisor
    torch.testing.assert_close(one(p, wanted)["loss_box"], expected)


def test_a_batch_without_targets_trains():
    p = predictions()
    losses = focal_criterion()(p, targets((0, 0, 0)))
    losses["total"].backward()
    assert losses["loss_box"] == 0
    assert losses["loss_class"] > 0
    assert (p.boxes.grad == 0).all()


def test_16_bit_predictions_are_widened():
    p = predictions()
    half = Predictions(p.logits.bfloat16(), p.boxes.bfloat16())
    losses = focal_criterion()(half, targets())
    wide = focal_criterion()(Predictions(half.logits.float(), half.boxes.float()), targets())
    assert losses["total"].dtype == torch.float32
    assert losses["total"] == wide["total"]


def test_a_loss_that_is_not_finite_names_sample_layer_and_term():
    p, wanted = predictions(), targets()
    with torch.no_grad():
        p.logits[1, 1, 0, 0] = torch.nan  # image 1 has no targets, so no cost shows it
    with pytest.raises(LossError, match=r"layer1/loss_class of sample 'frame-b'$"):
        focal_criterion()(p, wanted, ["frame-a", "frame-b", "frame-c"])
    with pytest.raises(LossError, match=r"layer1/loss_class of sample 1 of the batch$"):
        focal_criterion()(p, wanted)


def test_targets_must_go_with_the_predictions():
    with pytest.raises(ValueError, match="3 images but targets of 2"):
        focal_criterion()(predictions(), targets((1, 2)))


def _count_in_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        losses = focal_criterion()(predictions(), targets((1, 0, 0) if rank == 0 else (3, 2, 0)))
        torch.save(losses["loss_box"], f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_normaliser_is_averaged_over_processes(tmp_path):
    torch.multiprocessing.spawn(_count_in_process, (str(tmp_path),), nprocs=2)
    for rank, counts in enumerate(((1, 0, 0), (3, 2, 0))):
        alone = focal_criterion()(predictions(), targets(counts))["loss_box"]
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(together * (1 + 5) / 2, alone * sum(counts))
