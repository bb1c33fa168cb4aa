from dataclasses import replace

import numpy as np
import pytest
import torch

from bevdet_core.config import PixelConfig
from bevdet_core.geometry import pose
from bevdet_core.structures import Camera, Sample, Targets, collate

RAW = PixelConfig((0, 0, 0), (1, 1, 1), size_divisor=1)


def image(height: int, width: int, value: int = 7) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def camera(name: str = "front") -> Camera:
    return Camera(name, np.array([[100.0, 0, 32], [0, 90, 24], [0, 0, 1]]), pose([0.5, -0.5, 0.5, -0.5], [1, 2, 3]))


def test_lidar2img_takes_points_through_the_camera() -> None:
    eye = camera()
    in_camera = np.array([0.5, -0.25, 4, 1])
    u, v, d, one = eye.lidar2img @ eye.camera2lidar @ in_camera
    assert d == pytest.approx(4)
    assert one == pytest.approx(1)
    assert (u / d, v / d) == pytest.approx((100 * 0.5 / 4 + 32, 90 * -0.25 / 4 + 24))


def test_targets_are_picked_by_mask_and_by_index() -> None:
    targets = Targets(torch.tensor([3, 1, 2]), torch.arange(27.0).view(3, 9))
    assert targets[torch.tensor([True, False, True])].labels.tolist() == [3, 2]
    assert targets[torch.tensor([2, 0])].boxes[:, 0].tolist() == [18, 0]
    assert len(targets) == 3


def test_a_sample_remembers_the_sizes_of_its_files() -> None:
    sample = Sample([image(6, 8), image(4, 5)])
    smaller = sample.replace(images=[image(3, 4), image(2, 2)])
    assert smaller.original_sizes == [(6, 8), (4, 5)]


def test_a_sample_needs_a_camera_for_each_image() -> None:
    with pytest.raises(ValueError, match="sample 'tok': 2 images but 1 cameras"):
        Sample([image(4, 4), image(4, 4)], [camera()], token="tok")


def test_collating_normalises_and_pads_at_the_right_and_the_bottom() -> None:
    wide, high = image(5, 9, 50), image(8, 6, 100)
    wide[0, 0] = 10, 20, 30
    batch, targets = collate([Sample([wide]), Sample([high])], PixelConfig((10, 20, 30), (2, 4, 5), size_divisor=4))
    assert targets is None
    assert batch.images.shape == (2, 1, 3, 8, 12)
    assert batch.images[0, 0, :, 0, 0].tolist() == [0, 0, 0]
    assert batch.images[0, 0, :, 4, 8].tolist() == [20, 7.5, 4]
    assert batch.sizes.tolist() == [[[5, 9]], [[8, 6]]]
    for b, (height, width) in enumerate([(5, 9), (8, 6)]):
        padded = torch.ones(8, 12, dtype=torch.bool)
        padded[:height, :width] = False
        assert torch.equal(batch.mask[b, 0], padded)
        assert (batch.images[b, 0][:, padded] == 0).all()


def test_collating_turns_the_channels_round_before_it_normalises() -> None:
    picture = image(2, 2)
    picture[..., 0], picture[..., 2] = 1, 3
    batch, _ = collate([Sample([picture])], PixelConfig((0, 0, 0), (1, 1, 1), bgr=True, size_divisor=1))
    assert batch.images[0, 0, :, 0, 0].tolist() == [3, 7, 1]


def test_2d_boxes_become_fractions_of_the_image_without_padding() -> None:
    targets = Targets(torch.tensor([1]), torch.tensor([[2.0, 1, 6, 4]]))
    samples = [Sample([image(5, 8)], targets=targets), Sample([image(10, 16)], targets=targets)]
    _, out = collate(samples, RAW)
    assert out is not None
    torch.testing.assert_close(out[0].boxes, torch.tensor([[0.5, 0.5, 0.5, 0.6]]))
    torch.testing.assert_close(out[1].boxes, torch.tensor([[0.25, 0.25, 0.25, 0.3]]))
    assert targets.boxes.tolist() == [[2, 1, 6, 4]]


def test_rigs_are_stacked_and_3d_boxes_kept() -> None:
    targets = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 9))
    sample = Sample(
        [image(4, 4)] * 2, [camera(), camera("back")], targets, "tok", np.eye(4) * 2, 1532402927.647951, "s"
    )
    batch, out = collate([sample, sample], RAW)
    assert batch.rig is not None
    np.testing.assert_array_equal(batch.rig.lidar2img[1, 1].numpy(), camera().lidar2img.astype(np.float32))
    assert batch.rig.lidar2global is not None
    assert batch.rig.lidar2global.dtype == torch.float64
    assert batch.rig.timestamps is not None
    assert batch.rig.timestamps.tolist() == [1532402927.647951] * 2
    assert batch.tokens == ["tok", "tok"]
    assert batch.scenes == ["s", "s"]
    assert out is not None
    assert out[0].boxes.shape == (0, 9)
    moved = batch.to("cpu")
    assert moved.rig is not None
    assert torch.equal(moved.rig.lidar2img, batch.rig.lidar2img)


def test_what_only_some_samples_have_is_left_out() -> None:
    known = Sample([image(4, 4)], [camera()], lidar2global=np.eye(4), timestamp=1.0)
    unknown = Sample([image(4, 4)], [camera()])
    batch, targets = collate([known, unknown], RAW)
    assert batch.rig is not None
    assert batch.rig.lidar2global is None
    assert batch.rig.timestamps is None
    assert targets is None


def test_rigs_of_one_batch_may_differ_in_cameras_and_some_may_have_failed() -> None:
    failed = replace(camera("left"), hidden=True)
    two = Sample([image(4, 6, 50), image(8, 8, 99)], [camera(), failed])
    one = Sample([image(5, 9, 50)], [camera()])
    batch, _ = collate([two, one], RAW)
    assert batch.rig is not None
    assert batch.rig.hidden is not None
    assert batch.rig.visible.tolist() == [[True, False], [True, False]]
    assert batch.to("cpu").rig.hidden.tolist() == [[False, True], [False, True]]
    assert batch.to("cpu").rig.shown.tolist() == [0, 2]
    assert batch.images.shape == (2, 2, 3, 8, 9)
    assert not batch.images[:, 1].any()  # a picture of a camera that failed is not looked at
    assert batch.images[:, 0].any()
    assert batch.sizes.tolist() == [[[4, 6], [8, 8]], [[5, 9], [0, 0]]]
    assert batch.mask[1, 1].all()
    assert batch.rig.lidar2img.isfinite().all()
    alone, _ = collate([one], RAW)
    assert alone.rig is not None
    assert alone.rig.hidden is None
    assert alone.rig.visible.tolist() == [[True]]
    assert torch.equal(alone.rig.lidar2img[0, 0], batch.rig.lidar2img[1, 0])


def test_samples_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same number of images, got \[1, 2\]"):
        collate([Sample([image(4, 4)]), Sample([image(4, 4)] * 2)], RAW)
    with pytest.raises(ValueError, match="with and without camera calibration"):
        collate([Sample([image(4, 4)]), Sample([image(4, 4)], [camera()])], RAW)
