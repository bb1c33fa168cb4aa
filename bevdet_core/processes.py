"""What the processes of one run tell each other. A run without company is its own main process and talks to nobody."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

Item = TypeVar("Item")


def usable_cores() -> int:
    """Logical cores of this machine that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def count() -> int:
    """How many processes work on this run."""
    return distributed.get_world_size() if _together() else 1


def index() -> int:
    """The number of this process, from 0 on."""
    return distributed.get_rank() if _together() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return index() == 0


def gather(item: Item) -> list[Item]:
    """The items of all processes, by their number; every process must call this."""
    items = [item] * count()
    if _together():
        distributed.all_gather_object(items, item)
    return items


def from_main(item: Item | None) -> Item:
    """The item of the main process; what the others hand in is left aside. Every process must call this."""
    items: list[Item | None] = [item]
    if _together():
        distributed.broadcast_object_list(items, src=0)
    assert items[0] is not None  # the main process has one
    return items[0]


def mean(values: Tensor) -> Tensor:
    """The mean over all processes of a tensor that has the same shape in each; every process must call this."""
    if _together():
        values = values.clone()
        distributed.all_reduce(values)
        values /= count()
    return values


def largest(number: int, device: torch.device) -> int:
    """The largest of the numbers of all processes; every process must call this."""
    if not _together():
        return number
    values = torch.tensor(number, device=device)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return int(values)


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the main one, such as the statistics of batch norms; all must call this."""
    if _together():
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
