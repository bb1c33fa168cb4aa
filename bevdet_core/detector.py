"""The detector as its users meet it: load, predict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import checkpoint
from .checkpoint import Checkpoint
from .config import CocoConfig, Config, Precision, load_config
from .data import class_names, inference_transform
from .data.images import pixels_of, read_image
from .data.rig import read_frame
from .detections import Detections
from .models import build_model
from .models.bev_memory import BevMemory
from .precision import autocast, resolve
from .structures import ImageBatch, Sample, collate

Input = str | Path | Image.Image | np.ndarray | Sample


class Detector:
    """A model with its class names and the way its images are prepared.

    Examples:
        >>> detector = Detector.load("runs/detr3d/model.safetensors")      # doctest: +SKIP
        >>> detections = detector.predict("frame.json", threshold=0.3)     # doctest: +SKIP
        >>> detections.draw().save("frame.png")                            # doctest: +SKIP
    """

    def __init__(
        self, model: nn.Module, config: Config, class_names: Sequence[str], precision: Precision = "fp32"
    ) -> None:
        self.model = model
        self.config = config
        self.class_names = tuple(class_names)
        self.precision = resolve(precision, "precision")

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | torch.device | None = None,
        overrides: Mapping[str, Any] | None = None,
        precision: Precision = "fp32",
    ) -> Detector:
        """A detector from a checkpoint, from a run folder, or untrained from a configuration file.

        Args:
            source: a `.safetensors` file, a folder that `bevdet train` wrote, or a `.yaml` file.
            device: where it runs; default: the GPU if there is one.
            overrides: dotted settings that replace those it was trained with, such as {"data.root": "/data"}.
            precision: what it computes with: "fp32" is float32; "bf16" and "fp16" are faster where the hardware has
                them, and differ in the third digit; "auto" is bf16 there and float32 elsewhere.

        Raises:
            CheckpointError: a file that is missing, truncated, or belongs to another model.
            ConfigError: the configuration is not valid.
            ValueError: a precision that does not work here.
        """
        source = Path(source)
        if source.suffix in (".yaml", ".yml"):
            config = load_config(source, overrides)
            names = class_names(config.data)
            detector = cls(build_model(config.model, len(names)), config, names, precision)
        else:
            path = checkpoint.weights_of(source)
            saved = checkpoint.load(path)
            config = load_config(saved.config, overrides)
            model = build_model(config.model, len(saved.class_names), pretrained=False)
            checkpoint.load_weights(model, saved.weights, str(path))
            detector = cls(model, config, saved.class_names, precision)
        detector.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        return detector

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def takes_images(self) -> bool:
        """Whether inputs are plain images, or else rig frames."""
        return isinstance(self.config.data, CocoConfig)

    def new_memory(self) -> BevMemory | None:
        """A memory of frames for `detect` and `predict`; None for a detector that looks at each frame alone."""
        make = getattr(self.model, "new_memory", None)
        return make() if make is not None else None

    def stream(self) -> Stream:
        """Detect in frame after frame of a live rig, with what came before in mind."""
        return Stream(self)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str, and taken as one input
        self, inputs: Input, threshold: float = ..., batch_size: int = ..., memory: BevMemory | None = ...
    ) -> Detections: ...

    @overload
    def predict(
        self, inputs: Sequence[Input], threshold: float = ..., batch_size: int = ..., memory: BevMemory | None = ...
    ) -> list[Detections]: ...

    def predict(
        self,
        inputs: Input | Sequence[Input],
        threshold: float = 0.0,
        batch_size: int = 1,
        memory: BevMemory | None = None,
    ) -> Detections | list[Detections]:
        """Detect objects.

        Args:
            inputs: one input or a list. An image is a path, a PIL image, or an array [H, W, 3] uint8 RGB; the first two
                are turned upright as their EXIF orientation says. A rig frame is a `Sample` with cameras, or the path
                of a JSON file (see `data.rig`).
            threshold: detections with a lower score are left out.
            batch_size: inputs that go through the network at once.
            memory: the inputs are frames in the order of time, and each sees what came before; without one every input
                stands alone.

        Returns:
            `Detections` of the input, or a list of them: boxes in pixels of the (upright) image, or in metres of
            the lidar frame.

        Raises:
            ValueError: an input that cannot be read, or does not fit this detector; the message names it.
        """
        if isinstance(inputs, (str, Path, Image.Image, np.ndarray, Sample)):
            return self.predict([inputs], threshold, batch_size, memory)[0]
        prepare = inference_transform(self.config.data)
        results: list[Detections] = []
        for start in range(0, len(inputs), batch_size):
            samples = [self._read(item) for item in inputs[start : start + batch_size]]
            batch, _ = collate([prepare(sample) for sample in samples], self.config.model.pixels)
            results += self.detect(batch, samples, memory)
        return [found.above(threshold) for found in results]

    @torch.inference_mode()
    def detect(
        self,
        batch: ImageBatch,
        samples: Iterable[Sample | None] | None = None,
        memory: BevMemory | None = None,
    ) -> list[Detections]:
        """Run the network on a prepared batch.

        Args:
            batch: the frames or images.
            samples: are kept in the detections, to be drawn on.
            memory: see `predict`.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            batch = batch.to(self.device)
            with autocast(self.precision, self.device):
                predictions = self.model(batch) if memory is None else self.model(batch, memory)
            decoded: list[tuple[Tensor, Tensor, Tensor]] = self.model.decode(predictions, batch)  # type: ignore[operator]
        finally:
            self.model.train(was_training)
        samples = samples if samples is not None else [None] * len(decoded)
        return [
            Detections(scores.cpu(), labels.cpu(), boxes.cpu(), self.class_names, sample)
            for (scores, labels, boxes), sample in zip(decoded, samples, strict=True)
        ]

    def checkpoint(self) -> Checkpoint:
        """The weights with all that `load` needs."""
        return Checkpoint(self.model.state_dict(), self.config.to_dict(), self.class_names)

    def _read(self, item: Input) -> Sample:
        if isinstance(item, Sample):
            sample = item
        elif isinstance(item, (str, Path)) and Path(item).suffix == ".json":
            sample = read_frame(item)
        elif isinstance(item, (str, Path)):
            sample = Sample([read_image(item, upright=True)], token=str(item))
        else:
            sample = Sample([pixels_of(item, upright=True) if isinstance(item, Image.Image) else _checked(item)])
        if sample.cameras is None and not self.takes_images:
            raise ValueError(
                f"input {sample.token!r} is a plain image; this 3D detector needs a rig frame: images with calibration"
            )
        if self.takes_images and (sample.cameras is not None or len(sample.images) != 1):
            raise ValueError(
                f"input {sample.token!r} is a rig frame of {len(sample.images)} cameras; this 2D detector takes one "
                "image at a time"
            )
        return sample


class Stream:
    """A live rig: each frame sees those before it.

    A frame of another scene, or one that comes more than `model.history_gap` seconds after the last, starts anew. The
    rig may change between frames: what is remembered lies in the lidar's frame, not in a camera's. Detectors that look
    at each frame alone give what `Detector.predict` gives.

    Examples:
        >>> stream = detector.stream()                        # doctest: +SKIP
        >>> for frame in frames:                              # doctest: +SKIP
        ...     detections = stream.predict(frame, threshold=0.3)
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._memory = detector.new_memory()

    def predict(self, frame: Input, threshold: float = 0.0) -> Detections:
        """Detect objects in the next frame; see `Detector.predict`.

        Raises:
            ValueError: the frame cannot be read, does not fit the detector, is no later than the one before, or has no
                pose (`lidar2global`). The stream is as if it had not come.
        """
        return self._detector.predict([frame], threshold, memory=self._memory)[0]

    def reset(self) -> None:
        """Forget all frames."""
        self._memory = self._detector.new_memory()


def _checked(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"an image array must be [H, W, 3] uint8 RGB, got {list(pixels.shape)} {pixels.dtype}")
    return pixels
