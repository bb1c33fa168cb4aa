import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bevdet_core.config import CocoConfig, PixelConfig
from bevdet_core.data import build_dataset, class_names
from bevdet_core.data.coco import CocoDataset
from bevdet_core.data.coco_index import open_index
from bevdet_core.data.images import SampleError
from bevdet_core.data.index_file import read_index, write_index
from bevdet_core.data.loader import build_loader

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "red fox"}]


def annotation(number: int, image: int, category: int, bbox: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": 10,
        "iscrowd": 0,
        "segmentation": [[1.0, 2.5, 3e1, -4], [5, 6]],
        **more,
    }


def content() -> dict[str, Any]:
    """Three images: two boxes and a crowd, none, one box that sticks out and two without an area."""
    return {
        "images": [
            {"id": 50, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 20, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 99, "file_name": "c.png", "width": 40, "height": 30},
        ],
        "categories": CATEGORIES,
        "annotations": [
            annotation(1, 99, 3, [30, 20, 15, 15]),
            annotation(2, 50, 7, [1, 2, 3, 4]),
            annotation(3, 50, 90, [0, 0, 40, 30], iscrowd=1, segmentation={"counts": [0, 1200], "size": [30, 40]}),
            annotation(4, 50, 90, [10.5, 2.25, 8, 9]),
            annotation(5, 99, 3, [45, 5, 10, 10]),
            annotation(6, 99, 3, [5, 5, 0, 10]),
        ],
    }


def write(path: Path, tables: dict[str, Any], images: Path | None = None) -> Path:
    """An annotation file, and grey images that show their id."""
    images = images or path.parent
    images.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tables))
    for record in tables["images"]:
        if "width" in record and isinstance(record.get("file_name"), str):
            Image.new("RGB", (record["width"], record["height"]), (record["id"],) * 3).save(
                images / record["file_name"]
            )
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "train" / "_annotations.coco.json", content())
    return tmp_path


def config(root: Path, **changes: Any) -> CocoConfig:
    return replace(CocoConfig(root=str(root), val_split="train"), **changes)


def test_images_and_boxes_of_a_small_set(root: Path) -> None:
    dataset = build_dataset(config(root), training=True)
    assert dataset.class_names == ("cat", "dog", "red fox")
    assert dataset.category_ids == {"cat": 3, "dog": 7, "red fox": 90}
    assert dataset.tokens == ("50", "20", "99")
    first, second, third = (dataset[i] for i in range(3))
    assert [int(sample.images[0][0, 0, 0]) for sample in (first, second, third)] == [50, 20, 99]
    assert first.images[0].shape == (30, 40, 3)
    assert first.targets.labels.tolist() == [1, 2]  # the crowd is left out
    assert first.targets.boxes.tolist() == [[1, 2, 4, 6], [10.5, 2.25, 18.5, 11.25]]
    assert second.targets.boxes.shape == (0, 4)
    assert third.targets.boxes.tolist() == [[30, 20, 40, 30]]  # cut off at the border; the others have no area


def test_an_index_cannot_name_files_outside_of_the_folder(root: Path) -> None:
    path = CocoDataset(config(root)).index.path
    columns, info = read_index(path)
    columns["file_name"] = columns["file_name"].copy()
    columns["file_name"][:, :3] = list(b"../")
    write_index(path, columns, info)
    with pytest.raises(SampleError, match=rf"{path.name}: the file name '\.\./ng' leads out of the folder of the im"):
        CocoDataset(config(root))[0]


def test_images_without_boxes_may_be_left_out_of_training(root: Path) -> None:
    assert CocoDataset(config(root, keep_empty=False), training=True).tokens == ("50", "99")
    assert CocoDataset(config(root, keep_empty=False, classes=("cat",)), training=True).tokens == ("99",)
    assert len(CocoDataset(config(root, keep_empty=False))) == 3


def test_classes_can_be_chosen(root: Path) -> None:
    dataset = CocoDataset(config(root, classes=("red fox", "cat")), training=True)
    assert dataset.class_names == ("red fox", "cat")
    assert dataset[0].targets.labels.tolist() == [0]
    assert dataset[2].targets.labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"no category 'foxx'; nearest: .*red fox"):
        CocoDataset(config(root, classes=("cat", "foxx")), training=True)
    assert CocoDataset(config(root, classes=("cat", "horse"))).class_names == ("cat", "horse")


def test_categories_of_one_name(root: Path) -> None:
    """Some exporters list a parent category that no box uses under the name of another."""
    tables = content()
    tables["categories"] = [{"id": 0, "name": "dog"}, *CATEGORIES]
    path = write(root / "train" / "_annotations.coco.json", tables)
    assert CocoDataset(config(root)).category_ids == {"dog": 7, "cat": 3, "red fox": 90}
    tables["annotations"][0]["category_id"] = 0
    write(path, tables)
    with pytest.raises(SampleError, match="categories 0 and 7 are both named 'dog'"):
        CocoDataset(config(root))


@pytest.mark.parametrize(
    ("annotations", "images", "settings"),
    [
        ("annotations/instances_train2017.json", "train2017", {}),
        ("annotations/instances_train.json", "images/train", {}),
        ("train/_annotations.coco.json", "train", {}),
        ("train.json", "images", {}),
        ("annotations/train.json", "train/images", {}),
        ("labels/all.json", "pictures/all", {"train_annotations": "labels/all.json", "train_images": "pictures/all"}),
        ("labels/all.json", "labels", {"train_annotations": "labels/all.json"}),
        ("fold3/_annotations.coco.json", "fold3", {"train_split": "fold3"}),
    ],
)
def test_layouts(tmp_path: Path, annotations: str, images: str, settings: dict[str, str]) -> None:
    write(tmp_path / annotations, content(), tmp_path / images)
    dataset = CocoDataset(CocoConfig(root=str(tmp_path), **settings), training=True)
    assert dataset.folder.resolve() == (tmp_path / images).resolve()
    assert dataset[0].images[0][0, 0, 0] == 50


@pytest.mark.parametrize("name", ["val", "val2017", "valid", "validation"])
def test_the_validation_split_goes_by_its_usual_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "_annotations.coco.json", content())
    assert len(CocoDataset(CocoConfig(root=str(tmp_path)))) == 3


def test_a_split_that_is_not_there(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"split 'val' in .*data\.val_split.*data\.val_annotations.*valid/"):
        CocoDataset(CocoConfig(root=str(root)))
    with pytest.raises(FileNotFoundError, match=r"annotation file .*none\.json does not exist"):
        CocoDataset(config(root, val_annotations="none.json"))


def test_an_evaluation_of_some_images(root: Path) -> None:
    assert CocoDataset(config(root, val_limit=2)).tokens == ("50", "99")
    assert CocoDataset(config(root, val_limit=10)).tokens == ("50", "20", "99")
    assert len(CocoDataset(config(root, val_limit=1), training=True)) == 3


def test_a_test_split_has_no_targets(root: Path) -> None:
    tables = content()
    del tables["annotations"]
    write(root / "annotations" / "image_info_test2017.json", tables, root / "test2017")
    dataset = CocoDataset(config(root, val_split="test"))
    assert dataset[0].targets is None
    with pytest.raises(ValueError, match="no annotations to train on"):
        CocoDataset(config(root, train_split="test"), training=True)


BROKEN = {
    "bbox nan": (annotation(77, 50, 3, [1, 2, float("nan"), 4]), "annotation 77: its bbox must be four finite numbers"),
    "bbox short": (annotation(77, 50, 3, [1, 2, 3]), "annotation 77: its bbox must be four finite numbers"),
    "bbox text": (annotation(77, 50, 3, ["x", 2, 3, 4]), "annotation 77: its bbox must be four finite numbers"),
    "negative size": (annotation(77, 50, 3, [1, 2, -3, 4]), "annotation 77: its bbox has a negative size"),
    "category": (annotation(77, 50, 4, [1, 2, 3, 4]), "annotation 77: its category_id 4 is not in 'categories'"),
    "image": (annotation(77, 51, 3, [1, 2, 3, 4]), "annotation 77: its image_id 51 is not in 'images'"),
    "area": (annotation(77, 50, 3, [1, 2, 3, 4], area=-1), "annotation 77: its area must be"),
    "no bbox": ({"id": 77, "image_id": 50, "category_id": 3}, "annotation 77: has no 'bbox'"),
    "no record": ("text", "annotation 6: must be a record"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_annotations_are_named_or_skipped(root: Path, case: str) -> None:
    record, message = BROKEN[case]
    tables = content()
    tables["annotations"].append(record)
    path = write(root / "train" / "_annotations.coco.json", tables)
    with pytest.raises(SampleError, match=f"(?s){re.escape(str(path))} has 1 broken record.*{re.escape(message)}"):
        CocoDataset(config(root))
    dataset = CocoDataset(config(root, on_error="skip"))
    assert len(dataset.index.faults) == 1
    assert [len(dataset[i].targets) for i in range(3)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": 8, "file_name": "../a.png"}, "image 8: its file_name '../a.png' leads out of the folder"),
        ({"id": 8, "file_name": "x/../../a.png"}, "image 8: its file_name 'x/../../a.png' leads out"),
        ({"id": 8, "file_name": "/etc/passwd"}, "image 8: its file_name '/etc/passwd' leads out"),
        ({"id": 8, "file_name": "..\\a.png"}, "image 8: its file_name '..\\\\a.png' leads out"),
        ({"id": 8, "file_name": "C:/a.png"}, "image 8: its file_name 'C:/a.png' leads out"),
        ({"id": 8, "file_name": None}, "image 8: needs a 'file_name'"),
        ({"id": 8, "file_name": "a\0.png"}, "image 8: needs a 'file_name'"),
        ({"id": 8, "file_name": "a.png", "height": "30"}, "image 8: height and width must be positive integers"),
        ({"id": 50, "file_name": "b.png"}, "image 50: its id occurs more than once"),
        ({"id": "z", "file_name": "b.png"}, "image number 3 of the file: needs an integer 'id'"),
    ],
)
def test_broken_image_records_are_named_or_skipped(root: Path, record: dict[str, Any], message: str) -> None:
    tables = content()
    tables["images"].append(record)
    tables["annotations"].append(annotation(9, 8, 3, [1, 2, 3, 4]) if record["id"] == 8 else tables["annotations"][0])
    path = root / "train" / "_annotations.coco.json"
    path.write_text(json.dumps(tables))
    with pytest.raises(SampleError) as error:
        CocoDataset(config(root))
    assert message in str(error.value)
    dataset = CocoDataset(config(root, on_error="skip"))
    assert dataset.tokens == ("50", "20", "99")
    assert len(dataset.index.faults) == 1  # what belongs to a broken image goes without a word of its own


def test_files_that_are_no_annotations(root: Path) -> None:
    path = root / "train" / "_annotations.coco.json"
    text = path.read_text()
    for broken, message in (
        (text[: len(text) // 2], "no JSON file, or is damaged or cut off"),
        ("[1, 2]", "must be a JSON object, not list"),
        ('{"images": []}', "'categories' must be a list"),
        ('{"images": [], "categories": []}', "lists no categories"),
        ('{"images": [], "categories": [{"id": "1", "name": "a"}]}', "every category needs an integer 'id'"),
        ('{"images": 3, "categories": []}', "'images' must be a list"),
    ):
        path.write_text(broken)
        with pytest.raises(SampleError, match=re.escape(message)) as error:
            CocoDataset(config(root))
        assert str(path) in str(error.value)
    path.write_text('{"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": []}')
    with pytest.raises(ValueError, match="has no image"):
        CocoDataset(config(root))


def test_outlines_are_passed_over_whatever_surrounds_them(root: Path) -> None:
    path = root / "train" / "_annotations.coco.json"
    tables = content()
    tables["images"][0]["note"] = 'a "segmentation": [[1, 2]] in a text'
    tables["annotations"][1]['odd"segmentation'] = [1, 2]
    tables["annotations"][3]["segmentation"] = []
    path.write_text(json.dumps(tables, indent=3))
    assert CocoDataset(config(root))[0].targets.boxes.tolist() == [[1, 2, 4, 6], [10.5, 2.25, 18.5, 11.25]]


def test_missing_and_damaged_images_stop_or_are_skipped(root: Path) -> None:
    folder = root / "train"
    (folder / "a.png").unlink()
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:60])
    dataset = CocoDataset(config(root))
    with pytest.raises(SampleError, match=r"image .*a\.png does not exist"):
        dataset[0]
    with pytest.raises(SampleError, match=r"image .*c\.png cannot be decoded"):
        dataset[2]
    loader = build_loader(CocoDataset(config(root, on_error="skip", short_side=30)), PixelConfig(), batch_size=1)
    assert [batch.tokens for batch, _ in loader] == [["20"]]
    assert sorted(loader.skipped) == [0, 2]


def test_an_image_of_another_size_than_annotated(root: Path) -> None:
    Image.new("RGB", (41, 30)).save(root / "train" / "b.png")
    with pytest.raises(SampleError, match=r"b\.png is 41 x 30 pixels, but .*coco\.json says 40 x 30 \(image id 20\)"):
        CocoDataset(config(root))[1]


def test_turned_images_follow_the_size_that_was_annotated(root: Path) -> None:
    """Stored lying on its side: annotated as viewers show it, or as it is stored."""
    stored = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned a quarter clockwise
    Image.fromarray(stored).save(root / "train" / "a.png", exif=exif)
    np.testing.assert_array_equal(CocoDataset(config(root))[0].images[0], np.rot90(stored, -1))
    Image.fromarray(stored.transpose(1, 0, 2)).save(root / "train" / "a.png", exif=exif)
    np.testing.assert_array_equal(CocoDataset(config(root))[0].images[0], stored.transpose(1, 0, 2))


def test_the_index_is_kept_and_follows_the_file(root: Path) -> None:
    path = root / "train" / "_annotations.coco.json"
    built = open_index(path)
    assert built.path.parent == path.parent
    before = built.path.stat().st_mtime_ns
    assert open_index(path).path.stat().st_mtime_ns == before
    tables = content()
    del tables["annotations"][1]
    path.write_text(json.dumps(tables))
    os.utime(path, ns=(before + 10**9, before + 10**9))
    assert len(open_index(path).box) == len(built.box) - 1


def test_a_data_set_travels_to_other_processes(root: Path) -> None:
    dataset = CocoDataset(config(root, short_side=30, long_side=60))
    size = len(pickle.dumps(dataset))
    assert size < 10_000
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0].targets.boxes, dataset[0].targets.boxes)
    loader = build_loader(dataset, PixelConfig(size_divisor=8), batch_size=2, workers=2)
    assert [batch.tokens for batch, _ in loader] == [["50", "20"], ["99"]]


def test_training_batches_are_padded_and_masked(root: Path) -> None:
    tables = content()
    tables["images"][1] |= {"width": 20, "height": 40}
    write(root / "train" / "_annotations.coco.json", tables)
    dataset = CocoDataset(config(root, short_side=30, long_side=60))
    (batch, targets), _ = build_loader(dataset, PixelConfig(size_divisor=32), batch_size=2)
    assert batch.images.shape == (2, 1, 3, 64, 64)
    assert batch.sizes[:, 0].tolist() == [[30, 40], [60, 30]]
    assert batch.original_sizes[:, 0].tolist() == [[30, 40], [40, 20]]
    assert (~batch.mask).sum((1, 2, 3)).tolist() == [1200, 1800]
    np.testing.assert_allclose(targets[0].boxes[0], [2.5 / 40, 4 / 30, 3 / 40, 4 / 30], rtol=1e-6)
    assert len(targets[1]) == 0


def test_class_names_come_from_the_settings_or_the_training_split(root: Path) -> None:
    assert class_names(config(root)) == ("cat", "dog", "red fox")
    assert class_names(CocoConfig(root="nowhere", classes=("a", "b"))) == ("a", "b")


@pytest.mark.parametrize(("split", "training"), [("train2017", True), ("val2017", False)])
def test_real_images(shared: Path, tmp_path: Path, split: str, training: bool) -> None:
    folder = shared / "data" / "coco-tiny"
    expected = json.loads((folder / "expected.json").read_text())[split]
    truth = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    dataset = build_dataset(CocoConfig(root=str(folder), index_dir=str(tmp_path)), training)
    assert len(dataset) == expected["images"]
    assert len(dataset.class_names) == expected["categories"]
    assert int(dataset.index.box_crowd.sum()) == expected["crowd"]
    names = {record["id"]: record["name"] for record in truth["categories"]}
    found = 0
    for sample in map(dataset.__getitem__, range(len(dataset))):
        records = [a for a in truth["annotations"] if str(a["image_id"]) == sample.token and not a["iscrowd"]]
        boxes = np.array([a["bbox"] for a in records]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(sample.targets.boxes, boxes, atol=0.02)  # some reach a hair beyond the border
        assert [dataset.class_names[k] for k in sample.targets.labels] == [names[a["category_id"]] for a in records]
        found += len(records)
    assert found == expected["annotations"] - expected["crowd"]


def test_a_folder_that_is_no_coco_data_set_is_told(synthetic_root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/nowhere: no such folder, where data\.root should be"):
        CocoDataset(CocoConfig(root=str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match=r"holds a nuScenes data set, which configurations with data\.name nu"):
        CocoDataset(CocoConfig(root=str(synthetic_root)))
