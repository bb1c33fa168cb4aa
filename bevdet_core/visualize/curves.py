"""The course of a training run: loss, learning rate and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..documents import is_number, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADLINES = ("NDS", "mAP", "AP", "AP50")  # the metrics of an evaluation that get a curve
BLUE, ORANGE, GREEN, VIOLET, GREY = "#2f7fd6", "#e8743b", "#2aa876", "#8a63d2", "#6b7685"


def training_curve(log: str | Path | Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Draw loss and learning rate over the steps, and the metrics over the evaluations, of a training run.

    Args:
        log: a run folder, its `log.jsonl`, or the records of one: {"step", "loss", "lr", ...} for training and
            {"step", "metrics": {"mAP": ..., ...}} for an evaluation.
        path: the picture to write, .png, .pdf or .svg.

    Raises:
        FileNotFoundError: no such log.
        ValueError: a log with neither a training step nor a known metric, or with something else than such records, or
            a suffix of no picture format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, whose state is shared between threads

    records = _read(Path(log)) if isinstance(log, str | Path) else list(log)
    origin = log if isinstance(log, str | Path) else "the log"
    for record in records:
        if not _is_record(record):
            raise ValueError(f"{origin}: no record of a training: {shown(record)}")
    training = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "metrics" in record]
    names = [name for name in HEADLINES if any(name in record["metrics"] for record in evaluations)]
    if not training and not names:
        raise ValueError(f"{origin}: no training step, no known metric")
    columns = bool(training) + bool(names)
    figure = Figure(figsize=(1 + 5 * columns, 4.4), dpi=130, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, columns, height_ratios=(3, 1))
    if training:
        _draw_training(figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0]), training)
    if names:
        _draw_metrics(figure.add_subplot(grid[:, -1]), evaluations, names)
    path = Path(path)
    suffix = path.suffix.removeprefix(".")
    if suffix not in canvas.get_supported_filetypes():
        raise ValueError(f"{path}: {path.suffix or 'no suffix'!r} is no picture format; use .png, .pdf or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _read(path: Path) -> list[dict[str, Any]]:
    from ..runlog import read_log

    return read_log(path / "log.jsonl" if path.is_dir() else path)


def _is_record(record: object) -> bool:
    """Whether what is drawn of a record is there and consists of numbers."""
    if not isinstance(record, Mapping) or "step" not in record or not isinstance(record.get("metrics", {}), Mapping):
        return False
    metrics = record.get("metrics", {})
    drawn = [record.get(name) for name in (("step", "loss", "lr") if "loss" in record else ("step",))]
    return all(map(is_number, drawn + [metrics[name] for name in HEADLINES if name in metrics]))


def _draw_training(loss: Axes, rate: Axes, records: list[Mapping[str, Any]]) -> None:
    steps = np.array([record["step"] for record in records], float)
    losses = np.array([record["loss"] for record in records], float)
    marker = "o" if len(steps) < 3 else None  # a line of one point has no length
    loss.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=1)
    loss.plot(steps, _smooth(losses), color=BLUE, linewidth=2, marker=marker)
    if losses.min() > 0 and losses.max() / losses.min() > 20:
        loss.set_yscale("log")
    loss.tick_params(labelbottom=False)
    _dress(loss, "training loss")
    rates = [record.get("lr", np.nan) for record in records]
    rate.plot(steps, rates, color=GREY, linewidth=1.5, marker=marker)
    rate.sharex(loss)
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    rate.set_xlabel("step", color=GREY)
    _dress(rate, "learning rate")


def _draw_metrics(axes: Axes, records: list[Mapping[str, Any]], names: list[str]) -> None:
    for name, color in zip(names, (ORANGE, GREEN, VIOLET, BLUE), strict=False):
        points = np.array([(r["step"], r["metrics"][name]) for r in records if name in r["metrics"]], float)
        axes.plot(*points.T, color=color, linewidth=2, marker="o", markersize=4.5, label=f"{name} {points[-1, 1]:.3f}")
    axes.legend(loc="lower right", frameon=False, labelcolor="linecolor", prop={"weight": "bold", "size": 11})
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("step", color=GREY)
    _dress(axes, "evaluation")


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred running mean over a twentieth of the run, cut off at its ends."""
    reach = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(len(values))
    low, high = np.maximum(here - reach, 0), np.minimum(here + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color="#2b3440")
    axes.grid(True, color="#e3e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b9c1cb")
    axes.tick_params(colors=GREY, labelsize=9)
