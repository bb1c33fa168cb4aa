"""The public functions: what they compute, on numbers that can be checked by hand, and what they refuse."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

from bevdet_ops import library, multi_camera_deformable_attention, multi_scale_deformable_attention

SHAPES = ((2, 3), (1, 2))


def arguments(**changes) -> dict:
    """A legal call: B 2, N 3, S 8, M 2, D 4, Q 5, Lr 1, Z 1, L 2, P 4."""
    torch.manual_seed(0)
    return {
        "value": torch.randn(2, 3, 8, 2, 4),
        "spatial_shapes": SHAPES,
        "reference_points": torch.rand(2, 3, 5, 1, 1, 2),
        "sampling_offsets": torch.randn(2, 1, 5, 2, 2, 4, 2),
        "attention_weights": torch.randn(2, 1, 5, 2, 2, 4),
        "visible": torch.ones(2, 3, 5, dtype=torch.bool),
    } | changes


def ramp(H: int, W: int) -> torch.Tensor:
    """A one-level value [1, 1, H * W, 1, 2] that holds the pixel's x and y."""
    y, x = torch.meshgrid(torch.arange(float(H)), torch.arange(float(W)), indexing="ij")
    return torch.stack((x, y), -1).view(1, 1, H * W, 1, 2)


def look_at(*points: tuple[float, ...]) -> torch.Tensor:
    """References [1, 1, Q, 1, 1, 2 or 4]."""
    return torch.tensor(points).view(1, 1, len(points), 1, 1, -1)


def test_offsets_are_pixels_of_their_level() -> None:
    offsets = torch.tensor([1.0, -2.0]).view(1, 1, 1, 1, 1, 1, 2)
    output = multi_camera_deformable_attention(
        ramp(8, 10), ((8, 10),), look_at((0.5, 0.5)), offsets, torch.ones(1, 1, 1, 1, 1, 1)
    )
    torch.testing.assert_close(output, torch.tensor([[[0.5 * 10 - 0.5 + 1, 0.5 * 8 - 0.5 - 2]]]))


def test_offsets_are_half_boxes_where_references_are_boxes() -> None:
    offsets = torch.tensor([[1.0, -2.0], [0.0, 0.0]]).view(1, 1, 1, 1, 1, 2, 2)
    weights = torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 1, 2)
    box = look_at((0.5, 0.5, 0.4, 0.2))
    output = multi_camera_deformable_attention(ramp(8, 10), ((8, 10),), box, offsets, weights)
    x, y = 0.5 + 1 / 2 * 0.4 / 2, 0.5 - 2 / 2 * 0.2 / 2
    torch.testing.assert_close(output, torch.tensor([[[x * 10 - 0.5, y * 8 - 0.5]]]))


def test_point_belongs_to_anchor_modulo() -> None:
    anchors = torch.tensor([[0.25, 0.25], [0.75, 0.75]]).view(1, 1, 1, 1, 2, 2)
    for point in range(4):
        weights = F.one_hot(torch.tensor(point), 4).float().view(1, 1, 1, 1, 1, 4)
        output = multi_camera_deformable_attention(ramp(8, 8), ((8, 8),), anchors, None, weights)
        torch.testing.assert_close(output, torch.full((1, 1, 2), (0.25, 0.75)[point % 2] * 8 - 0.5))


@pytest.mark.parametrize(("reduction", "wanted"), [("sum", 6.0), ("mean", 2.0), ("mean_visible", 3.0)])
def test_reductions_over_cameras(reduction: str, wanted: float) -> None:
    value = torch.tensor([1.0, 7.0, 5.0]).view(1, 3, 1, 1, 1)  # one pixel in each of three cameras
    visible = torch.tensor([True, False, True]).view(1, 3, 1)
    points = torch.full((1, 3, 1, 1, 1, 2), 0.5)
    weights = torch.ones(1, 1, 1, 1, 1, 1)
    output = multi_camera_deformable_attention(value, ((1, 1),), points, None, weights, visible, reduction=reduction)
    torch.testing.assert_close(output, torch.full((1, 1, 1), wanted))


@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_visible"])
def test_nothing_visible_gives_zero(reduction: str) -> None:
    call = arguments(visible=torch.zeros(2, 3, 5, dtype=torch.bool))
    assert torch.count_nonzero(multi_camera_deformable_attention(**call, reduction=reduction)) == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_references_that_are_not_finite_hide_their_camera(broken: float) -> None:
    call = arguments(visible=None)
    call["reference_points"][0, 1, 2, 0, 0, 1] = broken
    visible = torch.ones(2, 3, 5, dtype=torch.bool)
    visible[0, 1, 2] = False
    wanted = arguments(visible=visible)
    for reduction in ("sum", "mean", "mean_visible"):
        found = multi_camera_deformable_attention(**call, reduction=reduction)
        assert torch.equal(found, multi_camera_deformable_attention(**wanted, reduction=reduction))


def test_shared_axes_equal_copies() -> None:
    call = arguments()
    copied = arguments(
        reference_points=call["reference_points"].expand(-1, -1, -1, 2, -1, -1),
        sampling_offsets=call["sampling_offsets"].expand(-1, 3, -1, -1, -1, -1, -1),
        attention_weights=call["attention_weights"].expand(-1, 3, -1, -1, -1, -1),
    )
    assert torch.equal(multi_camera_deformable_attention(**call), multi_camera_deformable_attention(**copied))


def test_activations() -> None:
    raw = arguments()["attention_weights"]
    activated = {"softmax": raw.flatten(-2).softmax(-1).view_as(raw), "sigmoid": raw.sigmoid(), "none": raw}
    for name, weights in activated.items():
        found = multi_camera_deformable_attention(**arguments(), weight_activation=name)
        wanted = multi_camera_deformable_attention(**arguments(attention_weights=weights))
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0)])
def test_empty(shape: tuple[int, int, int]) -> None:
    B, N, Q = shape
    value = torch.randn(B, N, 8, 2, 4, requires_grad=True)
    weights = torch.randn(B, 1, Q, 2, 2, 4, requires_grad=True)
    output = multi_camera_deformable_attention(value, SHAPES, torch.rand(B, N, Q, 1, 1, 2), None, weights)
    assert output.shape == (B, Q, 8)
    output.sum().backward()
    assert torch.count_nonzero(value.grad) == 0
    assert weights.grad.shape == weights.shape


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("P", [3, 4])
def test_common_signature_is_grid_sample(tensors: bool, P: int) -> None:
    torch.manual_seed(0)
    value = torch.randn(3, 8, 2, 4)
    locations, weights = torch.rand(3, 5, 2, 2, P, 2) * 1.4 - 0.2, torch.rand(3, 5, 2, 2, P)
    wanted = torch.zeros(3, 2, 4, 5)
    for level, ((H, W), part) in enumerate(zip(SHAPES, value.split((6, 2), dim=1), strict=True)):
        maps = part.permute(0, 2, 3, 1).reshape(6, 4, H, W)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).reshape(6, 5, P, 2) - 1
        sampled = F.grid_sample(maps, grid, align_corners=False).view(3, 2, 4, 5, P)
        wanted += (sampled * weights[:, :, :, level].transpose(1, 2).unsqueeze(2)).sum(-1)
    levels = (torch.tensor(SHAPES), torch.tensor([0, 6])) if tensors else (SHAPES, (0, 6))
    output = multi_scale_deformable_attention(value, *levels, locations, weights)
    torch.testing.assert_close(output, wanted.flatten(1, 2).transpose(1, 2))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"value": [1.0]}, TypeError, "value must be a float32.* but is a list"),
        ({"value": torch.zeros(2, 3, 8, 2, 4, dtype=torch.int32)}, TypeError, "value .* tensor of torch.int32"),
        ({"value": torch.zeros(2, 8, 2, 4)}, ValueError, r"value must have shape \[B, N, S, M, D\].*\[2, 8, 2, 4\]"),
        ({"value": torch.zeros(2, 3, 9, 2, 4)}, ValueError, r"S = 9 .* \[\(2, 3\), \(1, 2\)\] add up to 8"),
        ({"value": torch.zeros(2, 3, 8, 2, 0)}, ValueError, "at least one camera, head and channel"),
        ({"spatial_shapes": torch.tensor(SHAPES)}, TypeError, "host integers"),
        ({"spatial_shapes": (2, 3)}, TypeError, r"pairs of integers .* \(2, 3\)"),
        ({"spatial_shapes": ((2.0, 3), (1, 2))}, TypeError, "must hold integers"),
        ({"spatial_shapes": ((0, 3), (1, 8))}, ValueError, "must be positive"),
        ({"spatial_shapes": ()}, ValueError, "at least one level"),
        ({"reference_points": torch.rand(2, 3, 5, 1, 2)}, ValueError, r"reference_points must have shape \[B=2, N=3"),
        ({"reference_points": torch.rand(2, 1, 5, 1, 1, 2)}, ValueError, r"but has shape \[2, 1, 5, 1, 1, 2\]"),
        ({"reference_points": torch.rand(2, 3, 5, 3, 1, 2)}, ValueError, "Lr=1 or 2"),
        ({"reference_points": torch.rand(2, 3, 5, 1, 1, 3)}, ValueError, "2 or 4"),
        ({"reference_points": torch.ones(2, 3, 5, 1, 1, 2).int()}, TypeError, "reference_points must be a floating"),
        ({"sampling_offsets": torch.rand(2, 2, 5, 2, 2, 4, 2)}, ValueError, "sampling_offsets .*No=1 or 3"),
        ({"sampling_offsets": torch.rand(2, 1, 5, 2, 2, 3, 2)}, ValueError, "P=4.* to go with attention_weights"),
        ({"attention_weights": torch.rand(2, 1, 4, 2, 2, 4)}, ValueError, "attention_weights .*Q=5"),
        ({"attention_weights": torch.rand(2, 1, 5, 2, 8)}, ValueError, r"attention_weights .*L=2, P\]"),
        ({"attention_weights": None}, TypeError, "attention_weights .* but is a NoneType"),
        ({"visible": torch.ones(2, 3, 5)}, TypeError, "visible must be a bool tensor or None"),
        ({"visible": torch.ones(2, 5, dtype=torch.bool)}, ValueError, r"visible must have shape \[B=2, N=3, Q=5\]"),
        ({"weight_activation": "relu"}, ValueError, "weight_activation must be one of .*'softmax'.*'relu'"),
        ({"reduction": "max"}, ValueError, "reduction must be one of .*'mean_visible'.*'max'"),
        ({"reference_points": torch.rand(2, 3, 5, 1, 1, 2, device="meta")}, ValueError, "is on meta, but value is on"),
        ({"visible": torch.ones(2, 3, 5, device="meta", dtype=torch.bool)}, ValueError, "visible is on meta"),
    ],
)
def test_refusals(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        multi_camera_deformable_attention(**arguments(**changes))


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (0, torch.zeros(2, 3, 8, 2, 4), r"value must have shape \[B, S, M, D\]"),
        (1, ((2, 3), (2, 2)), r"S = 8 .* add up to 10"),
        (2, (0, 5), "level 1 starts at 6"),
        (2, (0,), "one entry for each of 2 levels"),
        (3, torch.rand(2, 5, 2, 2, 3, 2), r"sampling_locations must have shape .*P=4"),
        (4, torch.rand(2, 5, 3, 2, 4), r"attention_weights must have shape .*M=2"),
    ],
)
def test_refusals_of_the_common_signature(position: int, wrong, message: str) -> None:
    call = [torch.rand(2, 8, 2, 4), SHAPES, (0, 6), torch.rand(2, 5, 2, 2, 4, 2), torch.rand(2, 5, 2, 2, 4)]
    call[position] = wrong
    with pytest.raises(ValueError, match=message):
        multi_scale_deformable_attention(*call)


def test_checks_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "multi_camera_deformable_attention", lambda *arguments: None)
    call = arguments()
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(1000):
            multi_camera_deformable_attention(**call)
        best = min(best, time.process_time() - start)
    assert best / 1000 < 20e-6
