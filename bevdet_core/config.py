"""Every setting of the library, as frozen dataclasses with the defaults of the published recipes.

A YAML file names what it changes; dotted overrides on the command line change more. `load_config` checks all names
and types, and tells the nearest valid name of a typo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
class PixelConfig:
    """How pixel values enter the network.

    Args:
        mean: subtracted from each channel, in 0..255, in the order the network sees.
        std: divides each channel.
        bgr: feed blue, green, red ("caffe" weights) instead of red, green, blue.
        size_divisor: pad height and width to multiples of this.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    bgr: bool = False
    size_divisor: int = 32


@dataclass(frozen=True)
class BackboneConfig:
    """A ResNet.

    Args:
        depth: number of layers.
        width: channels of the stem; 64 is the published network.
        style: where the stride of a bottleneck sits: "pytorch" in its 3x3, "caffe" in its first 1x1 convolution.
        norm: "frozen" keeps the statistics and the affine terms of the weights it starts from, "batch" learns them.
        frozen_stages: the stem and this many stages get no gradient; 0 trains everything.
        out_stages: the stages (1 to 4, strides 4 to 32) whose feature maps go on to the neck.
        dilation: dilate the last stage instead of striding it (DC5).
        weights: file with torchvision-named weights to start from (.safetensors or .pth); none: random.
    """

    depth: Literal[18, 34, 50, 101] = 50
    width: int = 64
    style: Literal["pytorch", "caffe"] = "pytorch"
    norm: Literal["frozen", "batch"] = "frozen"
    frozen_stages: int = 1
    out_stages: tuple[int, ...] = (2, 3, 4)
    dilation: bool = False
    weights: str | None = None


@dataclass(frozen=True)
class Detr3dLossConfig:
    """Weights of the matching costs and of the loss terms of DETR3D.

    Args:
        class_cost: focal class cost of the matcher.
        box_cost: L1 cost of the matcher, on the first eight code numbers.
        class_weight: focal loss.
        box_weight: L1 loss.
        code_weights: weight of each of the ten code numbers in the L1 loss.
    """

    class_cost: float = 2.0
    box_cost: float = 0.25
    class_weight: float = 2.0
    box_weight: float = 0.25
    code_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)


@dataclass(frozen=True)
class Detr3dConfig:
    """DETR3D (Wang et al., CoRL 2021).

    Args:
        name: the detector.
        pixels: normalisation and padding of the images.
        backbone: the image network.
        num_levels: feature levels of the FPN, from the first of the backbone's out_stages on.
        embed_dim: width of queries and feature maps.
        num_queries: objects that a frame can have.
        num_layers: decoder layers.
        num_heads: heads of the self-attention.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate in the decoder, while training.
        pc_range: (x0, y0, z0, x1, y1, z1) in metres, lidar frame, that reference points cover.
        post_center_range: detections with a centre outside are dropped.
        max_detections: the best (query, class) pairs kept per frame.
        score_threshold: detections below are dropped.
        loss: matching costs and loss weights.
    """

    name: Literal["detr3d"] = "detr3d"
    pixels: PixelConfig = field(default_factory=PixelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_levels: int = 4
    embed_dim: int = 256
    num_queries: int = 900
    num_layers: int = 6
    num_heads: int = 8
    ffn_dim: int = 512
    dropout: float = 0.1
    pc_range: tuple[float, ...] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    post_center_range: tuple[float, ...] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    max_detections: int = 300
    score_threshold: float = 0.0
    loss: Detr3dLossConfig = field(default_factory=Detr3dLossConfig)


@dataclass(frozen=True)
class RigAugmentConfig:
    """Training-time changes of a rig frame; those of an image move its calibration, those of the scene its boxes.

    Args:
        resize: range of the factor on top of the input size.
        crop: crop the resized image back to the input size at a random (True) or at the central-bottom (False) place.
        flip: probability of mirroring each image left to right.
        photometric: probability of changing brightness, contrast, saturation, hue.
        grid_mask: probability of blanking a grid of squares.
        rotation: the scene turns about z by up to this many radians.
        scale: range of the factor on the scene's size.
    """

    resize: tuple[float, float] = (1.0, 1.0)
    crop: bool = False
    flip: float = 0.0
    photometric: float = 0.5
    grid_mask: float = 0.7
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
        cbgs: resample training frames so that rare classes come more often (CBGS, Zhu et al. 2019).
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
    cbgs: bool = False
    on_error: Literal["raise", "skip"] = "raise"
    index_dir: str | None = None
