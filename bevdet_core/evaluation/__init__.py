"""Detectors scored with the official metric of their data set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import processes
from ..config import CocoConfig, DataConfig, NuScenesConfig
from ..documents import DocumentError, parse_json, read_text
from ..extras import require
from ..interruption import StopSignals, stopping_at_once
from ..progress import status, track

if TYPE_CHECKING:
    import numpy as np

    from ..data.coco import CocoDataset
    from ..data.nuscenes import NuScenesDataset
    from ..detections import Detections
    from ..detector import Detector
    from .nuscenes import NuScenesMetrics


WHILE = " while evaluating"  # in the message of a signal


class Metrics(Protocol):
    """The outcome of an evaluation."""

    warnings: list[str]
    evaluated: dict[str, Any]

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
    require(extra, f"the {data.name} metric", package)


def refuse_other_scores(folder: Path, dataset: NuScenesDataset | CocoDataset, weights: Path) -> None:
    """Check that a folder does not hold the scores of other weights or data, which nobody wants to lose.

    Raises:
        FileExistsError: it does; the message says what differs.
    """
    try:
        content = parse_json(read_text(folder / "metrics.json"))
    except (OSError, DocumentError):
        return  # nothing there, or nothing to be compared with
    then = content.get("evaluated") if isinstance(content, dict) else None
    if not isinstance(then, dict):
        return
    now = _evaluated(dataset, weights)
    differing = [name for name in now if name != "weights" and now[name] != then.get(name)]
    if Path(str(then.get("weights"))).name != weights.name:  # whatever the folder was called when it was written
        differing.insert(0, "weights")
    if differing:
        raise FileExistsError(
            f"{folder} holds the scores of another evaluation, which differs in {', '.join(differing)}: name another "
            "folder with --out, or this one to replace them"
        )


def evaluate(
    detector: Detector,
    dataset: NuScenesDataset | CocoDataset,
    folder: Path,
    batch_size: int = 1,
    workers: int = 0,
    quiet: bool = False,
    weights: Path | None = None,
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
        weights: file that the detector's weights lie in, for `metrics.json`.

    Returns:
        The metrics, in every process.

    Raises:
        ImportError: the package of the metric is not installed.
        SampleError: a broken sample, where the data set does not skip them.
        ValueError: the data set has no annotations, or a sample has no pose; the results are written all the same
            where it is the annotations.
        Interrupted: SIGTERM or Ctrl-C came.
    """
    from ..data.loader import build_loader

    require_metric(dataset.config)
    share = (processes.index(), processes.count())
    loader = build_loader(
        dataset, detector.config.model.pixels, batch_size, workers, rank=share[0], world_size=share[1]
    )
    total = len(loader)
    with (
        stopping_at_once(WHILE),
        closing(loader),
        closing(track(loader, "evaluating", total, quiet)) as batches,
    ):
        found = _detect(detector, batches)
        if processes.count() > 1:
            place = {token: number for number, token in enumerate(dataset.tokens)}
            found = iter(sorted(itertools.chain(*processes.gather(list(found))), key=lambda item: place[item[0]]))
        metrics: Metrics | None = _score(found, dataset, folder, quiet) if processes.is_main() else None
        # The loader knows what it has skipped when it has been read to its end, which scoring does.
        skipped = [line for report in processes.gather(loader.report()) for line in report]
        if metrics is not None:
            metrics.warnings += skipped
            metrics.evaluated = _evaluated(dataset, weights)
            with status("drawing pr_curves.png", quiet):
                metrics.save(folder)
        return processes.from_main(metrics)


def _evaluated(dataset: NuScenesDataset | CocoDataset, weights: Path | None) -> dict[str, Any]:
    """What tells an evaluation from others."""
    config = dataset.config
    return {
        "weights": None if weights is None else str(weights.resolve()),
        "root": str(Path(config.root).resolve()),
        **({"version": config.version} if isinstance(config, NuScenesConfig) else {}),
        "split": dataset.split,
        "samples": len(dataset.tokens),
        "classes": list(dataset.class_names),
    }


def _score(
    found: Iterator[tuple[str, np.ndarray | None, Detections]],
    dataset: NuScenesDataset | CocoDataset,
    folder: Path,
    quiet: bool,
) -> Metrics:
    from ..data.coco import CocoDataset

    if isinstance(dataset, CocoDataset):
        from .coco import evaluate_detections

        return evaluate_detections(((token, detections) for token, _, detections in found), dataset, folder, quiet)
    return _evaluate_rig_frames(found, dataset, folder, quiet)


def _detect(detector: Detector, batches: Iterable) -> Iterator[tuple[str, np.ndarray | None, Detections]]:
    """Token, lidar2global [4, 4] where it is known, and detections of each sample, scene after scene."""
    memory = detector.new_memory()
    batches = iter(batches)
    while True:
        with StopSignals(WHILE):  # a worker would complain of a batch that is not taken to its end
            batch, _ = next(batches, (None, None))
        if batch is None:
            return
        known = batch.rig is not None and batch.rig.lidar2global is not None
        poses = batch.rig.lidar2global.numpy() if known else [None] * len(batch.tokens)
        yield from zip(batch.tokens, poses, detector.detect(batch, memory=memory), strict=True)


def _evaluate_rig_frames(
    found: Iterable[tuple[str, np.ndarray | None, Detections]], dataset: NuScenesDataset, folder: Path, quiet: bool
) -> NuScenesMetrics:
    from .nuscenes import evaluate_results, write_submission

    results: dict[str, list] = {token: [] for token in dataset.tokens}
    for token, lidar2global, detections in found:
        if lidar2global is None:
            raise ValueError(f"sample {token!r} has no pose (Sample.lidar2global), which the nuScenes metric needs")
        results[token] = detections.to_nuscenes(token, lidar2global)
    with status("writing submission.json", quiet):
        write_submission(folder / "submission.json", results, dataset.tokens)
    if not dataset.index.annotated:
        raise ValueError(
            f"{dataset.root / dataset.config.version} has no annotations: upload {folder / 'submission.json'} to the "
            "evaluation server"
        )
    with status("scoring with the nuScenes devkit", quiet):
        return evaluate_results(results, dataset.index, dataset.tokens)
