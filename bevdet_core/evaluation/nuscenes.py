"""The official nuScenes detection metric (detection_cvpr_2019), computed by the devkit itself.

The devkit's evaluation reads the tables through a `NuScenes` object that takes a minute and gigabytes to load. Here the
index answers in its place, so that the devkit's own functions load, filter, match and average, on any set of samples.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..config import NUSCENES_CLASSES
from ..data.nuscenes_index import NuScenesIndex
from ..detections import ATTRIBUTES
from ..documents import LARGE, DocumentError, parse_json, read_text
from ..files import write_text
from .report import draw_curves, print_report

META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}
MAX_BOXES = 500

ERRORS = {"mATE": "trans_err", "mASE": "scale_err", "mAOE": "orient_err", "mAVE": "vel_err", "mAAE": "attr_err"}

_NUMBERS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}
_ELONGATED = ("car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle", "bicycle")

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # sample token -> boxes as `Detections.to_nuscenes` gives them


class SubmissionError(ValueError):
    """Results that the official evaluation would reject, or judge wrongly; the message names sample and entry."""


@dataclass
class NuScenesMetrics:
    """The outcome of an evaluation.

    Attributes:
        nds: nuScenes detection score.
        mean_ap: mean average precision, over classes and centre distances.
        errors: mATE (m), mASE (1 - IoU), mAOE (rad), mAVE (m/s), mAAE (1 - accuracy).
        classes: for each class "AP" and the five errors "ATE" to "AAE"; NaN where the metric has none.
        curves: for each class and centre distance (m) precision [101] over the recalls 0, 0.01, ..., 1.
        warnings: what looks wrong with the results.
        evaluated: what was scored: weights, data, split; empty where only results were.
    """

    nds: float
    mean_ap: float
    errors: dict[str, float]
    classes: dict[str, dict[str, float]]
    curves: dict[str, dict[float, np.ndarray]] = field(repr=False)
    warnings: list[str] = field(default_factory=list)
    evaluated: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """NDS, mAP and the five errors."""
        return {"NDS": self.nds, "mAP": self.mean_ap, **self.errors}

    def table(self) -> Table:
        """What `print` shows."""
        table = Table(title="nuScenes detection", show_footer=True)
        footers = [f"{value:.3f}" for value in self.errors.values()]
        table.add_column("class", footer=f"mean (NDS {self.nds:.4f})")
        for name, footer in zip(
            ("AP", "ATE", "ASE", "AOE", "AVE", "AAE"), [f"{self.mean_ap:.4f}", *footers], strict=True
        ):
            table.add_column(name, footer=footer, justify="right")
        for name, values in self.classes.items():
            table.add_row(name, *("-" if np.isnan(value) else f"{value:.3f}" for value in values.values()))
        return table

    def print(self, console: Console | None = None) -> None:
        """Show the scores, per class and on the whole, as a table in the terminal."""
        print_report(self.table(), self.warnings, console)

    def save(self, folder: Path) -> None:
        """Write `metrics.json` and the precision-recall curves, `pr_curves.png`, into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            **self.summary(),
            "classes": {c: {k: None if np.isnan(v) else v for k, v in m.items()} for c, m in self.classes.items()},
            "warnings": self.warnings,
            "evaluated": self.evaluated,
        }
        write_text(folder / "metrics.json", json.dumps(content, indent=1))
        draw_curves(
            folder / "pr_curves.png",
            f"NDS {self.nds:.4f}   mAP {self.mean_ap:.4f}",
            "centre distance",
            {
                f"{name}  AP {self.classes[name]['AP']:.3f}": {f"{distance:g} m": p for distance, p in curves.items()}
                for name, curves in self.curves.items()
            },
        )


def check_results(results: Results, tokens: Sequence[str]) -> None:
    """Check that results are a valid submission for exactly these samples.

    Raises:
        SubmissionError: samples that are missing or that do not belong here, more than 500 boxes for one, an entry that
            is missing or of the wrong kind, a number that is not finite, an unknown class or attribute.
    """
    for title, odd in (("misses", set(tokens) - set(results)), ("has extra", set(results) - set(tokens))):
        if odd:
            named = ", ".join(sorted(odd)[:5])
            more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
            raise SubmissionError(
                f"the submission {title} {len(odd)} of the split's {len(tokens)} samples: {named}{more}"
            )
    for token, boxes in results.items():
        if len(boxes) > MAX_BOXES:
            raise SubmissionError(f"sample {token!r} has {len(boxes)} boxes, at most {MAX_BOXES} are allowed")
        for number, box in enumerate(boxes):
            if problem := _box_problem(box, token):
                raise SubmissionError(f"sample {token!r}, box {number}: {problem}")


def write_submission(
    path: str | Path, results: Results, tokens: Sequence[str], meta: Mapping[str, bool] | None = None
) -> Path:
    """Check results and write them as a submission for the official evaluation server.

    Args:
        path: the JSON file; never half-written.
        results: sample token -> boxes.
        tokens: of all samples of the split.
        meta: what the detector uses; default: the cameras alone.

    Raises:
        SubmissionError: see `check_results`; or `meta` does not have exactly the five flags.
    """
    meta = dict(META if meta is None else meta)
    if meta.keys() != META.keys() or not all(isinstance(value, bool) for value in meta.values()):
        raise SubmissionError(f"meta must have exactly the flags {', '.join(META)}, true or false; got {meta}")
    check_results(results, tokens)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"meta": meta, "results": dict(results)}))
    return path


def read_submission(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The results in a submission file.

    Raises:
        SubmissionError: it is no JSON file, or has no `results`.
    """
    try:
        content = parse_json(read_text(Path(path), LARGE))
    except DocumentError as error:
        raise SubmissionError(f"{path} is no JSON file, or is cut off: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise SubmissionError(f"{path} is no nuScenes submission: it has no 'results' that map sample tokens to boxes")
    return content["results"]


def evaluate_results(results: Results, index: NuScenesIndex, tokens: Sequence[str]) -> NuScenesMetrics:
    """Score results with the devkit's DetectionEval, configuration detection_cvpr_2019.

    Args:
        results: sample token -> boxes in the global frame.
        index: the tables of the data set.
        tokens: of the samples to be scored: those of an official split, or any others.

    Raises:
        SubmissionError: see `check_results`.
        ValueError: the data set has no annotations.
    """
    if not index.annotated:
        raise ValueError("this version has no annotations: upload the submission to the evaluation server")
    check_results(results, tokens)
    with _quiet():
        metrics, data = _devkit_evaluation(results, index, tokens)
    outcome = NuScenesMetrics(
        metrics.nd_score,
        metrics.mean_ap,
        {name: metrics.tp_errors[key] for name, key in ERRORS.items()},
        {
            name: {
                "AP": float(metrics.mean_dist_aps[name]),
                **{title[1:]: float(metrics.get_label_tp(name, key)) for title, key in ERRORS.items()},
            }
            for name in metrics.cfg.class_names
        },
        {
            name: {distance: data[name, distance].precision for distance in metrics.cfg.dist_ths}
            for name in metrics.cfg.class_names
        },
    )
    if text := convention_warning(outcome.classes):
        outcome.warnings.append(text)
    return outcome


def convention_warning(classes: Mapping[str, Mapping[str, float]]) -> str | None:
    """A warning if these scores look as if width and length, and with them the yaw, were mixed up.

    Centres are found all the same, but with width and length swapped the boxes of long objects overlap by a quarter
    only, and mirrored headings err by pi / 2 on average: over a whole split mASE is about 0.71 and mAOE about 1.56.
    """
    found = [classes[name] for name in _ELONGATED if name in classes and classes[name]["AP"] > 0.05]
    if not found:
        return None
    scale, heading = (float(np.mean([values[name] for values in found])) for name in ("ASE", "AOE"))
    if scale > 0.6 and heading > 1.0:
        return (
            f"vehicles are found, but scale errors of {scale:.2f} and heading errors of {heading:.2f} rad look like "
            "mixed box conventions, (l, w, h) for (w, l, h) and yaw for -yaw - pi / 2: see boxes3d.from_convention"
        )
    return None


def _devkit_evaluation(results: Results, index: NuScenesIndex, tokens: Sequence[str]):
    """(DetectionMetrics, DetectionMetricDataList) of the devkit."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_gt_of_sample_tokens
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    class IndexedEval(DetectionEval):
        """DetectionEval with boxes that are already in memory."""

        def __init__(self) -> None:
            tables = _IndexTables(index)
            self.cfg = config_factory("detection_cvpr_2019")
            self.verbose = False
            self.pred_boxes = EvalBoxes.deserialize({token: results[token] for token in tokens}, DetectionBox)
            self.gt_boxes = load_gt_of_sample_tokens(tables, list(tokens), DetectionBox)
            for boxes in (self.pred_boxes, self.gt_boxes):
                if boxes.all:  # the devkit's filter cannot tell the kind of no boxes at all
                    filter_eval_boxes(tables, add_center_dist(tables, boxes), self.cfg.class_range)

    return IndexedEval().evaluate()


class _IndexTables:
    """What the devkit's evaluation asks of a `NuScenes` object, answered by an index.

    A row of the index stands in for the token of an annotation, the sample's token for those of its lidar and pose.
    """

    def __init__(self, index: NuScenesIndex) -> None:
        self.index = index
        self.attribute = [{"token": i, "name": name} for i, name in enumerate(index.attributes)]

    def get(self, table: str, token: Any) -> dict[str, Any]:
        index = self.index
        if table == "sample":
            boxes = index.box_rows(index.rows[token])
            return {"data": {"LIDAR_TOP": token}, "anns": range(boxes.start, boxes.stop)}
        if table == "sample_data":
            return {"ego_pose_token": token}
        if table == "ego_pose":
            return {"translation": index.ego2global[index.rows[token], :3, 3]}
        if table == "sample_annotation":
            attribute = int(index.box_attribute[token])
            return {
                "token": token,
                "category_name": index.categories[index.box_category[token]],
                "attribute_tokens": [attribute] if attribute >= 0 else [],
                "translation": index.box_translation[token].tolist(),
                "size": index.box_size[token].tolist(),
                "rotation": index.box_rotation[token].tolist(),
                "num_lidar_pts": int(index.box_lidar_points[token]),
                "num_radar_pts": int(index.box_radar_points[token]),
            }
        raise KeyError(table)

    def box_velocity(self, token: int) -> np.ndarray:
        return self.index.box_velocity[token]


def _box_problem(box: Mapping[str, Any], token: str) -> str | None:
    for name, count in _NUMBERS.items():
        value = box.get(name)
        if not isinstance(value, (list, tuple)) or len(value) != count:
            return f"{name} must be a list of {count} numbers, got {value!r}"
        try:
            finite = all(map(math.isfinite, value))
        except TypeError:
            finite = False
        if not finite:
            return f"{name} must be finite numbers, got {value!r}"
    if box.get("sample_token") != token:
        return f"sample_token is {box.get('sample_token')!r}"
    if min(box["size"]) <= 0:
        return f"size must be positive, got {box['size']}"
    if not any(box["rotation"]):
        return "rotation is the zero quaternion"
    if box.get("detection_name") not in NUSCENES_CLASSES:
        return f"unknown detection_name {box.get('detection_name')!r}; known: {', '.join(NUSCENES_CLASSES)}"
    if box.get("attribute_name") not in ATTRIBUTES:
        return f"unknown attribute_name {box.get('attribute_name')!r}; known: {', '.join(filter(None, ATTRIBUTES))}"
    score = box.get("detection_score")
    if type(score) is not float or not math.isfinite(score):
        return f"detection_score must be a finite Python float, got {score!r} ({type(score).__name__})"
    return None


@contextlib.contextmanager
def _quiet():
    """Without the devkit's progress bars, and without numpy's warnings about means of nothing."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
