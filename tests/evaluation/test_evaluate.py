import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bevdet_core.config import NuScenesConfig, PixelConfig
from bevdet_core.data.images import SampleError
from bevdet_core.data.nuscenes import NuScenesDataset
from bevdet_core.detections import Detections
from bevdet_core.evaluation import evaluate
from bevdet_core.evaluation.nuscenes import read_submission


class Oracle:
    """A detector that knows the truth."""

    def __init__(self, dataset: NuScenesDataset) -> None:
        self.dataset = dataset
        self.config = SimpleNamespace(model=SimpleNamespace(pixels=PixelConfig()))

    def new_memory(self) -> None:
        return None

    def detect(self, batch, memory=None) -> list[Detections]:
        assert batch.images.shape[1:3] == (6, 3)
        out = []
        for token in batch.tokens:
            targets = self.dataset.targets(self.dataset.tokens.index(token))
            scores = torch.linspace(0.5, 1, len(targets))
            out.append(Detections(scores, targets.labels, targets.boxes, self.dataset.class_names))
        return out


@pytest.fixture
def config(synthetic_root: Path) -> NuScenesConfig:
    return NuScenesConfig(root=str(synthetic_root), version="v1.0-mini", input_size=(64, 128))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_detector_is_scored_and_its_folder_filled(config: NuScenesConfig, tmp_path: Path, batch_size: int) -> None:
    dataset = NuScenesDataset(config, "mini_val")
    metrics = evaluate(Oracle(dataset), dataset, tmp_path, batch_size, quiet=True, weights=Path("model.safetensors"))
    assert metrics.classes["car"]["AP"] == pytest.approx(1)
    assert metrics.summary()["mAP"] == metrics.mean_ap
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "pr_curves.png", "submission.json"]
    assert set(read_submission(tmp_path / "submission.json")) == set(dataset.tokens)
    assert json.loads((tmp_path / "metrics.json").read_text())["evaluated"] == {
        "weights": str(Path.cwd() / "model.safetensors"),
        "root": config.root,
        "version": "v1.0-mini",
        "split": "mini_val",
        "samples": 4,
        "classes": list(config.classes),
    }


def test_a_version_without_annotations_leaves_a_submission_to_upload(synthetic_copy: Path, config, tmp_path: Path):
    (synthetic_copy / "v1.0-mini").rename(synthetic_copy / "v1.0-test")
    dataset = NuScenesDataset(replace(config, root=str(synthetic_copy), version="v1.0-test"), "mini_val")
    oracle = Oracle(NuScenesDataset(config, "mini_val"))
    with pytest.raises(ValueError, match=r"v1\.0-test has no annotations: upload .*out/submission\.json to the eval"):
        evaluate(oracle, dataset, tmp_path / "out", quiet=True)
    assert set(read_submission(tmp_path / "out" / "submission.json")) == set(dataset.tokens)


def test_skipped_samples_count_as_empty_and_are_told(synthetic_copy: Path, config, tmp_path: Path) -> None:
    config = replace(config, root=str(synthetic_copy))
    dataset = NuScenesDataset(config, "mini_val")
    file = synthetic_copy / dataset.index.camera_file(int(dataset.rows[1]), "CAM_FRONT")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SampleError, match=f"sample '{dataset.tokens[1]}': image .*{file.name} cannot be decoded"):
        evaluate(Oracle(dataset), dataset, tmp_path / "raise", quiet=True)
    assert not (tmp_path / "raise").exists()
    dataset = NuScenesDataset(replace(config, on_error="skip"), "mini_val")
    metrics = evaluate(Oracle(dataset), dataset, tmp_path / "skip", quiet=True)
    assert read_submission(tmp_path / "skip" / "submission.json")[dataset.tokens[1]] == []
    assert metrics.classes["car"]["AP"] < 1
    assert metrics.warnings[0] == "skipped 1 broken sample:"
    assert file.name in metrics.warnings[1]


def test_samples_without_a_pose_cannot_be_scored(config: NuScenesConfig, tmp_path: Path) -> None:
    dataset = NuScenesDataset(config, "mini_val")
    prepare = dataset.transform
    dataset.transform = lambda sample, rng: prepare(sample.replace(lidar2global=None), rng)
    with pytest.raises(ValueError, match=rf"sample '{dataset.tokens[0]}' has no pose \(Sample\.lidar2global\), which"):
        evaluate(Oracle(dataset), dataset, tmp_path, quiet=True)
