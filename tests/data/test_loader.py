import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bevdet_core.config import NuScenesConfig, PixelConfig, RigAugmentConfig
from bevdet_core.data.images import SampleError
from bevdet_core.data.loader import SampleLoader, build_loader, worker_advice
from bevdet_core.data.nuscenes import NuScenesDataset
from bevdet_core.structures import Sample, Targets

PIXELS = PixelConfig(mean=(0, 0, 0), std=(1, 1, 1), size_divisor=4)


class Numbers:
    """Ten tiny images that show their index; some may be broken."""

    def __init__(self, count: int = 10, broken: tuple[int, ...] = (), on_error: str = "raise") -> None:
        self.count = count
        self.broken = broken
        self.on_error = on_error
        self.scenes: list[str] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise SampleError(f"image {index}.jpg is broken")
        image = np.full((4, 4, 3), index, np.uint8)
        return Sample([image], targets=Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)), token=str(index))

    @staticmethod
    def transform(sample: Sample, rng: np.random.Generator) -> Sample:
        image = sample.images[0].copy()
        image[..., 1] = rng.integers(256)
        return sample.replace(images=[image])


def passing(loader: SampleLoader, epoch: int = 0, first_batch: int = 0) -> list[list[tuple[int, int]]]:
    """(index, augmentation) of each sample in each batch of a pass."""
    loader.start(epoch, first_batch)
    return [[(int(i[0, 0, 0, 0]), int(i[0, 1, 0, 0])) for i in batch.images] for batch, _ in loader]


def indices(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [index for batch in batches for index, _ in batch]


def test_frames_of_a_scene_come_one_after_the_other_and_scenes_by_turns() -> None:
    drives = Numbers(24)
    drives.scenes = [f"scene {i // 4}" for i in range(24)]
    loader = build_loader(drives, PIXELS, batch_size=2, seed=1, training=True, lanes=3)
    whole = passing(loader)
    seen = indices(whole)
    assert sorted(seen) == list(range(24))
    for scene in range(6):
        assert [i for i in seen if i // 4 == scene] == list(range(4 * scene, 4 * scene + 4))
    assert [i // 4 for i in seen[:3]] == [i // 4 for i in seen[3:6]]  # by turns
    # All frames of a scene are augmented alike, scenes differently.
    drawn = {(i // 4, value) for batch in whole for i, value in batch}
    assert len(drawn) == 6
    assert len({value for _, value in drawn}) > 1
    assert passing(loader, first_batch=5) == whole[5:]
    assert indices(passing(loader, epoch=1)) != seen


def test_processes_share_scenes_whose_frames_follow_each_other() -> None:
    drives = Numbers(20)
    drives.scenes = [0] * 8 + [1] * 4 + [2] * 4 + [3] * 4
    shares = [build_loader(drives, PIXELS, 2, training=True, rank=rank, world_size=2, lanes=4) for rank in range(2)]
    passes = [passing(loader) for loader in shares]
    assert [len(batches) for batches in passes] == [5, 5]
    ours, theirs = ({drives.scenes[i] for i in indices(batches)} for batches in passes)
    assert not ours & theirs
    with pytest.raises(ValueError, match="has no scenes"):
        build_loader(Numbers(), PIXELS, 2, training=True, lanes=4)


def test_evaluation_sees_every_sample_once_in_order() -> None:
    loader = build_loader(Numbers(), PIXELS, batch_size=4)
    batches = passing(loader)
    assert len(loader) == len(batches) == 3
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert indices(batches) == list(range(10))


def test_training_draws_a_new_order_in_each_epoch() -> None:
    loader = build_loader(Numbers(), PIXELS, batch_size=4, seed=3, training=True)
    first, second = passing(loader, 0), passing(loader, 1)
    assert len(loader) == len(first) == 2
    assert len(set(indices(first))) == len(set(indices(second))) == 8
    assert indices(first) != indices(second)
    assert passing(loader, 0) == first
    other = build_loader(Numbers(), PIXELS, batch_size=4, seed=4, training=True)
    assert passing(other, 0) != first


def test_order_and_augmentation_do_not_depend_on_the_workers_nor_on_resuming() -> None:
    alone = build_loader(Numbers(), PIXELS, batch_size=2, seed=1, training=True)
    many = build_loader(Numbers(), PIXELS, batch_size=2, workers=2, seed=1, training=True)
    for epoch in range(2):
        expected = passing(alone, epoch)
        assert passing(many, epoch) == expected
        assert passing(many, epoch, first_batch=3) == expected[3:]
        assert passing(alone, epoch, first_batch=1) == expected[1:]
    assert len(many) == 5


def test_loading_leaves_the_generator_of_the_training_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    passing(build_loader(Numbers(), PIXELS, batch_size=2, training=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_set_smaller_than_a_batch_fills_it() -> None:
    loader = build_loader(Numbers(3), PIXELS, batch_size=8, training=True)
    (batch,) = passing(loader)
    assert sorted({index for index, _ in batch}) == [0, 1, 2]
    assert len(batch) == 8
    assert len(set(batch)) == 8  # repeats are augmented differently


@pytest.mark.parametrize("training", [False, True])
def test_processes_share_the_samples_between_them(training: bool) -> None:
    parts = [
        indices(passing(build_loader(Numbers(), PIXELS, 1, seed=2, training=training, rank=rank, world_size=3)))
        for rank in range(3)
    ]
    together = sorted(index for part in parts for index in part)
    assert together == list(range(10)) if not training else len(together) == len(set(together)) == 9
    assert {len(part) for part in parts} == ({3} if training else {3, 4})


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_an_evaluation_gives_whole_scenes_to_a_process(world_size: int) -> None:
    numbers = Numbers()
    numbers.scenes = ["a", "a", "a", "b", "c", "c", "b", "d", "d", "d"]
    parts = [
        indices(passing(build_loader(numbers, PIXELS, 2, rank=rank, world_size=world_size)))
        for rank in range(world_size)
    ]
    assert sorted(index for part in parts for index in part) == list(range(10))
    homes = [{numbers.scenes[index] for index in part} for part in parts]
    assert sum(map(len, homes)) == 4  # no scene is in two processes
    for part in parts:
        for scene in "abcd":
            own = [index for index in part if numbers.scenes[index] == scene]
            assert own == sorted(own)
    assert max(map(len, parts)) <= {1: 10, 2: 6, 3: 5, 5: 3}[world_size]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_stops_with_its_own_message(workers: int) -> None:
    loader = build_loader(Numbers(broken=(5,)), PIXELS, batch_size=2, workers=workers)
    with pytest.raises(SampleError, match=r"^image 5\.jpg is broken$"):
        passing(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_counted_and_named(workers: int) -> None:
    broken = Numbers(broken=(2, 3, 7), on_error="skip")
    loader = build_loader(broken, PIXELS, batch_size=2, workers=workers)
    assert indices(passing(loader)) == [0, 1, 4, 5, 6, 8, 9]
    report = loader.report()
    assert report[0] == "skipped 3 broken samples:"
    assert [line.strip() for line in report[1:]] == [f"image {i}.jpg is broken" for i in (2, 3, 7)]
    loader.start(1, first_batch=4)
    list(loader)
    assert loader.report() == []


def test_training_puts_another_sample_in_place_of_a_skipped_one() -> None:
    broken = Numbers(broken=(2, 3, 7), on_error="skip")
    loader = build_loader(broken, PIXELS, batch_size=5, seed=1, training=True)
    batches = passing(loader)
    assert [len(batch) for batch in batches] == [5, 5]
    assert not set(indices(batches)) & {2, 3, 7}
    assert len(loader.skipped) == 3
    assert passing(build_loader(broken, PIXELS, batch_size=5, workers=2, seed=1, training=True)) == batches


def test_a_set_of_broken_samples_alone_stops() -> None:
    loader = build_loader(Numbers(4, broken=(0, 1, 2, 3), on_error="skip"), PIXELS, batch_size=2, training=True)
    with pytest.raises(SampleError, match="4 broken samples in a row, the last: image"):
        passing(loader)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        build_loader(Numbers(0), PIXELS, batch_size=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_rig_frames_arrive_with_calibration_and_targets(synthetic_root: Path, workers: int) -> None:
    config = NuScenesConfig(
        root=str(synthetic_root),
        version="v1.0-mini",
        input_size=(60, 128),
        augment=RigAugmentConfig(resize=(0.9, 1.2), crop=True, flip=0.5, rotation=0.3),
    )
    dataset = NuScenesDataset(config, "mini_train", training=True)
    loader = build_loader(dataset, PixelConfig(), batch_size=2, workers=workers, seed=5, training=True)
    loader.start(7)
    batches = list(loader)
    assert len(batches) == 2
    batch, targets = batches[0]
    assert batch.images.shape == (2, 6, 3, 64, 128)
    assert batch.mask[..., 60:, :].all()
    assert not batch.mask[..., :60, :].any()
    assert batch.rig is not None
    assert batch.rig.lidar2img.shape == (2, 6, 4, 4)
    assert batch.rig.lidar2global is not None
    assert targets is not None
    assert len(targets) == 2
    order = np.random.default_rng([5, 7]).permutation(4)
    assert list(batch.tokens) == [dataset.tokens[i] for i in order[:2]]
    expected = dataset.transform(dataset[int(order[1])], np.random.default_rng([5, 7, 1]))
    assert expected.targets is not None
    torch.testing.assert_close(targets[1].boxes, expected.targets.boxes, equal_nan=True)
    assert expected.cameras is not None
    lidar2img = np.stack([camera.lidar2img for camera in expected.cameras]).astype(np.float32)
    torch.testing.assert_close(batch.rig.lidar2img[1], torch.from_numpy(lidar2img))


def test_more_workers_than_cores_are_told_in_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    loader = build_loader(Numbers(), PIXELS, batch_size=5, workers=2)  # where torch would warn
    assert indices(passing(loader)) == list(range(10))
    loader.close()
    assert worker_advice(1) is None
    assert worker_advice(2) == (
        "train.workers = 2: more than the cores that can be used here, 1; fewer may load as quickly"
    )
