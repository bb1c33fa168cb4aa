"""Samples in batches, from several processes, in an order and with an augmentation that depend on the seed alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, zip_longest
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import PixelConfig
from ..processes import usable_cores
from ..structures import ImageBatch, Sample, Targets, collate
from .images import SampleError
from .transforms import Transform

MAX_BROKEN_IN_A_ROW = 100

Draw = tuple[int, int, int]  # epoch, what the augmentation is drawn from, index into the data set


class SampleDataset(Protocol):
    """What the loader needs of a data set."""

    transform: Transform  # applied to each sample, with a generator of its own; may raise `SampleError` too
    on_error: Literal["raise", "skip"]  # what happens at a sample that cannot be used

    @property
    def scenes(self) -> Sequence[object] | None:
        """The scene of each sample, where samples of one scene follow each other in time."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """A sample as it lies on disk; raises `SampleError` where it cannot be used."""
        ...


class SampleLoader(DataLoader):
    """A torch DataLoader of (ImageBatch, list of Targets, or None where the data has none).

    `len(loader)` is the number of batches in a whole epoch. Each pass goes over the epoch set by `start`; made by
    `build_loader`.

    Attributes:
        lanes: see `build_loader`.
        skipped: what was wrong with the broken samples that this pass has skipped so far, by index.
    """

    def __init__(self, order: EpochOrder, on_error: Literal["raise", "skip"], **options) -> None:
        super().__init__(sampler=order, **options)
        self.lanes = order.lanes
        self._order = order
        self._on_error = on_error
        self.skipped: dict[int, str] = {}

    def start(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch of the next pass, and the batch to begin with (to go on where an earlier run stopped)."""
        self._order.epoch = epoch
        self._order.first_batch = first_batch

    def __iter__(self) -> Iterator[tuple[ImageBatch, list[Targets] | None]]:  # type: ignore[override]
        self.skipped = {}
        for batch, broken in super().__iter__():
            if broken and self._on_error == "raise":
                raise SampleError(next(iter(broken.values())))
            self.skipped.update(broken)
            if batch is not None:
                yield batch

    def check_worker_number_rationality(self) -> None:
        """Torch would warn here; `worker_advice` says it in place of that."""

    def close(self) -> None:
        """End the worker processes. They do not heed signals, so that an exit would wait for those still there."""
        workers: Any = self._iterator  # torch has no public name for what ends them
        if workers is not None:
            workers._shutdown_workers()
            self._iterator = None

    def report(self) -> list[str]:
        """Lines that say how many samples were skipped in the last pass, and which; none if there were none."""
        if not self.skipped:
            return []
        plural = "s" if len(self.skipped) > 1 else ""
        return [f"skipped {len(self.skipped)} broken sample{plural}:", *(f"  {text}" for text in self.skipped.values())]


def worker_advice(workers: int) -> str | None:
    """A line for the reader where more processes are to load than there are cores for them."""
    cores = usable_cores()
    if workers <= cores:
        return None
    return f"train.workers = {workers}: more than the cores that can be used here, {cores}; fewer may load as quickly"


def build_loader(
    dataset: SampleDataset,
    pixels: PixelConfig,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    training: bool = False,
    rank: int = 0,
    world_size: int = 1,
    lanes: int = 0,
) -> SampleLoader:
    """Load a data set in batches.

    In training the order is drawn anew in each epoch, batches are always full, and a broken sample that is skipped
    makes room for the next one that is not. Otherwise samples come in their order, once, and a batch may come short;
    of several processes each gets whole scenes.
    A broken sample raises `SampleError`, or is skipped and counted, as the data set's `on_error` says.
    Order and augmentation depend on the seed, the epoch and the place in the epoch: not on the number of workers, nor
    on where the epoch was taken up.

    Args:
        dataset: gives samples and their transform.
        pixels: normalisation and padding.
        batch_size: samples per batch and process.
        workers: processes that load; 0 loads in this one.
        seed: of the order and the augmentation.
        training: see above.
        rank: number of this process among those that work together; each gets its own samples.
        world_size: how many there are.
        lanes: in training, the frames of a scene come in their order, of so many scenes by turns, and are augmented
            alike; 0: frames come in any order.
    """
    order = EpochOrder(len(dataset), batch_size, seed, training, rank, world_size, dataset.scenes, lanes)
    return SampleLoader(
        order,
        dataset.on_error,
        dataset=_Draws(dataset, seed, substitute=training and dataset.on_error == "skip"),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_Batch(pixels),
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator().manual_seed(seed),  # keeps torch from drawing on the generator of the training
    )


class EpochOrder(Sampler[Draw]):
    """The order in which one process sees the samples of an epoch."""

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        training: bool,
        rank: int = 0,
        world_size: int = 1,
        scenes: Sequence[object] | None = None,
        lanes: int = 0,
    ) -> None:
        if samples < 1:
            raise ValueError("the data set has no samples")
        if lanes and scenes is None:
            raise ValueError("the data set has no scenes, whose frames could follow each other")
        self.evaluated = [] if training else share_of_evaluation(samples, rank, world_size, scenes)
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.training = training
        self.rank = rank
        self.world_size = world_size
        self.scenes = _members(scenes) if lanes and scenes is not None else []
        self.lanes = lanes
        self.epoch = 0
        self.first_batch = 0

    def _places(self) -> int:
        """Samples that this process sees in a whole epoch."""
        if self.training:
            return max(self.samples // (self.batch_size * self.world_size), 1) * self.batch_size
        return len(self.evaluated)

    def __len__(self) -> int:
        # What torch divides by the batch size to tell the length of a loader: a whole epoch, wherever it is taken up.
        return self._places()

    def __iter__(self) -> Iterator[Draw]:
        if not self.training:
            yield from ((self.epoch, place, place) for place in self.evaluated[self.first_batch * self.batch_size :])
            return
        begin, end = self.first_batch * self.batch_size, self._places()
        if self.lanes:
            for scene, index in islice(cycle(self._by_turns()), begin, end):
                yield self.epoch, scene, index
            return
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.samples)
        for i in range(begin, end):
            place = i * self.world_size + self.rank
            yield self.epoch, place, int(order[place % self.samples])

    def _by_turns(self) -> list[tuple[int, int]]:
        """The frames of this process's scenes as (scene, index): one of each lane, then the next of each."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.scenes)).tolist()
        own = order[self.rank % len(order) :: self.world_size]
        lanes = [[(scene, i) for scene in own[k :: self.lanes] for i in self.scenes[scene]] for k in range(self.lanes)]
        return [frame for turn in zip_longest(*lanes) for frame in turn if frame is not None]


def share_of_evaluation(samples: int, rank: int, world_size: int, scenes: Sequence[object] | None = None) -> list[int]:
    """The samples that one of several processes evaluates, in order; each sample has one process.

    A scene goes as a whole, to the process that has the fewest samples by then.
    """
    if scenes is None:
        return list(range(rank, samples, world_size))
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for places in _members(scenes):
        min(shares, key=len).extend(places)
    return shares[rank]


def _members(scenes: Sequence[object]) -> list[list[int]]:
    """The samples of each scene, in order."""
    members: dict[object, list[int]] = {}
    for place, scene in enumerate(scenes):
        members.setdefault(scene, []).append(place)
    return list(members.values())


@dataclass
class _Broken:
    index: int
    problem: str


class _Draws(Dataset):
    """Transformed samples by (epoch, place, index), in the worker; broken ones as `_Broken`."""

    def __init__(self, dataset: SampleDataset, seed: int, substitute: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.substitute = substitute

    def __getitem__(self, draw: Draw) -> tuple[Sample | None, list[_Broken]]:
        epoch, key, index = draw
        broken: list[_Broken] = []
        while True:
            try:
                sample = self.dataset[index]
                return self.dataset.transform(sample, np.random.default_rng([self.seed, epoch, key])), broken
            except SampleError as error:
                broken.append(_Broken(index, str(error)))
                if not self.substitute:
                    return None, broken
                if len(broken) == min(MAX_BROKEN_IN_A_ROW, len(self.dataset)):
                    raise SampleError(f"{len(broken)} broken samples in a row, the last: {error}") from error
                index = (index + 1) % len(self.dataset)


def _leave_signals_to_the_main_process(worker: int) -> None:
    # A Ctrl-C, and often SIGTERM, reaches every process. Without its workers the main one could not end in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Batch:
    """Collates what `_Draws` gives: ((ImageBatch, targets) or None, {index: problem})."""

    def __init__(self, pixels: PixelConfig) -> None:
        self.pixels = pixels

    def __call__(self, items: list[tuple[Sample | None, list[_Broken]]]):
        samples = [sample for sample, _ in items if sample is not None]
        problems = {broken.index: broken.problem for _, found in items for broken in found}
        if not samples:
            return None, problems
        frames, owners = _learned(samples)
        batch, targets = collate(frames, self.pixels)
        batch.owners = owners
        return (batch, targets), problems


def _learned(samples: Sequence[Sample]) -> tuple[list[Sample], list[int]]:
    """Samples, and earlier frames with objects as samples of their own; with the place in `samples` each belongs to."""
    frames: list[Sample] = []
    owners: list[int] = []
    for place, sample in enumerate(samples):
        known = all(frame.targets is not None for frame in sample.history)
        frames += [*sample.history, sample.replace(history=[])] if known else [sample]
        owners += [place] * (len(frames) - len(owners))
    return frames, owners
