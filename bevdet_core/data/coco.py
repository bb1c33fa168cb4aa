"""COCO-format data sets: plain images with boxes."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ..config import CocoConfig
from ..structures import Sample, Targets
from .coco_index import CocoIndex, open_index
from .file_names import data_root
from .image_transforms import clipped, image_transform
from .images import SampleError, read_image
from .index_file import SKIPPING, describe_faults

# What a split may be called, besides what the settings call it.
SPLIT_NAMES = {
    "train": ("train", "train2017"),
    "val": ("val", "val2017", "valid", "validation"),
    "test": ("test", "test2017", "test-dev2017"),
}
# Where annotations and images of a split lie in the usual layouts: the official one first, then those of exporters.
ANNOTATIONS = (
    "annotations/instances_{}.json",
    "{}/_annotations.coco.json",
    "annotations/{}.json",
    "{}/annotations.json",
    "{}.json",
    "annotations/image_info_{}.json",
)
IMAGES = ("{}", "images/{}", "{}/images", "images", ".")


class CocoDataset(Dataset[Sample]):
    """The images of a split with the boxes of their objects, (x0, y0, x1, y1) in pixels, as they lie on disk.

    Boxes around crowds are left out, and boxes are cut off at the border of their image; what has no area then is left
    out too. (The metric has its own view of the annotations: crowds excuse detections.) Images are upright as viewers
    show them, unless the annotation file gives the size of the image as it is stored.

    Args:
        config: what to read.
        training: the training split, augmented in `transform`; or the validation split.

    Attributes:
        index: the annotation file.
        split: its name.
        folder: of the images.
        class_names: the classes, in the order of the labels.
        category_ids: the id in the annotation file of each class that it has, by name.
        transform: prepares a sample for the network; `loader.build_loader` calls it.
        on_error: `config.on_error`.
        rows: of all images of the split in the index.
        tokens: the image ids as text, in the same order.
        scenes: None: images do not follow each other.

    Raises:
        FileNotFoundError: the root has no such split.
        ValueError: an unknown class, or no image; the message has the nearest class names that exist.
        SampleError: the annotation file is damaged, or has broken records and `config.on_error` is "raise".
    """

    scenes = None

    def __init__(self, config: CocoConfig, training: bool = False) -> None:
        self.config = config
        self.on_error = config.on_error
        self.split = config.train_split if training else config.val_split
        self.index, self.folder = open_split(config, training)
        if self.index.faults and config.on_error == "raise":
            raise SampleError(describe_faults(self.index.annotations, self.index.faults) + SKIPPING)
        if training and not self.index.annotated:
            raise ValueError(f"{self.index.annotations} has no annotations to train on")
        self.category_ids = _category_ids(self.index)
        self.class_names = config.classes or tuple(self.category_ids)
        _check_classes(self.class_names, self.index, training)
        labels = {name: label for label, name in enumerate(self.class_names)}
        self._label_of = np.array([labels.get(name, -1) for _, name in self.index.categories], np.int64)
        self.rows = np.arange(len(self.index))
        if training and not config.keep_empty:
            self.rows = self._rows_with_objects()
        if not training and config.val_limit is not None and config.val_limit < len(self.rows):
            self.rows = self.rows[np.linspace(0, len(self.rows) - 1, config.val_limit).round().astype(int)]
        if not len(self.rows):
            raise ValueError(f"{self.index.annotations} has no image to {'train' if training else 'evaluate'} on")
        self.tokens = tuple(map(str, self.index.image_id[self.rows].tolist()))
        self.transform = image_transform(config, training)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Sample:
        """The sample as it lies on disk; its targets are None where the file has no annotations.

        Raises:
            SampleError: the image is missing, damaged, or of another size than the annotation file says.
        """
        row = int(self.rows[position])
        image = self._read(row)
        targets = self._targets(row, image) if self.index.annotated else None
        return Sample([image], targets=targets, token=self.tokens[position])

    def _read(self, row: int) -> np.ndarray:
        path = self.folder / self.index.file_name(row)
        annotated = tuple(self.index.image_size[row].tolist())
        image = read_image(path, upright=True)
        if image.shape[:2] == annotated or 0 in annotated:
            return image
        image = read_image(path)
        if image.shape[:2] != annotated:
            height, width = annotated
            raise SampleError(
                f"image {path} is {image.shape[1]} x {image.shape[0]} pixels, but {self.index.annotations} says "
                f"{width} x {height} (image id {self.index.image_id[row]})"
            )
        return image

    def _targets(self, row: int, image: np.ndarray) -> Targets:
        found = self.index.box_rows(row)
        labels = self._label_of[self.index.box_category[found]]
        kept = (labels >= 0) & ~self.index.box_crowd[found]
        boxes = self.index.box[found][kept]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).astype(np.float32)
        targets = Targets(torch.from_numpy(labels[kept]), torch.from_numpy(corners))
        return clipped(targets, (image.shape[0], image.shape[1]))

    def _rows_with_objects(self) -> np.ndarray:
        index = self.index
        usable = (self._label_of[index.box_category] >= 0) & ~index.box_crowd & (index.box[:, 2:] > 0).all(1)
        return np.flatnonzero(np.diff(np.concatenate([[0], np.cumsum(usable)])[index.box_start]))


def open_split(config: CocoConfig, training: bool) -> tuple[CocoIndex, Path]:
    """The annotations of a split, and the folder of its images.

    Raises:
        FileNotFoundError: there is no such folder, or no annotation file in the places that the message names.
        SampleError: the annotation file is damaged.
    """
    root = data_root(config.root)
    split, kind = (config.train_split, "train") if training else (config.val_split, "val")
    annotations, images = getattr(config, f"{kind}_annotations"), getattr(config, f"{kind}_images")
    names = SPLIT_NAMES.get(split, (split,))
    if annotations is None:
        places = [root / pattern.format(name) for name in names for pattern in ANNOTATIONS]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            if any(root.glob("v1.0-*/sample.json")):
                raise FileNotFoundError(
                    f"{root.absolute()} holds a nuScenes data set, which configurations with data.name nuscenes read"
                )
            tried = ", ".join(str(place.relative_to(root)) for place in places)
            raise FileNotFoundError(
                f"no annotations of split {split!r} in {root.absolute()}: set data.{kind}_split to the name of a split "
                f"or data.{kind}_annotations to a JSON file; tried {tried}"
            )
    else:
        path = root / annotations
    index = open_index(path, config.index_dir)
    if images is not None:
        return index, root / images
    folders = [path.parent, *(root / pattern.format(name) for name in names for pattern in IMAGES)]
    folders = [folder for folder in folders if folder.is_dir()]
    holds_first = [folder for folder in folders if len(index) and (folder / index.file_name(0)).is_file()]
    return index, (holds_first or folders[1:] or folders)[0]


def class_names(config: CocoConfig) -> tuple[str, ...]:
    """The classes of a data set: as the settings name them, or those of the training split.

    Raises:
        FileNotFoundError: the settings name none and there is no training split.
    """
    return config.classes or tuple(_category_ids(open_split(config, training=True)[0]))


def _category_ids(index: CocoIndex) -> dict[str, int]:
    """Class name -> category id, by ascending id; of two categories with one name the one that is used."""
    used = set(np.unique(index.box_category).tolist())
    chosen: dict[str, int] = {}
    for category, (_, name) in enumerate(index.categories):
        other = chosen.setdefault(name, category)
        if other in used and category in used and other != category:
            ids = f"{index.categories[other][0]} and {index.categories[category][0]}"
            raise SampleError(f"{index.annotations}: categories {ids} are both named {name!r}, and both have objects")
        if category in used:
            chosen[name] = category
    return {name: index.categories[category][0] for name, category in chosen.items()}


def _check_classes(names: tuple[str, ...], index: CocoIndex, training: bool) -> None:
    """Training needs every class that the settings name; an evaluation some of them."""
    present = [name for _, name in index.categories]
    unknown = [name for name in names if name not in present]
    if unknown and (training or len(unknown) == len(names)):
        nearest = difflib.get_close_matches(unknown[0], present, n=3, cutoff=0.4) or present[:10]
        raise ValueError(f"{index.annotations} has no category {unknown[0]!r}; nearest: {', '.join(nearest)}")
