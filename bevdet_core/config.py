"""Every setting of the library, as frozen dataclasses with the defaults of the published recipes.

A YAML file names what it changes; dotted overrides on the command line change more. `load_config` checks all names
and types, and tells the nearest valid name of a typo.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

Range3d = tuple[float, float, float, float, float, float]  # x0, y0, z0, x1, y1, z1

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
        norm: batch norm that learns statistics, scale and shift ("batch"), keeps the statistics of the weights it
            starts from ("affine"), or keeps all of them ("frozen").
        frozen_stages: the stem and this many stages get no gradient; 0 trains everything.
        out_stages: the stages (1 to 4, strides 4 to 32) whose feature maps go on to the neck.
        dilation: dilate the last stage instead of striding it (DC5).
        deformable_stages: stages whose 3x3 convolutions are modulated deformable ones (DCNv2); depth 50 or 101.
        stages: (blocks, width) of each of the four stages, where they are not those of `depth` and `width`; `depth`
            then only tells the kind of block (two 3x3 convolutions below 50, bottlenecks from 50 on).
        weights: file with torchvision-named weights to start from (.safetensors or .pth); none: random.
    """

    depth: Literal[18, 34, 50, 101] = 50
    width: int = 64
    style: Literal["pytorch", "caffe"] = "pytorch"
    norm: Literal["frozen", "affine", "batch"] = "frozen"
    frozen_stages: int = 1
    out_stages: tuple[int, ...] = (2, 3, 4)
    dilation: bool = False
    deformable_stages: tuple[int, ...] = ()
    stages: tuple[tuple[int, int], ...] | None = None
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
        drop_unknown: an object with an unknown velocity takes no part in the L1 loss at all, as in the release; false
            leaves out its velocity alone.
    """

    class_cost: float = 2.0
    box_cost: float = 0.25
    class_weight: float = 2.0
    box_weight: float = 0.25
    code_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
    drop_unknown: bool = False


@dataclass(frozen=True)
class Detr3dConfig:
    """DETR3D (Wang et al., CoRL 2021).

    Args:
        name: the detector.
        pixels: normalisation and padding of the images.
        backbone: the image network.
        num_cameras: cameras of the rig.
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
        perspective: while training, a dense head on the finest feature level predicts boxes too (as in BEVFormer v2);
            what a training from random weights needs, and no part of the published network.
        loss: matching costs and loss weights.
    """

    name: Literal["detr3d"] = "detr3d"
    pixels: PixelConfig = field(default_factory=PixelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_cameras: int = 6
    num_levels: int = 4
    embed_dim: int = 256
    num_queries: int = 900
    num_layers: int = 6
    num_heads: int = 8
    ffn_dim: int = 512
    dropout: float = 0.1
    pc_range: Range3d = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    post_center_range: Range3d = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    max_detections: int = 300
    score_threshold: float = 0.0
    perspective: bool = False
    loss: Detr3dLossConfig = field(default_factory=Detr3dLossConfig)


@dataclass(frozen=True)
class DetrLossConfig:
    """Weights of the matching costs and of the loss terms of DETR.

    Args:
        class_cost: softmax class cost of the matcher.
        box_cost: L1 cost of the matcher.
        giou_cost: generalised IoU cost of the matcher.
        class_weight: cross-entropy.
        box_weight: L1 loss.
        giou_weight: generalised IoU loss.
        no_object: weight of the class "no object" in the cross-entropy.
    """

    class_cost: float = 1.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    no_object: float = 0.1


@dataclass(frozen=True)
class DetrConfig:
    """DETR (Carion et al., ECCV 2020).

    Args:
        name: the detector.
        pixels: normalisation and padding of the images.
        backbone: the image network; the last of its out_stages is used.
        embed_dim: width of queries and feature map.
        num_queries: objects that an image can have.
        encoder_layers: number of them.
        decoder_layers: number of them.
        num_heads: heads of all attention layers.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate in the transformer, while training.
        pre_norm: normalise what goes into each part of a layer, instead of the sum after it.
        position: sine waves, or learned for maps of up to 50 x 50 cells.
        loss: matching costs and loss weights.
    """

    name: Literal["detr"] = "detr"
    pixels: PixelConfig = field(default_factory=lambda: PixelConfig(size_divisor=1))
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(out_stages=(4,)))
    embed_dim: int = 256
    num_queries: int = 100
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_heads: int = 8
    ffn_dim: int = 2048
    dropout: float = 0.1
    pre_norm: bool = False
    position: Literal["sine", "learned"] = "sine"
    loss: DetrLossConfig = field(default_factory=DetrLossConfig)


@dataclass(frozen=True)
class DenoisingConfig:
    """Denoising queries (DN-DETR, Li et al., CVPR 2022): targets with noise, restored while training.

    Args:
        groups: how often each target is shown; 0 for none.
        label_noise: probability that a label is replaced by a random one.
        box_noise: centres move by up to this part of half the box's size, sizes change by up to this part.
    """

    groups: int = 0
    label_noise: float = 0.2
    box_noise: float = 0.4

    def __post_init__(self) -> None:
        if self.groups < 0:
            raise ConfigError(f"model.denoising.groups must not be negative, got {self.groups}")
        for name in ("label_noise", "box_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"model.denoising.{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class DeformableDetrLossConfig:
    """Weights of the matching costs and of the loss terms of Deformable DETR.

    Args:
        class_cost: focal class cost of the matcher.
        box_cost: L1 cost of the matcher.
        giou_cost: generalised IoU cost of the matcher.
        class_weight: focal loss.
        box_weight: L1 loss.
        giou_weight: generalised IoU loss.
        focal_alpha: weight of present classes in the focal loss, against 1 - alpha for absent ones.
    """

    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: float = 0.25


@dataclass(frozen=True)
class DeformableDetrConfig:
    """Deformable DETR (Zhu et al., ICLR 2021).

    Args:
        name: the detector.
        pixels: normalisation and padding of the images.
        backbone: the image network. Single-scale: out_stages [4]; single-scale DC5: dilation too.
        num_levels: feature levels; those beyond the backbone's are made from its coarsest. Single-scale: 1.
        embed_dim: width of queries and feature maps.
        num_queries: objects that an image can have.
        encoder_layers: number of them.
        decoder_layers: number of them.
        num_heads: heads of all attention layers.
        encoder_points: samples per head and level, in the encoder.
        decoder_points: likewise, in the decoder.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate in the transformer, while training.
        position: sine waves, or learned for maps of up to 50 x 50 cells.
        refine: each decoder layer corrects the boxes of the one before (iterative box refinement).
        two_stage: queries start from boxes that the encoder proposes; needs refine.
        max_detections: the best (query, class) pairs kept per image.
        denoising: denoising queries.
        loss: matching costs and loss weights.
    """

    name: Literal["deformable_detr"] = "deformable_detr"
    pixels: PixelConfig = field(default_factory=lambda: PixelConfig(size_divisor=1))
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_levels: int = 4
    embed_dim: int = 256
    num_queries: int = 300
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_heads: int = 8
    encoder_points: int = 4
    decoder_points: int = 4
    ffn_dim: int = 1024
    dropout: float = 0.1
    position: Literal["sine", "learned"] = "sine"
    refine: bool = False
    two_stage: bool = False
    max_detections: int = 100
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    loss: DeformableDetrLossConfig = field(default_factory=DeformableDetrLossConfig)

    def __post_init__(self) -> None:
        if self.two_stage and not self.refine:
            raise ConfigError("model.two_stage needs model.refine: proposals are boxes that the decoder corrects")


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
        object_range: (x0, y0, x1, y1) in metres, lidar frame: training leaves out the objects whose centre lies beyond,
            which the reference points of a detector do not reach. None keeps all.
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
    object_range: tuple[float, float, float, float] | None = (-51.2, -51.2, 51.2, 51.2)
    cbgs: bool = False
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

    def __post_init__(self) -> None:
        for name in ("flip", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.augment.{name} is a probability, got {getattr(self, name)}")
        for name in ("short_sides", "crop_short_sides", "crop_size"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(f"data.augment.{name} must be sizes in pixels, got {list(getattr(self, name))}")
        if self.crop_size[0] > self.crop_size[1]:
            raise ConfigError(f"data.augment.crop_size must be (smallest, largest), got {list(self.crop_size)}")


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
        for name in ("short_side", "long_side", "val_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"data.{name} must be at least 1, got {value}")
        if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
            raise ConfigError(f"data.classes must name each class once, got {list(self.classes)}")


@dataclass(frozen=True)
class TrainConfig:
    """The training run.

    Args:
        epochs: passes over the training split.
        batch_size: samples per step and process.
        accumulate: steps whose gradients are summed before the weights change.
        workers: processes that load and augment data; 0 loads in the training process.
        lr: of AdamW, for everything that `lr_factors` does not name.
        lr_factors: part of a parameter's name -> factor on its learning rate; the first part found decides.
        weight_decay: of AdamW.
        clip_norm: largest gradient norm; 0 never clips.
        warmup_steps: the rate rises linearly from a third over this many steps.
        schedule: "cosine" falls to a thousandth, "step" is multiplied by 0.1 at each of the milestones.
        milestones: epochs, of the "step" schedule.
        ema: decay of the moving average of the weights, which is what is evaluated and kept; 0 keeps the last weights.
        precision: "no" is float32; "bf16" and "fp16" use autocast; "auto" is bf16 where the hardware computes with it.
        seed: of the initial weights, the order of the samples and their augmentation.
        log_steps: steps between two lines of the log.
        evaluate_epochs: epochs between two evaluations; 0 evaluates after the last epoch only.
        checkpoint_steps: steps between two checkpoints; 0 writes one after each epoch only.
        keep_checkpoints: older ones are removed.
    """

    epochs: int = 24
    batch_size: int = 1
    accumulate: int = 1
    workers: int = 2
    lr: float = 2e-4
    lr_factors: dict[str, float] = field(default_factory=lambda: {"backbone": 0.1})
    weight_decay: float = 0.01
    clip_norm: float = 35.0
    warmup_steps: int = 500
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    ema: float = 0.0
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    seed: int = 0
    log_steps: int = 10
    evaluate_epochs: int = 0
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        counts = ("workers", "warmup_steps", "evaluate_epochs", "checkpoint_steps")
        for name in (*counts, "lr", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"train.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"train.ema must lie in [0, 1), got {self.ema}")


ModelConfig = Detr3dConfig | DetrConfig | DeformableDetrConfig
DataConfig = NuScenesConfig | CocoConfig


class ConfigError(ValueError):
    """A setting that does not exist or has a wrong value; the message names it."""


@dataclass(frozen=True)
class Config:
    """All settings of a run: what the detector is, what it sees, how it learns."""

    model: ModelConfig = field(default_factory=Detr3dConfig)
    data: DataConfig = field(default_factory=NuScenesConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if isinstance(self.model, Detr3dConfig) != isinstance(self.data, NuScenesConfig):
            raise ConfigError(
                f"model.name {self.model.name!r} cannot learn from data.name {self.data.name!r}: 3D detectors need "
                "nuscenes, 2D detectors coco"
            )

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts and lists that YAML and JSON can hold, and that `load_config` takes back."""
        return _plain(asdict(self))


MODELS = {"detr3d": Detr3dConfig, "detr": DetrConfig, "deformable_detr": DeformableDetrConfig}
DATA = {"nuscenes": NuScenesConfig, "coco": CocoConfig}


def load_config(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file (or take nested dicts), apply overrides, check every name and type.

    Args:
        source: the file, or its content.
        overrides: dotted name -> value, such as {"model.num_queries": 300}; text is read as YAML.

    Raises:
        ConfigError: a file that is missing or no YAML, an unknown name (with the nearest valid ones), a wrong value.
    """
    origin = "the settings" if isinstance(source, Mapping) else str(source)
    tree = _plain(source) if isinstance(source, Mapping) else _read_yaml(Path(source))
    for name, value in (overrides or {}).items():
        _set(tree, name, yaml.safe_load(value) if isinstance(value, str) else value)
    types = {
        "model": _pick("model", MODELS, tree, "detr3d", origin),
        "data": _pick("data", DATA, tree, "nuscenes", origin),
        "train": TrainConfig,
    }
    _check_names(tree, types, origin)
    parser = settings_parser(types)
    try:
        return Config(**vars(parser.instantiate(parser.parse_object(tree))))
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse reports a wrong value through several exception types
        raise ConfigError(f"{origin}: {error}") from error


def settings_parser(types: Mapping[str, type] | None = None):
    """The jsonargparse parser that knows all settings, their types, defaults and meaning."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="settings", usage="--NAME VALUE ...", exit_on_error=False, add_help=False)
    for name, kind in (types or {"model": Detr3dConfig, "data": NuScenesConfig, "train": TrainConfig}).items():
        parser.add_argument(f"--{name}", type=kind, default=kind())
    return parser


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the configuration must be a mapping with 'model', 'data' and 'train'")
    return tree


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, leaf = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{name}: {parent!r} is a value, it has no settings of its own")
    tree[leaf] = value


def _pick(section: str, kinds: Mapping[str, type], tree: Mapping[str, Any], default: str, origin: str) -> type:
    content = tree.get(section, {})
    name = content.get("name", default) if isinstance(content, Mapping) else default
    if name not in kinds:
        raise ConfigError(f"{origin}: {section}.name: no {section} {name!r}{_nearest(str(name), kinds)}")
    return kinds[name]


def _check_names(tree: Any, kinds: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for name, value in tree.items():
        if name not in kinds:
            nearest = _nearest(str(name), kinds, prefix)
            raise ConfigError(f"{origin}: no setting {prefix + str(name)!r}{nearest}")
        if is_dataclass(kinds[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {prefix + name} must be a mapping of settings, got {value!r}")
            hints = get_type_hints(kinds[name])
            _check_names(value, {f.name: hints[f.name] for f in fields(kinds[name])}, origin, f"{prefix}{name}.")


def _nearest(name: str, valid: Mapping[str, Any], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5) or sorted(valid)
    return f"; nearest: {', '.join(prefix + other for other in close)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
