"""Detectors scored with the official metric of their data set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .. import processes
from ..config import CocoConfig, DataConfig

if TYPE_CHECKING:
    import numpy as np

    from ..data.coco import CocoDataset
    from ..data.nuscenes import NuScenesDataset
    from ..detections import Detections
    from ..detector import Detector
    from .nuscenes import NuScenesMetrics


class Metrics(Protocol):
    """The outcome of an evaluation."""

    warnings: list[str]

    def summary(self) -> Mapping[str, float]:
        """The headline numbers by name."""
        ...

    def print(self) -> None:
        """Show all numbers in the terminal."""
        ...

    def save(self, folder: Path) -> None:
        """Write `metrics.json` and `pr_curves.png` into a folder."""
        ...


def require_metric(data: DataConfig) -> None:
    """Check that the metric of a data set can be computed, which a long run should not find out at its end.

    Raises:
        ImportError: a package is not installed; the message says how to.
    """
    package, extra = ("faster_coco_eval", "coco") if isinstance(data, CocoConfig) else ("nuscenes", "nuscenes")
    if find_spec(package) is None:
        raise ImportError(
            f"the {data.name} metric needs the package {package}, which is not installed: "
            f"pip install 'bevdet-core[{extra}]'"
        )


def evaluate(
    detector: Detector,
    dataset: NuScenesDataset | CocoDataset,
    folder: Path,
    batch_size: int = 1,
    workers: int = 0,
    quiet: bool = False,
) -> Metrics:
    """Run a detector over a data set and score what it finds.

    Broken samples that the data set skips count as samples in which nothing was found; a warning of the metrics names
    them. Of several processes each runs its share of the samples, whole scenes in order; the main one scores and
    writes.

    Args:
        detector: the detector.
        dataset: the split, with its truth.
        folder: gets `metrics.json`, `pr_curves.png` and the results in the official format: `submission.json` for
            nuScenes, `results.json` for COCO.
        batch_size: samples that go through the network at once.
        workers: processes that load images.
        quiet: no progress bar.

    Returns:
        The metrics, in every process.
    """
    from rich.progress import track

    from ..data.loader import build_loader

    require_metric(dataset.config)
    share = (processes.index(), processes.count())
    loader = build_loader(
        dataset, detector.config.model.pixels, batch_size, workers, rank=share[0], world_size=share[1]
    )
    found = _detect(detector, track(loader, "evaluating", disable=quiet or not processes.is_main()))
    if processes.count() > 1:
        place = {token: number for number, token in enumerate(dataset.tokens)}
        found = iter(sorted(itertools.chain(*processes.gather(list(found))), key=lambda item: place[item[0]]))
    metrics: Metrics | None = _score(found, dataset, folder) if processes.is_main() else None
    # The loader knows what it has skipped when it has been read to its end, which scoring does.
    skipped = [line for report in processes.gather(loader.report()) for line in report]
    if metrics is not None:
        metrics.warnings += skipped
        metrics.save(folder)
    return processes.from_main(metrics)


def _score(
    found: Iterator[tuple[str, np.ndarray | None, Detections]], dataset: NuScenesDataset | CocoDataset, folder: Path
) -> Metrics:
    from ..data.coco import CocoDataset

    if isinstance(dataset, CocoDataset):
        from .coco import evaluate_detections

        return evaluate_detections(((token, detections) for token, _, detections in found), dataset, folder)
    return _evaluate_rig_frames(found, dataset, folder)


def _detect(detector: Detector, batches: Iterable) -> Iterator[tuple[str, np.ndarray | None, Detections]]:
    """Token, lidar2global [4, 4] where it is known, and detections of each sample, scene after scene."""
    memory = detector.new_memory()
    for batch, _ in batches:
        known = batch.rig is not None and batch.rig.lidar2global is not None
        poses = batch.rig.lidar2global.numpy() if known else [None] * len(batch.tokens)
        yield from zip(batch.tokens, poses, detector.detect(batch, memory=memory), strict=True)


def _evaluate_rig_frames(
    found: Iterable[tuple[str, np.ndarray | None, Detections]], dataset: NuScenesDataset, folder: Path
) -> NuScenesMetrics:
    from .nuscenes import evaluate_results, write_submission

    results: dict[str, list] = {token: [] for token in dataset.tokens}
    for token, lidar2global, detections in found:
        if lidar2global is None:
            raise ValueError("the nuScenes metric needs the pose of every sample: Sample.lidar2global")
        results[token] = detections.to_nuscenes(token, lidar2global)
    write_submission(folder / "submission.json", results, dataset.tokens)
    return evaluate_results(results, dataset.index, dataset.tokens)
