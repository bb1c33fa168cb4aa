import copy
import io
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bevdet_core import boxes3d
from bevdet_core.config import NuScenesConfig
from bevdet_core.data.nuscenes import NuScenesDataset
from bevdet_core.data.nuscenes_index import open_index
from bevdet_core.detections import Detections
from bevdet_core.evaluation.nuscenes import (
    ERRORS,
    SubmissionError,
    check_results,
    convention_warning,
    evaluate_results,
    read_submission,
    write_submission,
)
from bevdet_core.geometry import quaternion_to_matrix, yaw_of


def truth_as_prediction(dataset: NuScenesDataset, seed: int = 0, noise: float = 0.0) -> dict[str, list[dict]]:
    """The objects of a data set through `Detections.to_nuscenes`, with random scores."""
    generator = torch.Generator().manual_seed(seed)
    results = {}
    for i, row in enumerate(dataset.rows):
        targets = dataset.targets(i)
        scores = torch.rand(len(targets), generator=generator)
        boxes = targets.boxes + noise * torch.randn(targets.boxes.shape, generator=generator)
        boxes[:, 3:6].clamp_(min=0.1)
        found = Detections(scores, targets.labels, boxes, dataset.class_names)
        results[dataset.tokens[i]] = found.to_nuscenes(dataset.tokens[i], dataset.index.lidar2global[row])
    return results


@pytest.fixture
def dataset(synthetic_root: Path) -> NuScenesDataset:
    return NuScenesDataset(NuScenesConfig(root=str(synthetic_root), version="v1.0-mini"), "mini_val")


def official(root: str | Path, split: str, results: dict, folder: Path) -> dict[str, Any]:
    """What the devkit says when it is used by itself."""
    from nuscenes import NuScenes
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    path = folder / "official.json"
    path.write_text(json.dumps({"meta": {}, "results": results}))
    devkit = NuScenes("v1.0-mini", str(root), verbose=False)
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(devkit, config, str(path), split, str(folder / "official"), verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing, for classes without truth
        metrics, _ = evaluation.evaluate()
    return metrics.serialize()


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_scores_are_exactly_those_of_the_devkit(dataset: NuScenesDataset, tmp_path: Path, noise: float) -> None:
    results = truth_as_prediction(dataset, noise=noise)
    expected = official(dataset.root, "mini_val", results, tmp_path)
    ours = evaluate_results(results, dataset.index, dataset.tokens)
    assert (ours.mean_ap, ours.nds) == (expected["mean_ap"], expected["nd_score"])
    assert ours.errors == {name: expected["tp_errors"][key] for name, key in ERRORS.items()}
    for name, values in ours.classes.items():
        assert values["AP"] == expected["mean_dist_aps"][name]
        for title, key in ERRORS.items():
            np.testing.assert_equal(values[title[1:]], expected["label_tp_errors"][name][key])
    assert ours.mean_ap > 0.05


def test_truth_as_prediction_is_perfect_where_there_is_truth(dataset: NuScenesDataset) -> None:
    metrics = evaluate_results(truth_as_prediction(dataset), dataset.index, dataset.tokens)
    present = [values for values in metrics.classes.values() if values["AP"] > 0]
    assert len(present) >= 3
    for values in present:
        assert values["AP"] == pytest.approx(1)
        for name, limit in (("ATE", 1e-3), ("ASE", 1e-3), ("AOE", 0.02), ("AVE", 0.02)):
            assert math.isnan(values[name]) or values[name] < limit
    assert not metrics.warnings


def test_the_key_frame_scores_what_its_record_says(shared: Path, real_config: NuScenesConfig) -> None:
    folder = shared / "data" / "nuscenes-sample" / "extra"
    record = json.loads((folder / "expected.json").read_text())["detection_eval_gt_as_prediction_mini_train"]
    dataset = NuScenesDataset(real_config, "mini_train")
    results = read_submission(folder / "results_gt_as_prediction.json")
    metrics = evaluate_results(results, dataset.index, dataset.tokens)
    assert metrics.mean_ap == record["mean_ap"]
    assert metrics.nds == record["nd_score"]
    assert {name: values["AP"] for name, values in metrics.classes.items()} == record["mean_dist_aps"]
    own = evaluate_results(truth_as_prediction(dataset), dataset.index, dataset.tokens)
    assert own.mean_ap == pytest.approx(0.5)  # zero-point boxes are no objects to our data set
    for name in ("car", "truck", "pedestrian", "barrier"):
        assert own.classes[name]["ATE"] < 1e-4
        assert own.classes[name]["ASE"] < 1e-5
        assert own.classes[name]["AOE"] < 2e-3


def test_our_boxes_of_the_key_frame_are_the_recorded_ones(shared: Path, real_config: NuScenesConfig) -> None:
    record = read_submission(shared / "data/nuscenes-sample/extra/results_gt_as_prediction.json")
    dataset = NuScenesDataset(real_config, "mini_train")
    (token,) = dataset.tokens
    expected = {tuple(box["translation"]): box for box in record[token]}
    ours = truth_as_prediction(dataset)[token]
    assert len(ours) == 65
    for box in ours:
        nearest = min(expected, key=lambda place: math.dist(place, box["translation"]))
        other = expected[nearest]
        assert math.dist(nearest, box["translation"]) < 1e-4
        assert box["detection_name"] == other["detection_name"]
        np.testing.assert_allclose(box["size"], other["size"], rtol=1e-6)
        turn = yaw_of(quaternion_to_matrix(box["rotation"])) - yaw_of(quaternion_to_matrix(other["rotation"]))
        assert math.cos(turn) > 1 - 1e-5


def test_any_set_of_samples_can_be_scored(synthetic_root: Path) -> None:
    config = NuScenesConfig(root=str(synthetic_root), version="v1.0-mini")
    whole = NuScenesDataset(config, "mini_train")
    tokens = ",".join(whole.tokens[1:3])
    part = NuScenesDataset(config, tokens)
    assert part.tokens == whole.tokens[1:3]
    metrics = evaluate_results(truth_as_prediction(part), part.index, part.tokens)
    assert metrics.classes["car"]["AP"] == pytest.approx(1)


def test_nothing_found_scores_nothing(dataset: NuScenesDataset) -> None:
    metrics = evaluate_results({token: [] for token in dataset.tokens}, dataset.index, dataset.tokens)
    assert metrics.mean_ap == metrics.nds == 0


def test_nothing_to_find_scores_nothing(synthetic_copy: Path, edit_table: Callable, dataset: NuScenesDataset) -> None:
    edit_table(synthetic_copy, "sample_annotation", lambda records: records.clear())
    index = open_index(synthetic_copy, "v1.0-mini")
    metrics = evaluate_results(truth_as_prediction(dataset), index, dataset.tokens)
    assert metrics.mean_ap == 0


def test_the_devkit_keeps_quiet(dataset: NuScenesDataset, capfd: pytest.CaptureFixture) -> None:
    evaluate_results(truth_as_prediction(dataset), dataset.index, dataset.tokens)
    assert capfd.readouterr() == ("", "")


def test_the_run_folder_gets_numbers_and_curves(dataset: NuScenesDataset, tmp_path: Path) -> None:
    from PIL import Image

    metrics = evaluate_results(truth_as_prediction(dataset, noise=0.3), dataset.index, dataset.tokens)
    metrics.save(tmp_path / "run")
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["mAP"] == metrics.mean_ap
    assert content["classes"]["car"]["AP"] == metrics.classes["car"]["AP"]
    assert content["classes"]["traffic_cone"]["AOE"] is None
    assert list(metrics.summary()) == ["NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE"]
    assert all(np.shape(curve) == (101,) for curve in metrics.curves["car"].values())
    assert np.asarray(Image.open(tmp_path / "run" / "pr_curves.png")).std() > 5


def test_the_table_shows_every_class(dataset: NuScenesDataset) -> None:
    metrics = evaluate_results(truth_as_prediction(dataset), dataset.index, dataset.tokens)
    console = Console(record=True, width=120, file=io.StringIO())
    metrics.print(console)
    text = console.export_text()
    for name, values in metrics.classes.items():
        assert name in text
        assert f"{values['AP']:.3f}" in text
    assert f"NDS {metrics.nds:.4f}" in text


def test_mixed_conventions_are_noticed(dataset: NuScenesDataset) -> None:
    """Old-style boxes, (w, l, h) with yaw_old, taken for new-style ones, (l, w, h) with yaw."""
    results = {}
    for i, row in enumerate(dataset.rows):
        targets = dataset.targets(i)
        old = boxes3d.to_convention(targets.boxes, "mmdet3d-0", "gravity")
        mixed = boxes3d.from_convention(old, "mmdet3d-1", "gravity")
        found = Detections(torch.ones(len(targets)), targets.labels, mixed, dataset.class_names)
        results[dataset.tokens[i]] = found.to_nuscenes(dataset.tokens[i], dataset.index.lidar2global[row])
    metrics = evaluate_results(results, dataset.index, dataset.tokens)
    assert metrics.classes["car"]["AP"] == pytest.approx(1)
    assert len(metrics.warnings) == 1
    assert "mixed box conventions" in metrics.warnings[0]


@pytest.mark.parametrize(
    ("ap", "scale", "heading", "warned"),
    [(0.4, 0.71, 1.56, True), (0.4, 0.27, 0.4, False), (0.4, 0.27, 1.56, False), (0.01, 1.0, 1.5, False)],
)
def test_only_the_signature_of_mixed_conventions_is_warned_of(
    ap: float, scale: float, heading: float, warned: bool
) -> None:
    classes = {name: {"AP": ap, "ASE": scale, "AOE": heading} for name in ("car", "truck")}
    assert (convention_warning(classes) is not None) == warned


@pytest.fixture
def results() -> dict[str, list[dict]]:
    box = {
        "sample_token": "a",
        "translation": [1.0, 2.0, 3.0],
        "size": [1.0, 2.0, 1.5],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
        "detection_name": "car",
        "detection_score": 0.5,
        "attribute_name": "vehicle.parked",
    }
    return {"a": [box, copy.deepcopy(box)], "b": []}


def test_a_submission_is_written_and_read_back(results: dict, tmp_path: Path) -> None:
    path = write_submission(tmp_path / "out" / "submission.json", results, ["b", "a"])
    assert read_submission(path) == results
    assert json.loads(path.read_text())["meta"] == {
        "use_camera": True,
        "use_lidar": False,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    assert [file.name for file in path.parent.iterdir()] == ["submission.json"]


def test_missing_and_extra_samples_are_named(results: dict) -> None:
    with pytest.raises(SubmissionError, match=r"the submission misses 1 of the split's 3 samples: c$"):
        check_results(results, ["a", "b", "c"])
    with pytest.raises(SubmissionError, match=r"the submission has extra 1 of the split's 1 samples: b$"):
        check_results(results, ["a"])
    with pytest.raises(SubmissionError, match=r"misses 9 .*: t0, t1, t2, t3, t4 and 4 more$"):
        check_results(results, ["a", "b", *(f"t{i}" for i in range(9))])


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("translation", [1.0, math.nan, 0.0], "translation must be finite numbers"),
        ("velocity", [math.inf, 0.0], "velocity must be finite numbers"),
        ("velocity", [0.0, 0.0, 0.0], "velocity must be a list of 2 numbers"),
        ("size", ["1", "2", "3"], "size must be finite numbers"),
        ("size", [1.0, 0.0, 2.0], "size must be positive"),
        ("rotation", [0.0, 0.0, 0.0, 0.0], "zero quaternion"),
        ("detection_name", "cars", "unknown detection_name 'cars'; known: car"),
        ("attribute_name", "vehicle.flying", "unknown attribute_name 'vehicle.flying'"),
        ("detection_score", 1, r"must be a finite Python float, got 1 \(int\)"),
        ("detection_score", np.float32(0.5), r"must be a finite Python float, got .* \(float32\)"),
        ("detection_score", math.nan, "must be a finite Python float, got nan"),
        ("sample_token", "b", "sample_token is 'b'"),
    ],
)
def test_a_wrong_entry_is_named(results: dict, tmp_path: Path, entry: str, value: object, message: str) -> None:
    results["a"][1][entry] = value
    with pytest.raises(SubmissionError, match=rf"sample 'a', box 1: .*{message}"):
        write_submission(tmp_path / "out.json", results, ["a", "b"])
    del results["a"][1][entry]
    with pytest.raises(SubmissionError, match=rf"sample 'a', box 1: .*{entry}"):
        check_results(results, ["a", "b"])
    assert not (tmp_path / "out.json").exists()


def test_500_boxes_are_allowed_and_no_more(results: dict) -> None:
    results["a"] = results["a"][:1] * 500
    check_results(results, ["a", "b"])
    results["a"] = results["a"][:1] * 501
    with pytest.raises(SubmissionError, match="sample 'a' has 501 boxes, at most 500 are allowed"):
        check_results(results, ["a", "b"])


def test_meta_has_five_flags(results: dict, tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="meta must have exactly the flags use_camera"):
        write_submission(tmp_path / "out.json", results, ["a", "b"], meta={"use_camera": True})


def test_files_that_are_no_submission_are_told(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"meta": {}, "results": {')
    with pytest.raises(SubmissionError, match=r"half\.json is no JSON file, or is cut off"):
        read_submission(tmp_path / "half.json")
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(SubmissionError, match=r"other\.json is no nuScenes submission"):
        read_submission(tmp_path / "other.json")


def test_a_version_without_annotations_cannot_be_scored(synthetic_copy: Path) -> None:
    (synthetic_copy / "v1.0-mini").rename(synthetic_copy / "v1.0-test")
    index = open_index(synthetic_copy, "v1.0-test")
    with pytest.raises(ValueError, match="no annotations"):
        evaluate_results({}, index, [])
