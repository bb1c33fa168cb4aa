import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from rich.console import Console

from bevdet_core import extras
from bevdet_core.config import CocoConfig, NuScenesConfig, PixelConfig, load_config
from bevdet_core.data.coco import CocoDataset
from bevdet_core.data.coco_index import CocoIndex, open_index
from bevdet_core.detections import Detections
from bevdet_core.engine import train
from bevdet_core.evaluation import evaluate, require_metric
from bevdet_core.evaluation.coco import NUMBERS, ResultsError, evaluate_results

NAMES = {1: "cat", 5: "dog", 9: "fox", 12: "owl"}  # no owl anywhere


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images with boxes of all sizes, crowds among them; annotation ids start at 0."""
    folder = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    tables: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    tables["categories"] = [{"id": number, "name": name} for number, name in NAMES.items()]
    (folder / "val2017").mkdir()
    for image in range(12):
        tables["images"].append({"id": image * 3, "file_name": f"{image}.png", "width": 320, "height": 240})
        Image.new("L", (320, 240), image).save(folder / "val2017" / f"{image}.png")
        for _ in range(rng.integers(0, 9) if image else 0):
            size = rng.uniform(8, 40) * rng.uniform(1, 5, 2)
            corner = rng.uniform(0, 1, 2) * ([320, 240] - size).clip(1)
            tables["annotations"].append(
                {
                    "id": len(tables["annotations"]),
                    "image_id": image * 3,
                    "category_id": int(rng.choice([1, 5, 9])),
                    "bbox": [*corner, *size],
                    "area": float(size.prod() * rng.uniform(0.3, 1)),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(tables))
    return folder


@pytest.fixture
def config(root: Path) -> CocoConfig:
    return CocoConfig(root=str(root), short_side=60, long_side=100)


def perturbed(index: CocoIndex, seed: int = 0) -> list[dict[str, Any]]:
    """Detections around the truth: moved, doubled, mislabelled, missing, and some out of nowhere."""
    rng = np.random.default_rng(seed)
    categories = [number for number, _ in index.categories]
    results = []
    for row, image in enumerate(index.image_id.tolist()):
        for k in range(*index.box_rows(row).indices(len(index.box))):
            for _ in range(rng.integers(0, 4)):
                right = rng.random() < 0.8
                results.append(
                    {
                        "image_id": image,
                        "category_id": categories[index.box_category[k]] if right else int(rng.choice(categories)),
                        "bbox": np.abs(index.box[k] * rng.normal(1, 0.06, 4)).tolist(),
                        "score": round(float(rng.random()), 2),
                    }
                )
        results.append({"image_id": image, "category_id": categories[0], "bbox": [5, 5, 30, 60], "score": 0.3})
    return results


def pycocotools_numbers(annotations: str | Path, results: list, image_ids: list[int], categories=None) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(Path(annotations).read_text())
        for number, record in enumerate(truth.dataset["annotations"], 1):
            record["id"] = number  # pycocotools takes an id of 0 for "not matched"
        truth.createIndex()
        tool = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "bbox")
        tool.params.imgIds = image_ids
        tool.params.catIds = categories or tool.params.catIds
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return tool.stats


@pytest.mark.parametrize("seed", range(3))
def test_the_twelve_numbers_are_those_of_pycocotools(config: CocoConfig, seed: int) -> None:
    index = CocoDataset(config).index
    results, ids = perturbed(index, seed), index.image_id.tolist()
    metrics = evaluate_results(results, index, ids, list(NAMES.values()))
    assert list(metrics.summary()) == list(NUMBERS)
    expected = pycocotools_numbers(index.annotations, results, ids)
    assert 0.1 < expected[0] < 0.9
    np.testing.assert_allclose(list(metrics.summary().values()), expected, atol=1e-4, rtol=0)


def test_some_images_and_some_classes(config: CocoConfig) -> None:
    index = CocoDataset(config).index
    results, some = perturbed(index), [3, 9, 27, 30]
    metrics = evaluate_results(results, index, some, ["fox", "cat"])
    expected = pycocotools_numbers(index.annotations, results, some, [1, 9])
    np.testing.assert_allclose(list(metrics.summary().values()), expected, atol=1e-4, rtol=0)
    assert list(metrics.classes) == ["fox", "cat"]


def test_numbers_of_a_class_are_those_of_it_alone(config: CocoConfig) -> None:
    index = CocoDataset(config).index
    results, ids = perturbed(index), index.image_id.tolist()
    metrics = evaluate_results(results, index, ids, list(NAMES.values()))
    for number, name in NAMES.items():
        expected = dict(zip(NUMBERS, pycocotools_numbers(index.annotations, results, ids, [number]), strict=True))
        values = metrics.classes[name]
        for column in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
            assert values[column] == pytest.approx(expected[column], abs=1e-4)
        truth = (index.box_category == list(NAMES).index(number)) & ~index.box_crowd
        assert values["objects"] == truth.sum()
        if truth.any():
            np.testing.assert_allclose(metrics.curves[name].mean(), values["AP"])
            assert metrics.curves[name].shape == (10, 101)


def test_nothing_found_is_zero_and_nothing_to_find_is_minus_one(config: CocoConfig) -> None:
    index = CocoDataset(config).index
    nothing = evaluate_results([], index, index.image_id.tolist(), list(NAMES.values()))
    assert nothing.summary()["AP"] == 0
    empty = evaluate_results(perturbed(index), index, [0], list(NAMES.values()))  # an image without objects
    assert set(empty.summary().values()) == {-1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 1}, r"result 1: image_id 1 is not in .*instances_val2017\.json"),
        ({"category_id": 2}, r"result 1: category_id 2 is not in"),
        ({"bbox": [1, 2, float("nan"), 4]}, "result 1: bbox must be four finite numbers"),
        ({"bbox": [1, 2, 3]}, "result 1: bbox must be four finite numbers"),
        ({"score": float("inf")}, "result 1: .* score one"),
        ({"score": "high"}, "result 1: needs image_id"),
        ({"bbox": None}, "result 1: needs image_id"),
    ],
)
def test_wrong_results_are_named(config: CocoConfig, change: dict[str, Any], message: str) -> None:
    index = CocoDataset(config).index
    good = {"image_id": 3, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}
    with pytest.raises(ResultsError, match=message):
        evaluate_results([good, {**good, **change}], index, [3], ["dog"])


class Oracle:
    """A detector that knows the truth, with classes of its own."""

    def __init__(self, dataset: CocoDataset, class_names: tuple[str, ...]) -> None:
        self.dataset = dataset
        self.class_names = class_names
        self.config = SimpleNamespace(model=SimpleNamespace(pixels=PixelConfig()))

    def new_memory(self) -> None:
        return None

    def detect(self, batch, memory=None) -> list[Detections]:
        out = []
        for token in batch.tokens:
            targets = self.dataset[self.dataset.tokens.index(token)].targets
            names = [self.dataset.class_names[label] for label in targets.labels]
            known = torch.tensor([name in self.class_names for name in names], dtype=torch.bool)
            labels = torch.tensor([self.class_names.index(n) for n in names if n in self.class_names]).long()
            out.append(Detections(torch.linspace(0.5, 1, len(labels)), labels, targets.boxes[known], self.class_names))
        return out


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_detector_is_scored_and_its_folder_filled(config: CocoConfig, tmp_path: Path, batch_size: int) -> None:
    dataset = CocoDataset(config)
    oracle = Oracle(dataset, ("N/A", "fox", "zebra", "cat", "dog", "N/A"))
    metrics = evaluate(oracle, dataset, tmp_path, batch_size, quiet=True)
    assert metrics.summary()["AP"] == pytest.approx(1)
    assert metrics.warnings == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "pr_curves.png", "results.json"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert {entry["category_id"] for entry in results} == {1, 5, 9}
    assert {entry["image_id"] for entry in results} <= set(dataset.index.image_id.tolist())
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["classes"]["fox"]["AP"] == pytest.approx(1)
    assert written["evaluated"] == {
        "weights": None,
        "root": config.root,
        "split": "val",
        "samples": len(dataset),
        "classes": list(dataset.class_names),
    }
    expected = pycocotools_numbers(dataset.index.annotations, results, dataset.index.image_id.tolist())
    np.testing.assert_allclose([written[name] for name in NUMBERS], expected, atol=1e-4, rtol=0)


def test_classes_that_the_detector_does_not_know_are_misses(config: CocoConfig, tmp_path: Path) -> None:
    dataset = CocoDataset(config)
    metrics = evaluate(Oracle(dataset, ("cat", "fox")), dataset, tmp_path, quiet=True)
    assert metrics.summary()["AP"] == pytest.approx(2 / 3)
    assert metrics.warnings == [
        "the detector has no class for some objects, which count as misses: "
        f"{metrics.classes['dog']['objects']:.0f} of 'dog'"
    ]


def test_a_part_of_the_split(config: CocoConfig, tmp_path: Path) -> None:
    dataset = CocoDataset(replace(config, val_limit=4))
    metrics = evaluate(Oracle(dataset, tuple(NAMES.values())), dataset, tmp_path, quiet=True)
    assert metrics.summary()["AP"] == pytest.approx(1)
    assert {entry["image_id"] for entry in json.loads((tmp_path / "results.json").read_text())} <= {0, 12, 21, 33}


def test_the_report_shows_classes_with_objects(config: CocoConfig) -> None:
    index = CocoDataset(config).index
    metrics = evaluate_results(perturbed(index), index, index.image_id.tolist(), list(NAMES.values()))
    metrics.warnings.append("a [bold] word")
    console = Console(file=io.StringIO(), width=100)
    metrics.print(console)
    text = console.file.getvalue()
    for word in ("dog", "AP75", f"{metrics.numbers['AP']:.3f}", "AR10 ", "no objects of 1 other", "a [bold] word"):
        assert word in text
    assert "owl" not in text


def test_a_narrow_terminal_shows_all_digits(config: CocoConfig) -> None:
    index = CocoDataset(config).index
    metrics = evaluate_results(perturbed(index), index, index.image_id.tolist(), list(NAMES.values()))
    metrics.classes = {f"construction_vehicle_{name}": values for name, values in metrics.classes.items()}
    console = Console(file=io.StringIO(), width=80)
    metrics.print(console)
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for value in (*metrics.summary().values(), *(v for row in metrics.classes.values() for v in row.values())):
        assert value < 0 or f"{value:.3f}" in text or f"{value:.0f}" in text


def test_results_of_a_test_split_are_written_for_the_server(root: Path, tmp_path: Path) -> None:
    tables = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    del tables["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(tables))
    config = CocoConfig(root=str(root), val_annotations=str(tmp_path / "test.json"), val_images="val2017")
    dataset = CocoDataset(config)
    found = Detections(torch.tensor([0.5]), torch.tensor([1]), torch.tensor([[1.0, 2, 4, 8]]), tuple(NAMES.values()))
    detector = SimpleNamespace(
        config=SimpleNamespace(model=SimpleNamespace(pixels=PixelConfig())),
        new_memory=lambda: None,
        detect=lambda batch, memory: [found],
    )
    with pytest.raises(ValueError, match=r"no annotations: upload .*results\.json"):
        evaluate(detector, dataset, tmp_path / "out", quiet=True)
    first = json.loads((tmp_path / "out" / "results.json").read_text())[0]
    assert first == {"image_id": 0, "category_id": 5, "bbox": [1, 2, 3, 6], "score": 0.5}


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    require_metric(CocoConfig())
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"faster_coco_eval.*pip install 'bevdet-core\[coco\]'"):
        require_metric(CocoConfig())
    with pytest.raises(ImportError, match=r"pip install 'bevdet-core\[nuscenes\]'"):
        require_metric(NuScenesConfig())


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_truth_as_detections(shared: Path, tmp_path: Path, split: str) -> None:
    folder = shared / "data" / "coco-tiny"
    expected = json.loads((folder / "expected.json").read_text())[split]["gt_as_detections_stats"]
    path = folder / "annotations" / f"instances_{split}.json"
    truth = json.loads(path.read_text())["annotations"]
    results = [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 1.0} for a in truth]
    index = open_index(path, tmp_path)
    ids, names = index.image_id.tolist(), [name for _, name in index.categories]
    metrics = evaluate_results(results, index, ids, names)
    assert metrics.summary()["AP"] == 1
    np.testing.assert_allclose(list(metrics.summary().values()), expected, atol=1e-9)
    noisy = perturbed(index)
    numbers = list(evaluate_results(noisy, index, ids, names).summary().values())
    np.testing.assert_allclose(numbers, pycocotools_numbers(path, noisy, ids), atol=1e-4, rtol=0)


def test_a_training_that_could_not_be_scored_does_not_start(root: Path, tmp_path: Path) -> None:
    official = root / "annotations" / "instances_val2017.json"
    tables = json.loads(official.read_text())
    del tables["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(tables))
    train_files = {"train_annotations": str(official), "train_images": "val2017"}
    val_files = {"val_annotations": str(tmp_path / "test.json"), "val_images": "val2017"}
    data = {"name": "coco", "root": str(root), **train_files, **val_files}
    learner = {**tiny.DETR, "backbone": {**tiny.BACKBONE, "norm": "batch"}}
    with pytest.raises(ValueError, match=rf"data\.val_split 'val' of {root} has no annotations, by which the training"):
        train(load_config({"model": learner, "data": data}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
