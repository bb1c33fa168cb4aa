"""Draw what the operator does, from what it does: ops/operator.png.

    python tools/draw_operator.py

One query, a pillar of two anchors in front of the car, is looked up in three cameras with two feature levels each.
Dots are the samples of one head, their size the weight; the number in the sum is the operator's.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import ConnectionPatch, Rectangle, Wedge

from bevdet_ops import multi_camera_deformable_attention

OUTPUT = Path(__file__).resolve().parents[1] / "ops" / "operator.png"
LEVELS = ((12, 20), (6, 10))
YAWS = (55.0, 0.0, -55.0)  # degrees, left to right
NAMES = ("camera 0", "camera 1", "camera 2")
FIELD_OF_VIEW = 70.0
ANCHORS = torch.tensor([[9.0, 4.6, -0.6], [9.0, 4.6, 1.4]])  # metres: forward, left, up
INK, SAMPLE, ANCHOR, HIDDEN = "#22303c", "#e4572e", "#17768c", "#9aa5ad"


def project(yaw: float) -> tuple[torch.Tensor, bool]:
    """The anchors (x, y) in [0, 1] of a camera's image, and whether it sees any of them."""
    angle = math.radians(yaw)
    forward = math.cos(angle) * ANCHORS[:, 0] + math.sin(angle) * ANCHORS[:, 1]
    right = math.sin(angle) * ANCHORS[:, 0] - math.cos(angle) * ANCHORS[:, 1]
    focal = 0.5 / math.tan(math.radians(FIELD_OF_VIEW / 2))
    x = 0.5 + focal * right / forward.clamp(min=0.1)
    y = 0.5 - focal * 20 / 12 * ANCHORS[:, 2] / forward.clamp(min=0.1)
    seen = bool(((forward > 0.1) & (x > 0) & (x < 1) & (y > 0) & (y < 1)).any())
    return torch.stack((x, y), -1), seen


def scene(camera: int, height: int, width: int) -> torch.Tensor:
    """A feature map to look at: sky, road, and a few blobs."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    picture = 0.25 + 0.35 * y
    for k in range(3):
        centre = (0.18 + 0.31 * k + 0.07 * camera) % 1.0
        picture = picture + 0.45 * torch.exp(-(((x - centre) / 0.09) ** 2) - ((y - 0.5 - 0.05 * k) / 0.16) ** 2)
    return picture


def main() -> None:
    """Draw and save."""
    torch.manual_seed(4)
    N, P = len(YAWS), 4
    projected = [project(yaw) for yaw in YAWS]
    points = torch.stack([xy for xy, _ in projected]).view(1, N, 1, 1, 2, 2)
    visible = torch.tensor([seen for _, seen in projected]).view(1, N, 1)
    offsets = 0.9 * torch.randn(1, 1, 1, 1, len(LEVELS), P, 2)
    logits = torch.randn(1, 1, 1, 1, len(LEVELS), P)
    weights = logits.flatten(-2).softmax(-1).view(len(LEVELS), P)
    maps = [[scene(camera, *shape) for shape in LEVELS] for camera in range(N)]
    value = torch.stack([torch.cat([level.flatten() for level in levels]) for levels in maps]).view(1, N, -1, 1, 1)
    output = multi_camera_deformable_attention(
        value, LEVELS, points, offsets, logits, visible, weight_activation="softmax", reduction="mean_visible"
    )

    figure = plt.figure(figsize=(11, 4.4), dpi=150)
    plt.rcParams["font.size"] = 9
    top_view = figure.add_axes((0.01, 0.1, 0.25, 0.84))
    draw_top_view(top_view, [seen for _, seen in projected])
    sum_axes = figure.add_axes((0.885, 0.33, 0.11, 0.42))
    sum_axes.axis("off")
    sum_axes.text(
        0.5, 0.78, "mean over the\ncameras that see:\n" + r"$\sum\, w\cdot v$", ha="center", va="center", color=INK
    )
    sum_axes.text(0.5, 0.4, f"{output.item():.3f}", ha="center", color=INK, fontsize=14, weight="bold")
    sum_axes.text(0.5, 0.3, "one head's output\nfor this query", ha="center", va="top", color=INK)

    for camera in range(N):
        xy, seen = projected[camera]
        for level, (height, width) in enumerate(LEVELS):
            left = 0.31 + 0.27 * level
            axes = figure.add_axes((left, 0.66 - 0.28 * camera, 0.25, 0.25))
            axes.imshow(
                maps[camera][level], cmap="Blues" if seen else "Greys", vmin=0, vmax=1.6, alpha=1 if seen else 0.5
            )
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(INK if seen else HIDDEN)
            axes.set_xlim(-0.5, width - 0.5)
            axes.set_ylim(height - 0.5, -0.5)
            if camera == 0:
                axes.set_title(f"level {level}: {height} x {width}", color=INK, fontsize=9)
            if level == 0:
                axes.set_ylabel(NAMES[camera], color=INK if seen else HIDDEN)
            if not seen:
                axes.text(width / 2 - 0.5, height / 2 - 0.5, "hidden: never read", ha="center", va="center", color=INK)
                continue
            size = torch.tensor([width, height])
            anchors = xy * size - 0.5
            axes.scatter(*anchors.T, marker="*", s=90, color=ANCHOR, zorder=3)
            for p in range(P):
                start = anchors[p % 2]
                place = start + offsets[0, 0, 0, 0, level, p]
                axes.plot(*torch.stack((start, place)).T, color=SAMPLE, linewidth=0.8, zorder=2)
                axes.scatter(
                    *place, s=20 + 420 * float(weights[level, p]), color=SAMPLE, alpha=0.85, zorder=4, linewidths=0
                )
            if level == 1:
                arrow = ConnectionPatch(
                    (1.01, 0.5),
                    (0.0, 0.45),
                    axes.transAxes,
                    sum_axes.transAxes,
                    arrowstyle="->",
                    color=INK,
                    linewidth=0.9,
                )
                figure.add_artist(arrow)
    figure.text(
        0.31,
        0.035,
        "★ reference points (anchors of the query)    ● samples: reference + learned offset, size = weight",
        color=INK,
    )
    figure.savefig(OUTPUT, facecolor="white")


def draw_top_view(axes: plt.Axes, seen: list[bool]) -> None:
    """The car, its cameras and the query from above; forward is up."""
    for yaw, sees in zip(YAWS, seen, strict=True):
        heading = 90 + yaw
        wedge = Wedge(
            (0, 0), 11, heading - FIELD_OF_VIEW / 2, heading + FIELD_OF_VIEW / 2,
            color="#4b91c9" if sees else HIDDEN, alpha=0.22 if sees else 0.15, linewidth=0,
        )  # fmt: skip
        axes.add_patch(wedge)
        angle = math.radians(heading)
        axes.text(
            8.2 * math.cos(angle),
            8.2 * math.sin(angle),
            NAMES[YAWS.index(yaw)][-1],
            ha="center",
            va="center",
            color=INK,
        )
    axes.add_patch(Rectangle((-1, -2.2), 2, 4.4, facecolor="white", edgecolor=INK))
    axes.scatter(-ANCHORS[0, 1], ANCHORS[0, 0], marker="*", s=150, color=ANCHOR, zorder=3)
    axes.annotate("query", (-float(ANCHORS[0, 1]), float(ANCHORS[0, 0])), (-8.6, 11.2), color=INK)
    axes.set_xlim(-11, 11)
    axes.set_ylim(-4, 12.5)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title("from above", color=INK, fontsize=9)


if __name__ == "__main__":
    main()
