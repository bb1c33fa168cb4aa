"""Detectors scored with the official metric of their data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..data.nuscenes import NuScenesDataset
    from ..detector import Detector


class Metrics(Protocol):
    """The outcome of an evaluation."""

    def summary(self) -> Mapping[str, float]:
        """The headline numbers by name."""
        ...

    def print(self) -> None:
        """Show all numbers in the terminal."""
        ...


def evaluate(
    detector: Detector,
    dataset: NuScenesDataset,
    folder: Path,
    batch_size: int = 1,
    workers: int = 0,
    quiet: bool = False,
) -> Metrics:
    """Run a detector over a data set and score what it finds.

    Broken samples that the data set skips count as samples in which nothing was found; a warning of the metrics names
    them.

    Args:
        detector: the detector.
        dataset: the split, with its truth.
        folder: gets `submission.json`, `metrics.json` and `pr_curves.png`.
        batch_size: samples that go through the network at once.
        workers: processes that load images.
        quiet: no progress bar.
    """
    from rich.progress import track

    from ..data.loader import build_loader
    from .nuscenes import evaluate_results, write_submission

    loader = build_loader(dataset, detector.config.model.pixels, batch_size, workers)
    results: dict[str, list] = {token: [] for token in dataset.tokens}
    for batch, _ in track(loader, "evaluating", disable=quiet):
        if batch.rig is None or batch.rig.lidar2global is None:
            raise ValueError("the nuScenes metric needs the pose of every sample: Sample.lidar2global")
        for token, lidar2global, found in zip(
            batch.tokens, batch.rig.lidar2global.numpy(), detector.detect(batch), strict=True
        ):
            results[token] = found.to_nuscenes(token, lidar2global)
    write_submission(folder / "submission.json", results, dataset.tokens)
    metrics = evaluate_results(results, dataset.index, dataset.tokens)
    metrics.warnings += loader.report()
    metrics.save(folder)
    return metrics
