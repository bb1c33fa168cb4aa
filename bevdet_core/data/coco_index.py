"""A compact index of a COCO annotation file: built once, mapped into memory ever after.

The file of train2017 is half a gigabyte, most of it outlines that detection of boxes does not need. The index holds the
images and boxes as plain columns, sorted by image. A change of the file (size or modification time) makes it stale.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import LARGE, DocumentError, is_integer, is_text, parse_json, read_bytes, shown
from .file_names import leaves_folder
from .images import SampleError
from .index_file import file_stamp, index_path, open_fresh, read_index, text_column, text_of

LARGEST = 1e9  # pixels; beyond it there is no picture, and products may overflow
FORMAT = 1  # raise it whenever the content of an index changes

# Outlines as lists of coordinates. Within JSON these bytes, quotes included, cannot stand anywhere but at a key.
_OUTLINE = re.compile(rb'"segmentation"\s*:\s*\[[\[\]\d.,eE+\-\s]*\]')


class CocoIndex:
    """The images and boxes of one annotation file.

    An image is named by its row, 0 to `len(index) - 1`, in the order of the file.

    Attributes:
        path: the index file.
        annotations: the annotation file, for messages.
        categories: (id, name) of each, by ascending id; `box_category` points here.
        annotated: False for a file without annotations, such as that of a test split.
        faults: what is wrong with the records that were left out, one line each.
        image_id: [I] int64.
        image_size: [I, 2] int32, (height, width) as the file tells it, 0 where it does not.
        box_start: [I + 1] int64: the boxes of image i are box_start[i] to box_start[i + 1] - 1.
        box: [A, 4] float64, (x, y, width, height) in pixels.
        box_area: [A] float64, pixels; of the object's outline where it has one.
        box_category: [A] int32.
        box_crowd: [A] bool, whether the box is around a crowd of objects.
    """

    image_id: np.ndarray
    image_size: np.ndarray
    box_start: np.ndarray
    box: np.ndarray
    box_area: np.ndarray
    box_category: np.ndarray
    box_crowd: np.ndarray

    def __init__(self, path: Path) -> None:
        """Map an index file that `open_index` has built."""
        self.path = path
        columns, info = read_index(path)
        self._file_name = text_of(columns.pop("file_name"))
        for name, column in columns.items():
            setattr(self, name, column)
        self.annotations: str = info["annotations"]
        self.categories: list[tuple[int, str]] = [(number, name) for number, name in info["categories"]]
        self.annotated: bool = info["annotated"]
        self.faults: list[str] = info["faults"]
        self.stamp: str = info["stamp"]

    def __len__(self) -> int:
        return len(self.image_id)

    def __reduce__(self):
        return CocoIndex, (self.path,)

    @cached_property
    def rows(self) -> Mapping[int, int]:
        """Image id -> row."""
        return {number: row for row, number in enumerate(self.image_id.tolist())}

    def file_name(self, row: int) -> str:
        """The file of an image, relative to the folder of the images."""
        name = self._file_name[row].decode()
        if leaves_folder(name):
            raise SampleError(f"{self.path}: the file name {name!r} leads out of the folder of the images")
        return name

    def box_rows(self, row: int) -> slice:
        """Where the boxes of an image lie in the box arrays."""
        return slice(int(self.box_start[row]), int(self.box_start[row + 1]))


def open_index(annotations: str | Path, index_dir: str | Path | None = None) -> CocoIndex:
    """Open the index of an annotation file; build it first where there is none or the file has changed.

    Args:
        annotations: the JSON file.
        index_dir: where the index is kept; default: beside the file, or the user's cache folder if that is read-only.

    Raises:
        FileNotFoundError: there is no such file.
        SampleError: it is damaged, or no COCO file. Single broken records are left out: see `CocoIndex.faults`.
    """
    path = Path(annotations)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    stamp = json.dumps([FORMAT, str(path.absolute()), *file_stamp(path)])
    return open_fresh(index_path(path.parent, path.stem, index_dir), stamp, CocoIndex, lambda: read_annotations(path))


def read_annotations(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The columns and the JSON of an index, from the annotation file.

    Raises:
        SampleError: see `open_index`.
    """
    with _no_garbage_collection():
        return _read_annotations(path)


def _read_annotations(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    content = _read_json(path)
    tables = {}
    for name in ("images", "categories", "annotations"):
        tables[name] = content.get(name, [])
        if not isinstance(tables[name], list) or (name not in content and name != "annotations"):
            raise SampleError(f"{path} is no COCO annotation file: {name!r} must be a list of records")
    faults = _Faults()
    categories = _read_categories(tables["categories"], path)
    images = _read_images(tables["images"], faults)
    boxes = _read_boxes(tables["annotations"], images, categories, faults)
    order = np.argsort(boxes["box_row"], kind="stable")
    starts = np.searchsorted(boxes.pop("box_row")[order], np.arange(len(images.rows) + 1))
    columns: dict[str, np.ndarray] = {
        "image_id": np.array(list(images.rows), np.int64),
        "image_size": np.array(images.sizes, np.int32).reshape(-1, 2),
        "file_name": text_column(images.files),
        "box_start": starts.astype(np.int64),
        **{name: column[order] for name, column in boxes.items()},
    }
    info: dict[str, Any] = {
        "annotations": str(path),
        "categories": categories,
        "annotated": "annotations" in content,
        "faults": faults,
    }
    return columns, info


class _Faults(list[str]):
    def note(self, kind: str, number: object, problem: str) -> None:
        self.append(f"{kind} {number}: {problem}")


@dataclass
class _Images:
    rows: dict[int, int] = field(default_factory=dict)  # image id -> row
    files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    broken: set[Any] = field(default_factory=set)  # ids of images that were left out


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # It would look through the millions of new objects again and again, which takes more time than making them.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(_OUTLINE.sub(b'"segmentation":0', read_bytes(path, LARGE)), max_depth=None)
    except DocumentError as error:
        raise SampleError(f"{path} is no JSON file, or is damaged or cut off: {error}") from None
    if not isinstance(content, dict):
        raise SampleError(f"{path} is no COCO annotation file: it must be a JSON object, not {type(content).__name__}")
    return content


def _read_categories(records: list[Any], path: Path) -> list[tuple[int, str]]:
    categories: dict[int, str] = {}
    for record in records:
        number, name = (record.get("id"), record.get("name")) if isinstance(record, dict) else (None, None)
        if not is_integer(number) or not is_text(name) or number in categories:
            problem = f"every category needs an integer 'id' of its own and a 'name', got {shown(record)}"
            raise SampleError(f"{path}: {problem}")
        categories[number] = name
    if not categories:
        raise SampleError(f"{path} lists no categories")
    return sorted(categories.items())


def _read_images(records: list[Any], faults: _Faults) -> _Images:
    images = _Images()
    for place, record in enumerate(records):
        number = record.get("id") if isinstance(record, dict) else None
        if not is_integer(number):
            faults.note("image", f"number {place} of the file", f"needs an integer 'id', got {shown(number)}")
            continue
        file, height, width = record.get("file_name"), record.get("height") or 0, record.get("width") or 0
        problem = None
        if number in images.rows:
            problem = "its id occurs more than once"
        elif not is_text(file) or not 0 < len(file) <= 1024:
            problem = f"needs a 'file_name', got {shown(file)}"
        elif leaves_folder(file):
            problem = f"its file_name {file!r} leads out of the folder of the images"
        elif not (_is_size(height) and _is_size(width)):
            problem = f"height and width must be positive integers, got {shown(height)} and {shown(width)}"
        if problem:
            faults.note("image", number, problem)
            images.broken.add(number)
            continue
        images.rows[number] = len(images.rows)
        images.files.append(file)
        images.sizes.append((height, width))
    return images


def _read_boxes(
    records: list[Any], images: _Images, categories: list[tuple[int, str]], faults: _Faults
) -> dict[str, np.ndarray]:
    labels = {number: label for label, (number, _) in enumerate(categories)}
    rows, boxes, areas, kinds, crowds = [], [], [], [], []
    for place, record in enumerate(records):
        try:
            row, label, box = images.rows.get(record["image_id"]), labels.get(record["category_id"]), record["bbox"]
            x, y, width, height = map(float, box if isinstance(box, list) else ())
            area = width * height if record.get("area") is None else float(record["area"])
        except (KeyError, TypeError, ValueError, OverflowError):
            row = None
        if (
            row is None
            or label is None
            or not (width >= 0 and height >= 0 and area >= 0 and max(abs(x), abs(y), width, height, area) < LARGEST)
        ):
            number = record.get("id", f"number {place} of the file") if isinstance(record, dict) else place
            if problem := _box_problem(record, images, labels):
                faults.note("annotation", number, problem)
            continue
        rows.append(row)
        boxes.append((x, y, width, height))
        areas.append(area)
        kinds.append(label)
        crowds.append(bool(record.get("iscrowd", 0)))
    return {
        "box_row": np.array(rows, np.int64),
        "box": np.array(boxes, np.float64).reshape(-1, 4),
        "box_area": np.array(areas, np.float64),
        "box_category": np.array(kinds, np.int32),
        "box_crowd": np.array(crowds, bool),
    }


def _box_problem(record: Any, images: _Images, labels: Mapping[int, int]) -> str | None:
    """What is wrong with a broken annotation; None where it goes with an image that is broken itself."""
    if not isinstance(record, dict):
        return f"must be a record, got {shown(record)}"
    for name in ("image_id", "category_id", "bbox"):
        if name not in record:
            return f"has no {name!r}"
    image, category, box = record["image_id"], record["category_id"], record["bbox"]
    if not is_integer(image) or image not in images.rows:
        return (
            None if is_integer(image) and image in images.broken else f"its image_id {shown(image)} is not in 'images'"
        )
    if not is_integer(category) or category not in labels:
        return f"its category_id {shown(category)} is not in 'categories'"
    try:
        numbers = [float(value) for value in box] if isinstance(box, list) else []
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != 4 or not all(abs(number) < LARGEST for number in numbers):
        return f"its bbox must be four finite numbers (x, y, width, height), got {shown(box)}"
    if min(numbers[2:]) < 0:
        return f"its bbox has a negative size: {shown(box)}"
    return f"its area must be a finite number that is not negative, got {shown(record.get('area'))}"


def _is_size(value: object) -> bool:
    return is_integer(value) and 0 <= value < 2**31
