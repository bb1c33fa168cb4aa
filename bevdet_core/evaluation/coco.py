"""The COCO detection metric, computed by faster-coco-eval: the numbers of pycocotools, in a fraction of the time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ..data.coco import CocoDataset
from ..data.coco_index import CocoIndex
from ..data.index_file import describe_faults
from ..detections import Detections
from ..files import write_text
from ..progress import status
from .report import draw_curves, print_report

# The twelve numbers in their official order; s, m, l: objects below 32², below 96² and from 96² pixels on.
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MAX_PANELS = 24  # classes that get curves: those with the most objects

Results = Sequence[Mapping[str, Any]]  # entries as `Detections.to_coco` gives them


class ResultsError(ValueError):
    """Results that the metric would judge wrongly; the message names the entry."""


@dataclass
class CocoMetrics:
    """The outcome of an evaluation. A number for which there are no objects is -1, as in the official tool.

    Attributes:
        numbers: the twelve by name, see `NUMBERS`.
        classes: for each class "objects", how many there are to find, and "AP", "AP50", "AP75", "APs", "APm", "APl",
            "AR100".
        curves: for each class precision [T, 101] at T overlaps over the recalls 0, 0.01, ..., 1; -1 without objects.
        overlaps: [T] the overlaps (IoU) 0.5, 0.55, ..., 0.95.
        warnings: what looks wrong with the results.
        evaluated: what was scored: weights, data, split; empty where only results were.
    """

    numbers: dict[str, float]
    classes: dict[str, dict[str, float]]
    curves: dict[str, np.ndarray] = field(repr=False)
    overlaps: np.ndarray = field(repr=False)
    warnings: list[str] = field(default_factory=list)
    evaluated: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """The twelve numbers."""
        return dict(self.numbers)

    def table(self) -> Table:
        """What `print` shows: the classes that have objects."""
        caption = "   ".join(f"{name} {_shown(self.numbers[name])}" for name in NUMBERS[6:])
        found = {name: values for name, values in self.classes.items() if values["objects"]}
        if len(found) < len(self.classes):
            caption += f"\nno objects of {len(self.classes) - len(found)} other classes"
        table = Table(title="COCO detection", caption=caption, show_footer=True)
        table.add_column("class", footer="all", overflow="fold")  # a narrow terminal folds names, not numbers
        total = sum(values["objects"] for values in found.values())
        table.add_column("count", footer=f"{total:.0f}", justify="right", no_wrap=True)
        columns = [*NUMBERS[:6], "AR100"]
        for name in columns:
            table.add_column(name, footer=_shown(self.numbers[name]), justify="right", no_wrap=True)
        for name, values in found.items():
            table.add_row(name, f"{values['objects']:.0f}", *(_shown(values[column]) for column in columns))
        return table

    def print(self, console: Console | None = None) -> None:
        """Show the scores, per class and on the whole, as a table in the terminal."""
        print_report(self.table(), self.warnings, console)

    def save(self, folder: Path) -> None:
        """Write `metrics.json` and the precision-recall curves, `pr_curves.png`, into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {**self.numbers, "classes": self.classes, "warnings": self.warnings, "evaluated": self.evaluated}
        write_text(folder / "metrics.json", json.dumps(content, indent=1))
        found = [name for name, values in self.classes.items() if values["objects"]]
        if not found:
            return  # nothing to be found: no curve is defined
        most = sorted(found, key=lambda name: -self.classes[name]["objects"])[:MAX_PANELS]
        drawn = [self.overlaps.searchsorted(overlap - 1e-6) for overlap in (0.5, 0.75, 0.9)]
        panels = {"all classes": np.mean([self.curves[name] for name in found], 0)}
        panels |= {f"{name}  AP {self.classes[name]['AP']:.3f}": self.curves[name] for name in most}
        draw_curves(
            folder / "pr_curves.png",
            f"AP {self.numbers['AP']:.4f}   AP50 {self.numbers['AP50']:.4f}   AP75 {self.numbers['AP75']:.4f}",
            "overlap (IoU)",
            {title: {f"{self.overlaps[t]:.2f}": curves[t] for t in drawn} for title, curves in panels.items()},
            columns=math.isqrt(len(panels) - 1) + 1,
        )


def evaluate_detections(
    found: Iterable[tuple[str, Detections]], dataset: CocoDataset, folder: Path, quiet: bool = False
) -> CocoMetrics:
    """Score what a detector found in the images of a data set, and write it as `results.json` into a folder.

    Classes of the detector and of the data set belong together by name. What a detector finds of classes that the data
    set does not have is left out; objects of classes that the detector does not know are misses, with a warning.

    Args:
        found: token of the sample and its detections; an image that is not among them has none.
        dataset: the split.
        folder: where to write.
        quiet: no word about what takes its time.

    Raises:
        ValueError: the data set has no annotations; `results.json` is written all the same.
    """
    results: list[dict[str, Any]] = []
    known: set[str] = set()
    for token, detections in found:
        known.update(detections.class_names)
        ids = [_category_id(dataset, name) for name in detections.class_names]
        present = torch.tensor([number is not None for number in ids], dtype=torch.bool)
        results += detections[present[detections.labels]].to_coco(int(token), ids)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    with status("writing results.json", quiet):
        write_text(folder / "results.json", json.dumps(results))
    if not dataset.index.annotated:
        raise ValueError(
            f"{dataset.index.annotations} has no annotations: upload {folder / 'results.json'} to the evaluation server"
        )
    with status("scoring with the COCO tool", quiet):
        metrics = evaluate_results(results, dataset.index, list(map(int, dataset.tokens)), dataset.class_names)
    missed = {n: int(v["objects"]) for n, v in metrics.classes.items() if known and n not in known and v["objects"]}
    if missed:
        objects = ", ".join(f"{count} of {name!r}" for name, count in missed.items())
        metrics.warnings.append(f"the detector has no class for some objects, which count as misses: {objects}")
    if dataset.index.faults:
        metrics.warnings.append(f"left out: {describe_faults(dataset.index.annotations, dataset.index.faults)}")
    return metrics


def evaluate_results(
    results: Results, index: CocoIndex, image_ids: Sequence[int], class_names: Sequence[str]
) -> CocoMetrics:
    """Score entries of a COCO result file.

    Args:
        results: of the images; those of other categories than the ones evaluated are ignored.
        index: the annotation file.
        image_ids: the images to be scored: all of the file, or any of them.
        class_names: the categories to be scored.

    Raises:
        ResultsError: an entry of an image or category that is not in the annotation file, or with a number that is not
            finite.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    check_results(results, index)
    wanted = set(image_ids)
    names = {number: name for number, name in index.categories if name in set(class_names)}
    common = {
        "images": [{"id": number} for number in wanted],
        "categories": [{"id": number, "name": name} for number, name in index.categories],
    }
    truth = COCO({**common, "annotations": _annotations(index, wanted)})
    found = COCO(
        {
            **common,
            "annotations": [
                {**entry, "id": i, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
                for i, entry in enumerate(results, 1)
                if entry["image_id"] in wanted
            ],
        }
    )
    tool = COCOeval_faster(truth, found, "bbox")
    tool.params.catIds = sorted(names)
    tool.run()
    precision, recall = tool.eval["precision"], tool.eval["recall"]  # [T, R, K, area, max], [T, K, area, max]
    counts = _count_objects(index, wanted)
    classes: dict[str, dict[str, float]] = {}
    curves = {}
    for k, number in enumerate(tool.params.catIds):
        name, objects = names[number], counts[number]
        if name in classes and not objects:
            continue  # the unused one of two categories with the same name
        areas = {f"AP{s}": _mean(precision[:, :, k, a, -1]) for a, s in enumerate(("", "s", "m", "l"))}
        fixed = {f"AP{round(100 * o)}": _mean(precision[_at(tool, o), :, k, 0, -1]) for o in (0.5, 0.75)}
        values = {"objects": float(objects), **areas, **fixed, "AR100": _mean(recall[:, k, 0, -1])}
        classes[name] = {column: values[column] for column in ("objects", *NUMBERS[:6], "AR100")}
        curves[name] = precision[:, :, k, 0, -1]
    order = [name for name in class_names if name in classes]
    return CocoMetrics(
        {name: float(value) for name, value in zip(NUMBERS, tool.stats, strict=True)},
        {name: classes[name] for name in order},
        {name: curves[name] for name in order},
        tool.params.iouThrs,
    )


def check_results(results: Results, index: CocoIndex) -> None:
    """Check entries of a result file; see `evaluate_results` for what is wrong with one."""
    categories = {number for number, _ in index.categories}
    for place, entry in enumerate(results):
        problem = None
        try:
            numbers = [float(value) for value in (*entry["bbox"], entry["score"])]
            if entry["image_id"] not in index.rows:
                problem = f"image_id {entry['image_id']!r} is not in {index.annotations}"
            elif entry["category_id"] not in categories:
                problem = f"category_id {entry['category_id']!r} is not in {index.annotations}"
            elif len(numbers) != 5 or not all(map(math.isfinite, numbers)):
                problem = f"bbox must be four finite numbers and score one, got {entry['bbox']}, {entry['score']}"
        except (KeyError, TypeError, ValueError):
            problem = f"needs image_id, category_id, bbox (x, y, width, height) and score, got {entry!r}"
        if problem:
            raise ResultsError(f"result {place}: {problem}")


def _category_id(dataset: CocoDataset, name: str) -> int | None:
    return dataset.category_ids.get(name) if name in dataset.class_names else None


def _annotations(index: CocoIndex, wanted: set[int]) -> list[dict[str, Any]]:
    owner = np.repeat(index.image_id, np.diff(index.box_start)).tolist()
    numbers = [number for number, _ in index.categories]
    return [
        # An id of 0 would read as "not matched", so the tool gets ids of its own.
        {"id": i, "image_id": image, "category_id": numbers[k], "bbox": box, "area": area, "iscrowd": int(crowd)}
        for i, (image, box, area, k, crowd) in enumerate(
            zip(
                owner,
                index.box.tolist(),
                index.box_area.tolist(),
                index.box_category.tolist(),
                index.box_crowd.tolist(),
                strict=True,
            ),
            1,
        )
        if image in wanted
    ]


def _count_objects(index: CocoIndex, wanted: set[int]) -> dict[int, int]:
    """Objects to be found of each category, crowds left out, by category id."""
    here = np.repeat(np.isin(index.image_id, list(wanted)), np.diff(index.box_start)) & ~index.box_crowd
    counts = np.bincount(index.box_category[here], minlength=len(index.categories))
    return {number: int(count) for (number, _), count in zip(index.categories, counts, strict=True)}


def _at(tool, overlap: float) -> int:
    return int(np.abs(tool.params.iouThrs - overlap).argmin())


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _shown(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"
