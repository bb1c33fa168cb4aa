"""The detector of plain images: what it reads, and where its boxes lie."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn

from bevdet_core import checkpoint
from bevdet_core.config import CocoConfig, Config, DeformableDetrConfig
from bevdet_core.data.images import SampleError
from bevdet_core.detector import Detector
from bevdet_core.structures import Camera, Predictions, Sample


class BrightestQuarter(nn.Module):
    """Says in which quarter of each image the brightest pixels are, with the image's mean as the score."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, batch) -> Predictions:
        boxes = []
        for image, (height, width) in zip(batch.images[:, 0], batch.sizes[:, 0].tolist(), strict=True):
            self.seen.append((height, width))
            grey = image[:, :height, :width].mean(0)
            top, left = grey[: height // 2].mean() > grey.mean(), grey[:, : width // 2].mean() > grey.mean()
            boxes.append([0.25 if left else 0.75, 0.25 if top else 0.75, 0.5, 0.5])
        return Predictions(torch.zeros(1, len(boxes), 1, 2), torch.tensor(boxes)[None, :, None])

    def decode(self, predictions: Predictions, batch):
        size = batch.original_sizes[:, 0].flip(-1).repeat(1, 2)  # [B, 4] width, height, width, height
        centre, extent = predictions.boxes[-1, :, 0].chunk(2, -1)
        boxes = torch.cat([centre - extent / 2, centre + extent / 2], -1) * size
        return [(torch.tensor([0.5]), torch.tensor([1]), box[None]) for box in boxes]


@pytest.fixture
def detector() -> Detector:
    config = Config(DeformableDetrConfig(), CocoConfig(short_side=32, long_side=64))
    return Detector(BrightestQuarter(), config, ("cat", "dog"))


def picture(height: int = 60, width: int = 90) -> np.ndarray:
    """Bright in the top right corner."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[: height // 2, width // 2 :] = 240
    return image


def test_boxes_come_in_pixels_of_the_image_that_went_in(detector: Detector, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    for form in (str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(picture()), picture()):
        found = detector.predict(form)
        assert found.boxes.tolist() == [[45, 0, 90, 30]]
        assert found.class_names[found.labels[0]] == "dog"
        assert found.sample.images[0].shape == (60, 90, 3)
    assert set(detector.model.seen) == {(32, 48)}


def test_images_of_different_sizes_in_batches(detector: Detector) -> None:
    sizes = [(60, 90), (40, 200), (90, 60), (33, 47), (64, 64)]
    for batch_size in (1, 2, 5):
        found = detector.predict([picture(*size) for size in sizes], batch_size=batch_size)
        for (height, width), one in zip(sizes, found, strict=True):
            assert one.boxes.tolist() == [[width / 2, 0, width, height / 2]]
    assert detector.predict([]) == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode(detector: Detector, tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(picture()[..., 0].astype(np.uint16) * 257).save(path)
    elif mode == "P":
        image = Image.fromarray(picture()).convert("P")
        image.save(path, transparency=bytes(range(256)))
    else:
        Image.fromarray(picture()).convert(mode).save(path)
    found = detector.predict(path)
    assert found.boxes.tolist() == [[45, 0, 90, 30]]
    if mode == "I;16":
        np.testing.assert_array_equal(found.sample.images[0], picture())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("opened", [False, True])
def test_images_are_looked_at_upright(detector: Detector, tmp_path: Path, orientation: int, opened: bool) -> None:
    upright = picture()
    stored = {  # what a camera stores for a viewer to turn back
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        found = detector.predict(image if opened else tmp_path / "a.png")
    np.testing.assert_array_equal(found.sample.images[0], upright)
    assert found.boxes.tolist() == [[45, 0, 90, 30]]


def test_what_cannot_be_read_is_named(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"none\.jpg does not exist"):
        detector.predict(tmp_path / "none.jpg")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SampleError, match=r"text\.png is not an image file"):
        detector.predict([picture(), str(tmp_path / "text.png")])
    for array in (picture()[..., 0], picture().astype(np.float32), picture()[:0], np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"an image array must be \[H, W, 3\] uint8 RGB, got \["):
            detector.predict(array)


def test_a_rig_frame_is_refused(detector: Detector) -> None:
    frame = Sample([picture()] * 2, [Camera(name, np.eye(3), np.eye(4)) for name in "ab"], token="t7")
    with pytest.raises(ValueError, match="'t7' is a rig frame of 2 cameras; this 2D detector takes one image"):
        detector.predict(frame)


def test_a_plain_image_is_refused_by_a_detector_of_rig_frames() -> None:
    with pytest.raises(ValueError, match="plain image; this 3D detector needs a rig frame"):
        Detector(BrightestQuarter(), Config(), ("car",)).predict(picture())


def test_precision(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    checkpoint.save(file, tiny.detector("deformable_detr").checkpoint())
    whole, half = (Detector.load(file, "cpu", precision=kind).predict(picture()) for kind in ("fp32", "bf16"))
    assert half.scores.dtype == half.boxes.dtype == torch.float32
    assert not torch.equal(whole.scores, half.scores)
    torch.testing.assert_close(whole.scores, half.scores, rtol=0.05, atol=0)
    assert Detector.load(file, "cpu", precision="auto").precision in ("fp32", "bf16")
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16, auto, got 'int8'"):
        Detector.load(file, "cpu", precision="int8")  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="precision fp16 needs a GPU; on a CPU choose fp32, bf16 or auto"):
        Detector(BrightestQuarter(), Config(DeformableDetrConfig(), CocoConfig()), ("cat",), "fp16")
