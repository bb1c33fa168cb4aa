"""What BEVFormer's spatial cross-attention costs as cameras, cells and feature levels grow, with straight lines fitted.

    python tools/plot_cost.py --json FILE --png FILE [--rounds 5] [--threads 2]

In each panel one number grows: up to twelve cameras, to the 200 x 200 cells of BEVFormer-base, and to four feature
levels. The rest is BEVFormer-base on images of 1600 x 928 pixels, but for the last panel, whose levels have 58 x 100
cells each: those of a pyramid get smaller, and the first costs more than all others together. "layer" is a whole
encoder layer (temporal self-attention, spatial cross-attention, feed-forward), "spatial" its cross-attention with the
projection of all camera features. Six cameras cover the ring, further ones look between them.

Rounds go over all points, so that whatever else the machine does hits all; a figure is the median over the rounds. R2
is the share of the variance that the line explains. The C library is told to keep its memory (glibc): otherwise every
buffer above 32 MiB comes in new pages, a cost of its own that sets in at some size.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from bench_ops import FULL_IMAGE

from bevdet_core.models.bev_encoder import BevEncoderLayer, BevGrid

Shapes = tuple[tuple[int, int], ...]

IMAGE = (928, 1600)
PC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
DIM, HEADS, POINTS, ANCHORS = 256, 8, 8, 4
EVEN = (58, 100)  # cells of each level in the panel of levels
BASE = {"cameras": 6, "side": 200, "levels": 4}
KEEP_TOP, NO_MMAP = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's mallopt
PANELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "cameras": ("cameras", (1, 2, 4, 6, 8, 10, 12)),
    "BEV cells": ("side", (50, 80, 100, 125, 150, 175, 200)),
    f"feature levels of {EVEN[0]} x {EVEN[1]}": ("levels", (1, 2, 3, 4)),
}


def ring(cameras: int) -> torch.Tensor:
    """lidar2img [1, N, 4, 4] of cameras of 70 degrees, 60 degrees apart; from the seventh on between those."""
    focal = IMAGE[1] / 2 / math.tan(math.radians(35))
    intrinsic = np.array([[focal, 0, IMAGE[1] / 2, 0], [0, focal, IMAGE[0] / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    out = []
    for n in range(cameras):
        yaw = math.radians(60 * n + 30 * (n // 6))
        forward, right = [math.cos(yaw), math.sin(yaw), 0], [math.sin(yaw), -math.cos(yaw), 0]
        lidar2camera = np.eye(4)
        lidar2camera[:3, :3] = [right, [0, 0, -1], forward]
        out.append(intrinsic @ lidar2camera)
    return torch.tensor(np.array(out), dtype=torch.float32)[None]


class Clock:
    """Seconds that calls of functions took, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable) -> Callable:
        """The function, which notes how long its last call took."""

        def run(*arguments, **named):
            begin = time.perf_counter()
            out = function(*arguments, **named)
            self.seconds[name] = time.perf_counter() - begin
            return out

        return run


@torch.inference_mode()
def one_call(features: torch.Tensor, shapes: Shapes, cameras: int, side: int) -> dict[str, float]:
    """Seconds of a layer and its cross-attention at one size; `features` are numbers for the largest."""
    torch.manual_seed(0)
    layer = BevEncoderLayer(DIM, HEADS, len(shapes), POINTS, 4, 512).eval()
    grid = BevGrid((side, side), PC_RANGE, ANCHORS)
    locations, visible = grid.seen(ring(cameras), IMAGE)
    S = sum(height * width for height, width in shapes)
    tokens = features[: cameras * S * DIM].view(1, cameras, S, DIM)
    query = features[: side**2 * DIM].view(1, side**2, DIM)
    clock = Clock()
    spatial = layer.spatial_attention
    spatial.forward = clock.timed("spatial", spatial.forward)  # type: ignore[method-assign]
    clock.timed("layer", layer)(
        query,
        (query[0], (side, side), grid.centres.expand(1, 2, -1, -1), None),
        (tokens, shapes, locations, visible.any(-1)),
    )
    return clock.seconds


def measure(rounds: int) -> dict:
    """The medians of all points, and a line through each series."""
    libc = ctypes.CDLL(None)
    libc.mallopt(KEEP_TOP, 2**31 - 1)
    libc.mallopt(NO_MMAP, 0)
    features = torch.randn(12 * sum(height * width for height, width in FULL_IMAGE) * DIM)
    found: dict[str, list[list[dict[str, float]]]] = {name: [] for name in PANELS}
    for turn in range(rounds + 1):
        for name, (grows, values) in PANELS.items():
            calls = []
            for value in values:
                size = {**BASE, grows: value}
                levels = size.pop("levels")
                calls.append(one_call(features, (EVEN,) * levels if grows == "levels" else FULL_IMAGE, **size))
            if turn:  # the first does not count
                found[name].append(calls)
    report: dict = {}
    for name, (grows, values) in PANELS.items():
        x = [value**2 if grows == "side" else value for value in values]
        report[name] = {"x": x}
        for series in ("layer", "spatial"):
            y = [statistics.median(calls[i][series] for calls in found[name]) for i in range(len(x))]
            report[name][series] = {"seconds": y, **line(x, y)}
    return report


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The straight line of least squares, and how much of the variance it explains."""
    slope, start = np.polyfit(x, y, 1)
    rest = np.array(y) - (slope * np.array(x) + start)
    return {"slope": float(slope), "start": float(start), "r2": float(1 - rest.var() / np.var(y))}


def draw(report: dict, path: Path) -> None:
    """One panel for each number that grows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 3.6), dpi=90, layout="constrained")
    for axis, (name, panel) in zip(axes, report["panels"].items(), strict=True):
        x = np.array(panel["x"])
        for series, label, colour in (
            ("layer", "encoder layer", "#1f6f8b"),
            ("spatial", "its spatial cross-attention", "#d1603d"),
        ):
            fit = panel[series]
            axis.plot(x, fit["seconds"], "o", color=colour)
            axis.plot(x, fit["slope"] * x + fit["start"], color=colour, label=f"{label}, R² = {fit['r2']:.4f}")
        axis.set(xlabel=name, ylim=(0, 1.15 * max(panel["layer"]["seconds"])), xlim=(0, None))
        axis.legend(frameon=False, loc="upper left", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds")
    figure.suptitle(f"BEVFormer-base: one encoder layer, {report['threads']} CPU threads", fontsize=11)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--png", type=Path, help="file for the plot")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each point; default: 5")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; default: 2")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = {"threads": options.threads, "torch": torch.__version__, "python": platform.python_version()}
    report |= {"base": BASE, "panels": measure(options.rounds)}
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    if options.png:
        draw(report, options.png)


if __name__ == "__main__":
    main()
