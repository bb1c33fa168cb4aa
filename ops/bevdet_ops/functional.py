"""The public functions: arguments are checked here, on the host, and handed to the registered operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bevdet_ops import library

VALUE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WEIGHT_ACTIVATIONS = ("none", "sigmoid", "softmax")
REDUCTIONS = ("sum", "mean", "mean_visible")


def multi_camera_deformable_attention(
    value: Tensor,  # [B, N, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # ((H, W), ...)
    reference_points: Tensor,  # [B, N, Q, Lr, Z, 2 or 4]
    sampling_offsets: Tensor | None,  # [B, No, Q, Mo, Lo, P, 2]
    attention_weights: Tensor,  # [B, Nw, Q, Mw, L, P]
    visible: Tensor | None = None,  # [B, N, Q]
    weight_activation: str = "none",
    reduction: str = "sum",
    deterministic: bool | None = None,
) -> Tensor:
    """Sample every camera's feature pyramid around reference points and sum the samples by weight.

    One operator for 2D deformable attention (N = 1), DETR3D feature sampling, BEVFormer spatial cross-attention and
    temporal self-attention (N time steps). With ``w`` the activated weights, ``v[l]`` level l as a map that is zero
    outside its borders, and n over the cameras that see query q::

        output[b, q, m] = sum over n, l, p of  w[b, n, q, m, l, p] * bilinear(v[b, n, l, m], pixel[b, n, q, m, l, p])

    A reference with two numbers is (x, y) in [0, 1] of the image and offsets are in pixels of their own level:
    ``pixel = reference * (W, H) + offset - 0.5``. With four numbers it is a box (x, y, w, h) and offsets are in units
    of half its size: ``pixel = (xy + offset / P * wh / 2) * (W, H) - 0.5``. Point p belongs to anchor ``p % Z``.
    The sampling rule is that of ``grid_sample(mode="bilinear", padding_mode="zeros", align_corners=False)``.

    Args:
        value: Features of all levels, one after the other, each row by row: S = sum of H * W; M heads of D channels.
            float32, float16, bfloat16 or float64. Any strides; best where D is contiguous.
        spatial_shapes: (H, W) of the L levels as host integers, so that the call never waits for the GPU.
        reference_points: Per camera and query, one per level or one for all (Lr = L or 1), with Z anchors each. A
            reference with a non-finite number hides its camera for that query. May lie outside [0, 1].
        sampling_offsets: Learned offsets (x, y), or None to sample the references themselves. No is N or 1, Mo is M
            or 1, Lo is L or 1: an axis of size 1 is shared, and never copied out.
        attention_weights: Weights of the samples, before `weight_activation`. Nw is N or 1, Mw is M or 1.
        visible: Which camera sees which query. A hidden camera costs no traffic, and whatever its value, offsets and
            weights hold (NaN included) has no influence.
        weight_activation: "none", "sigmoid", or "softmax" over the L * P samples of each camera's head.
        reduction: Over cameras: "sum", "mean" (divides by N), or "mean_visible" (divides by the number of cameras
            that see the query, at least 1).
        deterministic: The same bits in every run, also of the gradients. None follows
            ``torch.are_deterministic_algorithms_enabled()``.

    Returns:
        [B, Q, M * D] with the dtype of `value`. References, offsets and weights are used, and everything is summed,
        in float32 (float64 where `value` is float64): 16-bit coordinates would be off by most of a pixel. Under
        autocast `value` goes to autocast's dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape, device or name; the message says which and what it should be.
    """
    shapes, samples = _check_levels(spatial_shapes)
    _check_value(value, 5, "[B, N, S, M, D]")
    B, N, S, M, D = value.shape
    L = len(shapes) // 2
    if samples != S:
        raise ValueError(
            f"value has S = {S} positions (shape {_shape(value)}), "
            f"but spatial_shapes {_pairs(shapes)} add up to {samples}"
        )
    if N == 0 or M == 0 or D == 0:
        raise ValueError(f"value needs at least one camera, head and channel, but has shape {_shape(value)}")

    device = value.device
    check_float("reference_points", reference_points, device)
    size = reference_points.shape
    if (
        len(size) != 6
        or size[0] != B
        or size[1] != N
        or (size[3] != 1 and size[3] != L)
        or size[4] == 0
        or (size[5] != 2 and size[5] != 4)
    ):
        raise shape_error(
            "reference_points", reference_points, f"[B={B}, N={N}, Q, Lr=1 or {L}, Z, 2 or 4] to go with value"
        )
    Q = size[2]

    check_float("attention_weights", attention_weights, device)
    size = attention_weights.shape
    if (
        len(size) != 6
        or size[0] != B
        or (size[1] != 1 and size[1] != N)
        or size[2] != Q
        or (size[3] != 1 and size[3] != M)
        or size[4] != L
        or size[5] == 0
    ):
        raise shape_error("attention_weights", attention_weights, f"[B={B}, Nw=1 or {N}, Q={Q}, Mw=1 or {M}, L={L}, P]")
    P = size[5]

    if sampling_offsets is not None:
        check_float("sampling_offsets", sampling_offsets, device)
        size = sampling_offsets.shape
        if (
            len(size) != 7
            or size[0] != B
            or (size[1] != 1 and size[1] != N)
            or size[2] != Q
            or (size[3] != 1 and size[3] != M)
            or (size[4] != 1 and size[4] != L)
            or size[5] != P
            or size[6] != 2
        ):
            raise shape_error(
                "sampling_offsets",
                sampling_offsets,
                f"[B={B}, No=1 or {N}, Q={Q}, Mo=1 or {M}, Lo=1 or {L}, P={P}, 2] to go with attention_weights",
            )
    if visible is not None:
        if not isinstance(visible, Tensor) or visible.dtype != torch.bool:
            raise TypeError(f"visible must be a bool tensor or None, but is {kind(visible)}")
        if visible.shape != (B, N, Q):
            raise shape_error("visible", visible, f"[B={B}, N={N}, Q={Q}]")
        if visible.device != device:
            raise _device_error("visible", visible, device)
    if weight_activation not in WEIGHT_ACTIVATIONS:
        raise ValueError(f"weight_activation must be one of {WEIGHT_ACTIVATIONS}, but is {weight_activation!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, but is {reduction!r}")
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()

    coordinates = torch.float64 if value.dtype == torch.float64 else torch.float32
    return library.multi_camera_deformable_attention(
        value,
        shapes,
        reference_points.to(coordinates),
        None if sampling_offsets is None else sampling_offsets.to(coordinates),
        attention_weights.to(coordinates),
        visible,
        weight_activation,
        reduction,
        deterministic,
    )


def multi_scale_deformable_attention(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor | Sequence[Sequence[int]],  # [L, 2] or ((H, W), ...)
    level_start_index: Tensor | Sequence[int],  # [L]
    sampling_locations: Tensor,  # [B, Q, M, L, P, 2]
    attention_weights: Tensor,  # [B, Q, M, L, P]
) -> Tensor:
    """The operator under the signature that Deformable DETR made common, for code written against it.

    Args:
        value: Features, levels one after the other, each row by row.
        spatial_shapes: (H, W) of every level. Host integers or a CPU tensor cost nothing; a CUDA tensor has to be
            copied to the host, which waits for the GPU.
        level_start_index: First position of every level in S. It follows from the shapes and is checked where it is on
            the host.
        sampling_locations: (x, y) in [0, 1] of the image; any real number is legal.
        attention_weights: Weights of the samples, used as they are.

    Returns:
        [B, Q, M * D] with the dtype of `value`; any batch size.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape or device, or the levels contradict each other.
    """
    _check_value(value, 4, "[B, S, M, D]")
    B, _, M, _ = value.shape
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    flat, _ = _check_levels(shapes)
    L = len(flat) // 2
    _check_starts(level_start_index, flat)
    check_float("attention_weights", attention_weights, value.device)
    size = attention_weights.shape
    if len(size) != 5 or size[0] != B or size[2] != M or size[3] != L:
        raise shape_error("attention_weights", attention_weights, f"[B={B}, Q, M={M}, L={L}, P]")
    _, Q, _, _, P = size
    check_float("sampling_locations", sampling_locations, value.device)
    if sampling_locations.shape != (B, Q, M, L, P, 2):
        raise shape_error("sampling_locations", sampling_locations, f"[B={B}, Q={Q}, M={M}, L={L}, P={P}, 2]")
    # Offsets from a box at the origin whose half size is P are locations: offset / P * (2 P) / 2.
    coordinates = torch.float64 if value.dtype == torch.float64 else torch.float32
    box = torch.zeros(4, dtype=coordinates, device=value.device)
    box[2:] = 2 * P
    return multi_camera_deformable_attention(
        value.unsqueeze(1),
        shapes,
        box.expand(B, 1, Q, 1, 1, 4),
        sampling_locations.unsqueeze(1),
        attention_weights.unsqueeze(1),
    )


def _check_levels(spatial_shapes: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """The shapes as one flat list, and the number of positions."""
    if isinstance(spatial_shapes, Tensor):
        raise TypeError("spatial_shapes must be host integers ((H, W), ...), but is a tensor; take .tolist() once")
    flat: list[int] = []
    total = 0
    try:
        for height, width in spatial_shapes:
            flat.append(height)
            flat.append(width)
            total += height * width
    except (TypeError, ValueError):
        raise TypeError(f"spatial_shapes must be pairs of integers ((H, W), ...), but is {spatial_shapes!r}") from None
    if not flat:
        raise ValueError("spatial_shapes must have at least one level, but is empty")
    for side in flat:
        if not isinstance(side, (int, torch.SymInt)):
            raise TypeError(f"spatial_shapes must hold integers, but is {spatial_shapes!r}")
        if side < 1:
            raise ValueError(f"spatial_shapes must be positive, but is {_pairs(flat)}")
    return flat, total


def _check_starts(level_start_index: Tensor | Sequence[int], shapes: list[int]) -> None:
    L = len(shapes) // 2
    if len(level_start_index) != L:
        raise ValueError(
            f"level_start_index must have one entry for each of {L} levels, but has {len(level_start_index)}"
        )
    if isinstance(level_start_index, Tensor):
        if level_start_index.device.type != "cpu":
            return
        level_start_index = level_start_index.tolist()
    start = 0
    for level in range(L):
        if level_start_index[level] != start:
            raise ValueError(
                f"level_start_index {list(level_start_index)} does not go with spatial_shapes {_pairs(shapes)}: "
                f"level {level} starts at {start}"
            )
        start += shapes[2 * level] * shapes[2 * level + 1]


def _check_value(value: Tensor, ndim: int, layout: str) -> None:
    if not isinstance(value, Tensor) or value.dtype not in VALUE_DTYPES:
        raise TypeError(f"value must be a float32, float16, bfloat16 or float64 tensor, but is {kind(value)}")
    if value.ndim != ndim:
        raise shape_error("value", value, layout)


def check_float(name: str, tensor: Tensor, device: torch.device, beside: str = "value") -> None:
    """Raise unless `tensor` is a floating-point tensor on `device`, which is that of the argument `beside`."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, but is {kind(tensor)}")
    if tensor.device != device:
        raise _device_error(name, tensor, device, beside)


def kind(argument: object) -> str:
    """What an argument is, in the words of an error message."""
    return f"a tensor of {argument.dtype}" if isinstance(argument, Tensor) else f"a {type(argument).__name__}"


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _pairs(shapes: list[int]) -> str:
    return str(list(zip(shapes[::2], shapes[1::2], strict=True)))


def shape_error(name: str, tensor: Tensor, expected: str) -> ValueError:
    """The error for a tensor of the wrong shape."""
    return ValueError(f"{name} must have shape {expected}, but has shape {_shape(tensor)}")


def _device_error(name: str, tensor: Tensor, device: torch.device, beside: str = "value") -> ValueError:
    return ValueError(f"{name} is on {tensor.device}, but {beside} is on {device}: all tensors must be on one device")
