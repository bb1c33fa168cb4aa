"""The matcher: against brute force, at its limits, and what it says when something is wrong."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from bevdet_core import boxes3d
from bevdet_core.matching import (
    BoxL1Cost,
    FocalClassCost,
    GIoUCost,
    HungarianMatcher,
    LayerSet,
    LossError,
    SoftmaxClassCost,
)
from bevdet_core.structures import Targets

TERMS_2D = (FocalClassCost(), BoxL1Cost(), GIoUCost())
TERMS_3D = (FocalClassCost(), BoxL1Cost(0.25, boxes3d.encode, numbers=8))


def layer_set(counts: list[int], layers: int = 2, queries: int = 6, classes: int = 3, seed: int = 0) -> LayerSet:
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    return LayerSet(
        [f"layer{i}" for i in range(layers)],
        4 * rand(layers, len(counts), queries, classes) - 2,
        rand(layers, len(counts), queries, 4),
        [Targets(torch.randint(classes, (n,), generator=generator), rand(n, 4) + 0.01) for n in counts],
    )


def layer_set_3d(counts: list[int]) -> LayerSet:
    out = layer_set(counts)
    out.boxes = torch.rand(2, len(counts), 6, 10, generator=torch.Generator().manual_seed(1))
    out.targets = [
        Targets(t.labels, torch.rand(len(t), 9, generator=torch.Generator().manual_seed(i)) + 0.5)
        for i, t in enumerate(out.targets)
    ]
    return out


def cheapest(cost: Tensor) -> float:
    """The cost of the best assignment, by trying all."""
    queries, targets = cost.shape
    if queries >= targets:
        return min(
            sum(cost[q, t].item() for t, q in enumerate(chosen)) for chosen in permutations(range(queries), targets)
        )
    return cheapest(cost.T)


@pytest.mark.parametrize("terms", [TERMS_2D, (SoftmaxClassCost(), BoxL1Cost(), GIoUCost())])
def test_assignment_is_the_cheapest(terms):
    layers = layer_set([3, 2, 5])
    (assignment,) = HungarianMatcher(terms)([layers])
    for layer in range(2):
        for image, target in enumerate(layers.targets):
            cost = sum(t(layers.logits[:, image], layers.boxes[:, image], target) for t in terms)[layer]
            own = assignment.images == image
            queries, indices = assignment.queries[layer, own], assignment.targets[layer, own]
            assert sorted(indices.tolist()) == list(range(len(target)))
            assert queries.tolist() == sorted(set(queries.tolist()))
            assert cost[queries, indices].sum().item() == pytest.approx(cheapest(cost), abs=1e-5)


def test_terms_agree_with_their_formulas():
    logits, box = torch.tensor([[[0.3, -1.2]]]), torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
    targets = Targets(torch.tensor([1]), torch.tensor([[0.4, 0.5, 0.2, 0.2]]))
    p = 1 / (1 + torch.tensor(1.2).exp())
    focal = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
    torch.testing.assert_close(FocalClassCost(2.0)(logits, box, targets).squeeze(), 2 * focal)
    torch.testing.assert_close(
        SoftmaxClassCost(3.0)(logits, box, targets).squeeze(),
        -3 * torch.tensor(1.5).neg().exp() / (1 + torch.tensor(-1.5).exp()),
    )
    torch.testing.assert_close(BoxL1Cost(5.0)(logits, box, targets).squeeze(), torch.tensor(5 * 0.3))
    # Overlap 0.1 x 0.2 = 0.02, union 0.10, hull 0.3 x 0.4 = 0.12.
    torch.testing.assert_close(GIoUCost(2.0)(logits, box, targets).squeeze(), torch.tensor(-2 * (0.2 - 0.02 / 0.12)))


def test_only_the_first_numbers_of_a_code_count():
    layers = layer_set_3d([2])
    target = layers.targets[0]
    target.boxes[:, 7:] = torch.nan  # nobody knows the velocity
    cost = BoxL1Cost(0.25, boxes3d.encode, numbers=8)(layers.logits[:, 0], layers.boxes[:, 0], target)
    expected = 0.25 * (layers.boxes[:, 0, :, None, :8] - boxes3d.encode(target.boxes)[:, :8]).abs().sum(-1)
    torch.testing.assert_close(cost, expected)


@pytest.mark.parametrize("counts", [[0, 3], [3, 0, 2], [0, 0]])
def test_images_without_targets(counts):
    (assignment,) = HungarianMatcher(TERMS_2D)([layer_set(counts)])
    assert assignment.images.tolist() == [image for image, n in enumerate(counts) for _ in range(n)]
    assert assignment.queries.shape == assignment.targets.shape == (2, sum(counts))


def test_more_targets_than_queries():
    layers = layer_set([9, 2], queries=4)
    (assignment,) = HungarianMatcher(TERMS_2D)([layers])
    assert assignment.images.tolist() == [0, 0, 0, 0, 1, 1]
    assert assignment.queries[:, :4].tolist() == [[0, 1, 2, 3]] * 2
    cost = sum(t(layers.logits[:, 0], layers.boxes[:, 0], layers.targets[0]) for t in TERMS_2D)[1]
    assert cost[assignment.queries[1, :4], assignment.targets[1, :4]].sum().item() == pytest.approx(
        cheapest(cost), abs=1e-5
    )


def test_sets_are_matched_as_if_alone():
    decoder, proposals = layer_set([3, 0, 2], layers=3), layer_set([3, 0, 2], layers=1, queries=40, classes=1, seed=5)
    matcher = HungarianMatcher(TERMS_2D)
    both = matcher([decoder, proposals])
    for together, alone in zip(both, (matcher([decoder])[0], matcher([proposals])[0]), strict=True):
        assert torch.equal(together.queries, alone.queries)
        assert torch.equal(together.targets, alone.targets)


def test_one_copy_to_the_host_whatever_the_number_of_layers_images_and_sets(monkeypatch):
    copies = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: copies.append(self.numel()) or cpu(self))
    for name in ("item", "tolist", "__bool__", "__float__"):
        monkeypatch.setattr(Tensor, name, lambda self, name=name: pytest.fail(f"Tensor.{name} waits for the device"))
    HungarianMatcher(TERMS_2D)([layer_set([3, 0, 2], layers=6), layer_set([3, 0, 2], layers=1, queries=50)])
    # Queries are compared with their own image's targets alone.
    assert copies == [6 * 6 * (3 + 2) + 50 * (3 + 2)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("field", "term"), [("logits", "'class'"), ("boxes", "'box'")])
def test_a_cost_that_is_not_finite_names_image_layer_and_term(field, term, value):
    layers = layer_set([1, 0, 2], layers=3)
    if field == "logits":
        value = torch.nan  # the sigmoid of infinity is an honest 1
    getattr(layers, field)[1, 2, 4] = value
    with pytest.raises(LossError, match=rf"sample 'frame-c', layer1: the matching cost {term}.*query 4"):
        HungarianMatcher((FocalClassCost(), BoxL1Cost()))([layers], ["frame-a", "frame-b", "frame-c"])


def test_a_target_that_is_not_finite_is_shown():
    layers = layer_set_3d([2, 2])
    layers.targets[1].boxes[0, 3] = torch.nan
    with pytest.raises(
        LossError, match=r"sample 1 of the batch, layer0: the matching cost 'box' .*target 0 .*target box \(.*nan"
    ):
        HungarianMatcher(TERMS_3D)([layers])


def test_a_matcher_needs_a_term():
    with pytest.raises(ValueError, match="at least one cost term"):
        HungarianMatcher([])
