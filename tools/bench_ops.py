"""Measure multi-camera deformable attention against what else there is, side by side in one run.

    python tools/bench_ops.py [--device cpu] [--dtype float32] [--only encoder] [--peer module:function] [--json FILE]

Workloads have the shapes of Deformable DETR, DETR3D and BEVFormer. In each round every candidate runs once, so that
all see the same machine; a figure is the median over the rounds. Candidates:

    bevdet_ops   the operator's own kernels
    grid_sample  plain PyTorch as the field writes it: one grid_sample per level, all samples stacked
    transformers, deformops   where they can be imported
    --peer module:function    anything callable with (value, spatial_shapes, level_start_index, sampling_locations,
                              attention_weights), all tensors, in the layout of Deformable DETR

All but the first see one image: with several cameras the queries that a camera sees are gathered and padded to the
longest list, as BEVFormer does, and the results are added back. "floor" is the time that reading every input and
writing every output once takes at the bandwidth of this machine, measured by copying.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import importlib.util
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bevdet_ops import multi_camera_deformable_attention

MEGABYTE = 2**20
SECONDS_PER_CELL = 15.0
FULL_IMAGE = ((116, 200), (58, 100), (29, 50), (15, 25))  # 1600 x 928 pixels at strides 8 to 64
COCO_IMAGE = ((100, 134), (50, 67), (25, 34), (13, 17))  # 800 x 1066 pixels

Core = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass
class Call:
    """Arguments of the operator."""

    value: Tensor  # [B, N, S, M, D]
    spatial_shapes: tuple[tuple[int, int], ...]
    reference_points: Tensor  # [B, N, Q, Lr, Z, 2]
    sampling_offsets: Tensor | None  # [B, No, Q, Mo, Lo, P, 2]
    attention_weights: Tensor  # [B, Nw, Q, Mw, L, P]
    visible: Tensor | None  # [B, N, Q]
    weight_activation: str
    reduction: str

    def leaves(self) -> list[Tensor]:
        """What gradients are computed for."""
        return [tensor for tensor in (self.value, self.sampling_offsets, self.attention_weights) if tensor is not None]


def draw(
    shapes: tuple[tuple[int, int], ...],
    references: Tensor,
    *,
    heads: int = 8,
    points: int = 4,
    visible: Tensor | None = None,
    offsets: bool = True,
    own_weights: bool = False,  # of every camera
    activation: str = "softmax",
    reduction: str = "sum",
) -> Call:
    """A call with 256 channels and offsets of two pixels around given references."""
    B, N, Q = references.shape[:3]
    S, L = sum(height * width for height, width in shapes), len(shapes)
    own = N if own_weights else 1
    return Call(
        value=torch.randn(B, N, S, heads, 256 // heads),
        spatial_shapes=shapes,
        reference_points=references,
        sampling_offsets=2 * torch.randn(B, own, Q, heads, L, points, 2) if offsets else None,
        attention_weights=torch.randn(B, own, Q, heads, L, points),
        visible=visible,
        weight_activation=activation,
        reduction=reduction,
    )


def grid(height: int, width: int) -> Tensor:
    """Pixel centres (x, y) in [0, 1], row by row, [height * width, 2]."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack((x, y), -1).view(-1, 2)


def encoder(batch: int, local: bool) -> Call:
    """Deformable DETR's encoder: every pixel asks around itself, or anywhere."""
    references = torch.cat([grid(*shape) for shape in COCO_IMAGE])
    if not local:
        references = torch.rand_like(references)
    return draw(COCO_IMAGE, references.view(1, 1, -1, 1, 1, 2).repeat(batch, 1, 1, 1, 1, 1))


def decoder() -> Call:
    """Deformable DETR's decoder: 300 queries."""
    return draw(COCO_IMAGE, torch.rand(1, 1, 300, 1, 1, 2))


def ring_of_cameras(points: Tensor) -> tuple[Tensor, Tensor]:
    """Where six cameras of 70 degrees in a ring see points (x, y, z) in metres, [Q, Z, 3].

    Returns references [1, 6, Q, 1, Z, 2] and visibility [1, 6, Q].
    """
    yaw = torch.arange(6) * (math.pi / 3)
    x, y, z = points.unbind(-1)
    depth = yaw.cos()[:, None, None] * x + yaw.sin()[:, None, None] * y
    side = yaw.sin()[:, None, None] * x - yaw.cos()[:, None, None] * y
    focal = 0.5 / math.tan(math.radians(35))
    u = 0.5 + focal * side / depth.clamp(min=1e-5)
    v = 0.5 - focal * 1600 / 928 * z / depth.clamp(min=1e-5)
    inside = (depth > 1e-5) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
    return torch.stack((u, v), -1)[None, :, :, None], inside.any(-1)[None]


def detr3d() -> Call:
    """DETR3D: 900 points in space, whole feature vectors, one sample per level."""
    points = torch.rand(900, 1, 3) * torch.tensor([102.4, 102.4, 8.0]) - torch.tensor([51.2, 51.2, 5.0])
    references, visible = ring_of_cameras(points)
    return draw(
        FULL_IMAGE,
        references,
        heads=1,
        points=1,
        visible=visible,
        offsets=False,
        own_weights=True,
        activation="sigmoid",
    )


def spatial(bev: int, shapes: tuple[tuple[int, int], ...]) -> Call:
    """BEVFormer's spatial cross-attention: pillars of four points, eight samples each."""
    xy = grid(bev, bev) * 102.4 - 51.2
    z = torch.tensor([0.5, 2.83, 5.17, 7.5]) - 5.0
    pillars = torch.cat((xy[:, None].expand(-1, 4, -1), z.view(1, 4, 1).expand(len(xy), -1, -1)), -1)
    references, visible = ring_of_cameras(pillars)
    return draw(shapes, references, points=8, visible=visible, reduction="mean_visible")


def temporal(bev: int) -> Call:
    """BEVFormer's temporal self-attention: two time steps of the grid."""
    references = grid(bev, bev).view(1, 1, -1, 1, 1, 2).repeat(1, 2, 1, 1, 1, 1)
    return draw(((bev, bev),), references, own_weights=True, reduction="mean")


WORKLOADS: dict[str, Callable[[], Call]] = {
    "encoder local": partial(encoder, 1, True),
    "encoder random": partial(encoder, 1, False),
    "encoder local, batch 4": partial(encoder, 4, True),
    "decoder": decoder,
    "DETR3D sampling": detr3d,
    "BEVFormer-tiny spatial": partial(spatial, 50, ((15, 25),)),
    "BEVFormer-base spatial": partial(spatial, 200, FULL_IMAGE),
    "BEVFormer-base temporal": partial(temporal, 200),
}


def own(call: Call) -> Tensor:
    """The operator of this package."""
    return multi_camera_deformable_attention(
        call.value,
        call.spatial_shapes,
        call.reference_points,
        call.sampling_offsets,
        call.attention_weights,
        call.visible,
        call.weight_activation,
        call.reduction,
    )


def through_common_signature(core: Core, call: Call) -> Tensor:
    """What a model does around a kernel that knows one image: activate, locate, gather, pad, call, add back."""
    B, N, _, M, D = call.value.shape
    device = call.value.device
    weights = call.attention_weights
    Q, P = weights.shape[2], weights.shape[-1]
    if call.weight_activation == "softmax":
        weights = weights.flatten(-2).softmax(-1).view_as(weights)
    elif call.weight_activation == "sigmoid":
        weights = weights.sigmoid()
    weights = weights.expand(B, N, *weights.shape[2:])
    shapes = torch.tensor(call.spatial_shapes, device=device)
    areas = shapes.prod(1)
    starts = areas.cumsum(0) - areas
    size = shapes.flip(-1).to(call.reference_points.dtype)
    anchors = torch.arange(P, device=device) % call.reference_points.shape[4]
    references = call.reference_points[..., anchors, :].unsqueeze(3)  # [B, N, Q, 1, 1, P, 2]
    offsets = call.sampling_offsets
    if offsets is not None:
        offsets = offsets.expand(B, N, *offsets.shape[2:])

    seen = None if call.visible is None else call.visible.flatten(0, 1)  # [B * N, Q]
    if seen is None:
        queries = torch.arange(Q, device=device).expand(B * N, Q)
        counts = None
    else:
        lists = [row.nonzero().squeeze(1) for row in seen]
        queries = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)  # [B * N, longest]
        counts = torch.tensor([len(row) for row in lists], device=device)

    def of_queries(tensor: Tensor) -> Tensor:
        """Rows of the queries that each camera sees, [B * N, longest, ...]."""
        tensor = tensor.flatten(0, 1)
        if seen is None:
            return tensor
        return tensor[torch.arange(B * N, device=device)[:, None], queries]

    locations = of_queries(references)
    if offsets is not None:
        locations = locations + of_queries(offsets) / size[:, None]
    rows = queries.shape[1]
    locations = locations.expand(B * N, rows, M, len(shapes), P, 2)
    attended = core(call.value.flatten(0, 1), shapes, starts, locations, of_queries(weights))
    if counts is None:
        attended = attended.view(B, N, Q, M * D)
        return attended.sum(1) / (N if call.reduction == "mean" else 1)
    real = torch.arange(rows, device=device) < counts[:, None]
    attended = attended * real[..., None]
    items = torch.arange(B, device=device).repeat_interleave(N)[:, None] * Q + queries
    output = attended.new_zeros(B * Q, M * D).index_add(0, items.flatten(), attended.flatten(0, 1)).view(B, Q, M * D)
    if call.reduction == "mean_visible":
        output = output / call.visible.sum(1).clamp(min=1)[..., None]
    return output


def grid_sample(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention in plain PyTorch."""
    B, _, M, D = value.shape
    Q = locations.shape[1]
    grids = 2 * locations - 1
    sampled = []
    sizes = shapes.tolist()
    for level, part in enumerate(value.split([height * width for height, width in sizes], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(B * M, D, *sizes[level])
        places = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, places, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(B * M, 1, Q, -1).to(value.dtype)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return output.view(B, M * D, Q).transpose(1, 2).contiguous()


def transformers_core() -> Core | None:
    """The PyTorch code in transformers, where it is installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers.models.deformable_detr import modeling_deformable_detr

    module = modeling_deformable_detr.MultiScaleDeformableAttention()

    def core(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        pairs = [tuple(shape) for shape in shapes.tolist()]
        return module(value, shapes, pairs, starts, locations, weights, 64)

    return core


def named_core(name: str) -> Core:
    """`module:function`, imported."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def candidates(peers: list[str]) -> dict[str, Callable[[Call], Tensor]]:
    """Everything to be measured."""
    cores: dict[str, Core | None] = {"grid_sample": grid_sample, "transformers": transformers_core()}
    if importlib.util.find_spec("deformops") is not None:
        cores["deformops"] = named_core("deformops:deform2d_multiscale")
    cores |= {peer: named_core(peer) for peer in peers}
    peers_by_name = {name: partial(through_common_signature, core) for name, core in cores.items() if core is not None}
    return {"bevdet_ops": own, **peers_by_name}


def step(candidate: Callable[[Call], Tensor], call: Call, backward: bool, grad: Tensor) -> None:
    """What is measured."""
    if not backward:
        with torch.no_grad():
            candidate(call)
        return
    torch.autograd.grad(candidate(call), call.leaves(), grad.to(call.value.dtype))


def seconds(function: Callable[[], None], device: str) -> float:
    """Duration of one call."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def peak_megabytes(function: Callable[[], None], device: str) -> float | None:
    """Memory that a call needs at once, beyond what was there before; None where this system does not tell."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MEGABYTE
    if platform.system() != "Linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_megabytes("VmRSS")
    function()
    return _status_megabytes("VmHWM") - before


def _status_megabytes(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def bandwidth(device: str) -> float:
    """Bytes per second, read plus written, of a large copy."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(6)]
    return 2 * source.numel() * 4 / min(times)


def floor_bytes(call: Call, backward: bool) -> int:
    """What has to be read and written at least: visible inputs once, outputs once, and gradients once."""
    B, N, _, M, D = call.value.shape
    Q, L, P = call.attention_weights.shape[2], *call.attention_weights.shape[-2:]
    pairs = B * N * Q if call.visible is None else int(call.visible.sum())
    element = call.value.element_size()
    value = min(call.value.numel(), pairs * M * L * P * 4 * D) * element
    others = sum(t.numel() * t.element_size() for t in (call.sampling_offsets, call.attention_weights) if t is not None)
    references = call.reference_points[0, 0, 0].numel() * 4 * pairs
    output = B * Q * M * D * element
    if not backward:
        return value + others + references + output
    # Forward, then: the same inputs and the output's gradient are read, and the inputs' gradients written.
    return (value + others + references + output) + (value + others + references + output) + value + others


def measure(call: Call, backward: bool, functions: dict[str, Callable], device: str, rounds: int) -> dict[str, Any]:
    """Milliseconds and peak megabytes of every candidate."""
    if backward:
        for leaf in call.leaves():
            leaf.requires_grad_()
    B, _, _, M, D = call.value.shape
    grad = torch.randn(B, call.attention_weights.shape[2], M * D, device=device)
    steps = {name: partial(step, function, call, backward, grad) for name, function in functions.items()}
    for run in steps.values():
        run()  # compiles
    times: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.perf_counter()
    for done in range(rounds):
        for name, run in steps.items():
            times[name].append(seconds(run, device))
        if done >= 2 and time.perf_counter() - begin > SECONDS_PER_CELL:
            break
    return {
        name: {"ms": 1e3 * statistics.median(times[name]), "peak_mb": peak_megabytes(run, device)}
        for name, run in steps.items()
    }


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the values")
    parser.add_argument("--only", action="append", metavar="TEXT", help="workloads whose name contains this")
    parser.add_argument("--peer", action="append", default=[], metavar="MODULE:FUNCTION")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()

    functions = candidates(options.peer)
    speed = bandwidth(options.device)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": options.dtype,
        "bandwidth_gb_per_s": speed / 1e9,
        "results": [],
    }
    print(f"{report['device']}, {report['threads']} threads, torch {report['torch']}, {speed / 1e9:.1f} GB/s")
    print(f"{'workload':26} {'direction':9} {'candidate':13} {'ms':>9} {'ratio':>7} {'peak MB':>9} {'x floor':>8}")
    for name, build in WORKLOADS.items():
        if options.only and not any(text in name for text in options.only):
            continue
        for backward in (False, True):
            torch.manual_seed(0)
            call = build()
            call.value = call.value.to(getattr(torch, options.dtype))
            for field in ("value", "reference_points", "sampling_offsets", "attention_weights", "visible"):
                tensor = getattr(call, field)
                setattr(call, field, None if tensor is None else tensor.to(options.device))
            floor = 1e3 * floor_bytes(call, backward) / speed
            cells = measure(call, backward, functions, options.device, options.rounds)
            direction = "both" if backward else "forward"
            for candidate, cell in cells.items():
                cell["ratio"] = cell["ms"] / cells["bevdet_ops"]["ms"]
                cell["over_floor"] = cell["ms"] / floor
                peak = "" if cell["peak_mb"] is None else f"{cell['peak_mb']:.1f}"
                print(
                    f"{name:26} {direction:9} {candidate:13} {cell['ms']:9.2f} {cell['ratio']:7.2f} {peak:>9} "
                    f"{cell['over_floor']:8.2f}",
                    flush=True,
                )
            report["results"].append({"workload": name, "direction": direction, "floor_ms": floor, "candidates": cells})
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
