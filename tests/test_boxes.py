"""2D boxes: formats and overlaps against values worked out by hand and against counting pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bevdet_core import boxes

numbers = st.floats(-100, 100, width=32)
corners = st.tuples(numbers, numbers, st.floats(0, 50, width=32), st.floats(0, 50, width=32)).map(
    lambda b: torch.tensor([b[0], b[1], b[0] + b[2], b[1] + b[3]])
)


def count_pixels(a: Tensor, b: Tensor) -> tuple[int, int, int]:
    """Cells of the integer grid in the intersection, the union and the hull of two boxes with integer corners."""
    grid = torch.zeros(2, 20, 20, dtype=torch.bool)
    for layer, (x0, y0, x1, y1) in zip(grid, (a.int().tolist(), b.int().tolist()), strict=True):
        layer[y0:y1, x0:x1] = True
    rows, columns = (grid[0] | grid[1]).nonzero().unbind(1)
    hull = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    return int((grid[0] & grid[1]).sum()), int((grid[0] | grid[1]).sum()), int(hull)


def test_overlaps_agree_with_counted_pixels():
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 10, (2, 30, 2), generator=generator)
    size = torch.randint(1, 10, (2, 30, 2), generator=generator)
    a, b = torch.cat([low, low + size], -1).float()
    iou, giou = boxes.pairwise_iou(a, b), boxes.pairwise_giou(a, b)
    assert (iou == 0).any()
    assert (iou > 0.3).any()
    for i in range(30):
        for j in range(30):
            intersection, union, hull = count_pixels(a[i], b[j])
            assert iou[i, j] == pytest.approx(intersection / union)
            assert giou[i, j] == pytest.approx(intersection / union - (hull - union) / hull, abs=1e-6)


def test_elementwise_overlap_is_the_diagonal_of_the_pairwise_one():
    a = torch.tensor([[0.0, 0, 2, 2], [1, 1, 4, 3]])
    b = torch.tensor([[1.0, 1, 3, 3], [1, 1, 4, 3]])
    torch.testing.assert_close(boxes.iou(a, b), torch.tensor([1 / 7, 1.0]))
    torch.testing.assert_close(boxes.giou(a, b), torch.tensor([1 / 7 - 2 / 9, 1.0]))
    torch.testing.assert_close(boxes.giou(a, b), boxes.pairwise_giou(a, b).diagonal())


def test_pairwise_overlap_has_leading_axes():
    a, b = torch.rand(3, 5, 2), torch.rand(3, 7, 2)
    a, b = torch.cat([a, a + 0.5], -1), torch.cat([b, b + 0.5], -1)
    assert boxes.pairwise_giou(a, b).shape == (3, 5, 7)


def test_boxes_without_area_have_finite_overlaps_and_gradients():
    point = torch.tensor([1.0, 1, 1, 1], requires_grad=True)
    other = torch.tensor([1.0, 1, 1, 1])
    assert boxes.iou(point, other) == 0
    giou = boxes.giou(point, other)
    giou.backward()
    assert giou.isfinite()
    assert point.grad.isfinite().all()


@given(corners, corners)
@settings(max_examples=100, deadline=None)
def test_overlaps_are_symmetric_and_bounded(a: Tensor, b: Tensor):
    iou, giou = boxes.iou(a, b), boxes.giou(a, b)
    assert 0 <= iou <= 1 + 1e-5
    assert -1 - 1e-5 <= giou <= iou + 1e-5
    assert boxes.giou(b, a) == giou


@given(corners)
@settings(max_examples=100, deadline=None)
def test_formats_convert_back(box: Tensor):
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(box)), box, atol=1e-4, rtol=1e-5)


def test_area():
    assert boxes.area(torch.tensor([[1.0, 2, 4, 6]])).tolist() == [12.0]
