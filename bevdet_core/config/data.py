"""What the detectors see: data sets and their augmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .errors import ConfigError

NUSCENES_CLASSES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)
NUSCENES_CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)


@dataclass(frozen=True)
class RigAugmentConfig:
    """Training-time changes of a rig frame; those of an image move its calibration, those of the scene its boxes.

    Args:
        resize: range of the factor on top of the input size.
        crop: crop the resized image back to the input size, always at the bottom: at a random place along x (True), or
            in the middle (False).
        flip: probability of mirroring each image left to right.
        same: draw factor, place and mirroring once for all cameras of a frame (as PETR does), not for each by itself.
        photometric: probability of changing brightness, contrast, saturation, hue.
        grid_mask: probability of blanking a grid of squares.
        mirror: probability of mirroring the whole scene left to right: images, cameras and objects.
        rotation: the scene turns about z by up to this many radians.
        scale: range of the factor on the scene's size.
    """

    resize: tuple[float, float] = (1.0, 1.0)
    crop: bool = False
    flip: float = 0.0
    same: bool = False
    photometric: float = 0.5
    grid_mask: float = 0.7
    mirror: float = 0.0
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class NuScenesConfig:
    """A data set in the nuScenes layout.

    Args:
        name: the format.
        root: the folder that holds `samples/` and the tables' folder.
        version: the tables' folder: v1.0-mini, v1.0-trainval, v1.0-test.
        train_split: a split by name (train, mini_train, ...), or scene names or sample tokens separated by commas.
        val_split: likewise.
        classes: detection classes in the order of the labels.
        cameras: channels in the order that the network sees.
        input_size: (height, width) to which images are resized; the aspect ratio is kept, what is too high is cut
            off at the top. None: as they are.
        augment: training-time augmentation.
        object_range: (x0, y0, x1, y1) in metres, lidar frame: training leaves out the objects whose centre lies beyond,
            which the reference points of a detector do not reach. None keeps all.
        cbgs: resample training frames so that rare classes come more often (CBGS, Zhu et al. 2019).
        can_bus: folder of nuScenes' CAN bus expansion, relative to the root, from which BEVFormer takes acceleration,
            rate of turn and velocity as its release does. None: they follow from the poses.
        missing_images: a camera whose image is missing or damaged makes a broken sample ("error"), or is a camera that
            failed and that the detector does not look at ("hide").
        on_error: a broken sample stops the run ("raise") or is skipped, counted and reported ("skip").
        index_dir: where the compact index of the tables is kept; default: the root, or the user's cache folder where
            the root cannot be written.
    """

    name: Literal["nuscenes"] = "nuscenes"
    root: str = "data/nuscenes"
    version: str = "v1.0-trainval"
    train_split: str = "train"
    val_split: str = "val"
    classes: tuple[str, ...] = NUSCENES_CLASSES
    cameras: tuple[str, ...] = NUSCENES_CAMERAS
    input_size: tuple[int, int] | None = None
    augment: RigAugmentConfig = field(default_factory=RigAugmentConfig)
    object_range: tuple[float, float, float, float] | None = (-51.2, -51.2, 51.2, 51.2)
    cbgs: bool = False
    can_bus: str | None = None
    missing_images: Literal["error", "hide"] = "error"
    on_error: Literal["raise", "skip"] = "raise"
    index_dir: str | None = None


@dataclass(frozen=True)
class ImageAugmentConfig:
    """Training-time changes of a plain image, as published with DETR; boxes move along.

    Args:
        flip: probability of mirroring left to right.
        short_sides: one of these is drawn as the short side that the image is resized to, in pixels.
        crop: probability of cropping before that: resize the short side to one of `crop_short_sides`, cut out a random
            window with each side in `crop_size`.
        crop_short_sides: see `crop`.
        crop_size: (smallest, largest) side of the window, in pixels.
    """

    flip: float = 0.5
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    crop: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_size: tuple[int, int] = (384, 600)


@dataclass(frozen=True)
class CocoConfig:
    """A data set in the COCO format.

    With a folder of the usual layouts `root` alone is enough: `train2017/` and `annotations/instances_train2017.json`,
    or `train/_annotations.coco.json` beside its images. Otherwise name images and annotations of each split.

    Args:
        name: the format.
        root: the folder that all other names are relative to.
        train_split: name of the training split; "train" also means train2017.
        val_split: name of the validation split; "val" also means val2017, valid and validation.
        train_annotations: JSON file of the training split, where the name does not tell.
        train_images: folder of its images, likewise.
        val_annotations: JSON file of the validation split.
        val_images: folder of its images.
        classes: categories to detect by name, in the order of the labels; default: all of the training split, by id.
        keep_empty: train on images without boxes too.
        val_limit: evaluate on so many images, spread evenly over the split; default: all.
        short_side: to which images are resized when nothing is random, in pixels.
        long_side: an image that would come out longer is resized to this instead, in training too.
        augment: training-time augmentation.
        on_error: a broken image or annotation stops the run ("raise") or is skipped, counted and reported ("skip").
        index_dir: where the compact index of an annotation file is kept; default: beside it, or the user's cache folder
            where that cannot be written.
    """

    name: Literal["coco"] = "coco"
    root: str = "data/coco"
    train_split: str = "train"
    val_split: str = "val"
    train_annotations: str | None = None
    train_images: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None
    classes: tuple[str, ...] | None = None
    keep_empty: bool = True
    val_limit: int | None = None
    short_side: int = 800
    long_side: int = 1333
    augment: ImageAugmentConfig = field(default_factory=ImageAugmentConfig)
    on_error: Literal["raise", "skip"] = "raise"
    index_dir: str | None = None

    def __post_init__(self) -> None:
        if self.long_side < self.short_side:
            raise ConfigError(
                f"data.long_side must be at least data.short_side = {self.short_side}, got {self.long_side}"
            )


DataConfig = NuScenesConfig | CocoConfig
DATA = {"nuscenes": NuScenesConfig, "coco": CocoConfig}
