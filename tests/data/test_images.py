from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bevdet_core.data.images import SampleError, read_image


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def test_pixels_come_back_as_rgb(tmp_path: Path, noise: np.ndarray) -> None:
    Image.fromarray(noise).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), noise)
    Image.fromarray(noise[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), noise[..., :1].repeat(3, -1))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_named(tmp_path: Path, noise: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SampleError, match=rf"image .*half\.{suffix} cannot be decoded: .*truncated"):
        read_image(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"image .*none\.jpg does not exist"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(SampleError, match=r"image .*text\.jpg is not an image file"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(SampleError, match=r"image .*empty\.jpg is not an image file"):
        read_image(tmp_path / "empty.jpg")
