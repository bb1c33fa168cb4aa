"""The synthetic COCO set, read back with pycocotools."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bevdet_core.data.synthetic import synthesize_coco

SMALL: dict[str, Any] = {"image_size": (80, 60), "supersample": 1, "progress": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "coco"
    return synthesize_coco(out, images=60, seed=1, image_size=(160, 120), workers=1, progress=False)


def load(root: Path, split: str) -> COCO:
    return COCO(str(root / "annotations" / f"instances_{split}.json"))


@pytest.mark.parametrize(("split", "count"), [("train2017", 48), ("val2017", 12)])
def test_images_boxes_and_masks_agree(root: Path, split: str, count: int) -> None:
    coco = load(root, split)
    assert len(coco.imgs) == len(list((root / split).iterdir())) == count
    for image in coco.imgs.values():
        with Image.open(root / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (160, 120)
    assert len(coco.anns) > 2 * count
    for row in coco.anns.values():
        mask = coco.annToMask(row)
        x, y, width, height = row["bbox"]
        rows, columns = np.nonzero(mask)
        assert mask.sum() == row["area"] >= 12
        assert (columns.min(), rows.min()) == (x, y)
        assert (columns.max() + 1 - x, rows.max() + 1 - y) == (width, height)
        assert row["iscrowd"] == 0


def test_all_classes_occur_and_some_images_are_empty(root: Path) -> None:
    coco = load(root, "train2017")
    assert {row["category_id"] for row in coco.anns.values()} == set(range(1, 11))
    names = [category["name"] for category in coco.dataset["categories"]]
    assert names[0] == "car"
    assert len(set(names)) == 10
    assert any(not coco.getAnnIds(image) for image in coco.imgs)


def test_splits_share_nothing(root: Path) -> None:
    assert not set(load(root, "train2017").imgs) & set(load(root, "val2017").imgs)


def test_its_truth_as_prediction_scores_full_marks(root: Path) -> None:
    truth = load(root, "val2017")
    rows = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.9}
        for row in truth.anns.values()
    ]
    evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_same_arguments_give_the_same_bytes_for_any_number_of_processes(tmp_path: Path) -> None:
    def digest(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    one = digest(synthesize_coco(tmp_path / "one", 9, 3, workers=1, **SMALL))
    two = digest(synthesize_coco(tmp_path / "two", 9, 3, workers=2, **SMALL))
    other = digest(synthesize_coco(tmp_path / "other", 9, 4, workers=1, **SMALL))
    assert one == two
    assert len(one) == 9 + 2 + 1
    assert not set(one.values()) & set(other.values())


def test_a_set_without_validation_is_possible(tmp_path: Path) -> None:
    root = synthesize_coco(tmp_path / "set", 2, val_images=0, workers=1, **SMALL)
    assert len(load(root, "train2017").imgs) == 2
    assert len(load(root, "val2017").imgs) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"images": 2, "val_images": -1}, "val_images must lie between 0 and images = 2, got -1"),
        ({"images": 2, "image_size": (640, 2)}, r"image_size must be .* got \(640, 2\)"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesize_coco(tmp_path / "set", **{"progress": False, **arguments})
    assert list(tmp_path.iterdir()) == []
