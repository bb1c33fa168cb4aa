"""How a run starts on its processes and devices, and what it finds out before it reads any data.

    bevdet train CONFIG                                                     one process
    torchrun --nproc_per_node 8 -m bevdet_core.cli train CONFIG             eight GPUs
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d \\
        --rdzv_endpoint HOST:29500 -m bevdet_core.cli train CONFIG          two machines, started on both

`accelerate launch -m bevdet_core.cli train CONFIG` does the same. Without a GPU the processes share the CPU. The run
folder and the data must be the same for all of them. (torchrun takes `--run` for an option of its own: `--run_folder`.)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from .config import TrainConfig
from .precision import resolve


class LaunchError(ValueError):
    """A run that does not fit the processes and devices that it was started on."""


def start(settings: TrainConfig | None = None) -> Accelerator:
    """Join the other processes that a launcher has started; without a launcher, be alone.

    Args:
        settings: of the training; none for an evaluation.

    Raises:
        LaunchError: a process without a GPU of its own, a kind of parallelism or a precision that does not work here.
    """
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false") == "true":
            raise LaunchError(
                f"accelerate is set up for {kind}; training here is data parallel, with one whole model for each GPU: "
                "choose multi-GPU in 'accelerate config'"
            )
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and local >= gpus:
        raise LaunchError(
            f"process {local} of this machine has no GPU: there {'is 1' if gpus == 1 else f'are {gpus}'}; start with "
            f"--nproc_per_node {gpus} at most"
        )
    try:
        precision = resolve("fp32" if settings is None else settings.precision, "train.precision")
    except ValueError as error:
        raise LaunchError(str(error)) from None
    if AcceleratorState._shared_state:  # of an earlier run in this process, whose precision may have been another one
        AcceleratorState._reset_state()
    # Every model uses every parameter in every step; statistics of batch norms are shared before an evaluation.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=False, broadcast_buffers=False)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is not in older versions
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # costs one copy
    accelerator = Accelerator(
        cpu=not gpus,  # and on no other device: the operator has kernels for these two
        mixed_precision="no" if precision == "fp32" else precision,  # as accelerate calls it
        kwargs_handlers=[parallel],
    )
    return accelerator


def check_batches(samples: int, batches: int, settings: TrainConfig, processes: int) -> None:
    """Check that an epoch gives every process at least one step.

    Args:
        samples: in the training split.
        batches: that one process sees in an epoch.
        settings: of the training.
        processes: how many work together.

    Raises:
        LaunchError: fewer samples or batches than that.
    """
    if processes > 1 and samples < settings.batch_size * processes:
        raise LaunchError(
            f"the training split has {samples} samples, too few for {processes} processes with train.batch_size = "
            f"{settings.batch_size}"
        )
    if batches < settings.accumulate:
        raise LaunchError(
            f"the training split has {batches} batches of {settings.batch_size} for each process, fewer than "
            f"train.accumulate = {settings.accumulate}"
        )


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Where wanted, compute with algorithms that give the same bits in every run on the same machine.

    An operation that has none raises instead of differing. bevdet_ops follows the same switch.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for, before its first use
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def memory_advice(settings: TrainConfig) -> Iterator[None]:
    """Turn the error of a full GPU into one that says which settings help.

    Raises:
        LaunchError: the memory of the GPU is full.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        gigabytes = torch.cuda.mem_get_info()[1] / 2**30
        advice = "lower train.batch_size (and raise train.accumulate as much, to learn the same)"
        if settings.batch_size == 1:
            advice = "make the images (data.input_size, data.short_side) or the model smaller"
        if not settings.activation_checkpointing:
            advice += " or set train.activation_checkpointing"
        raise LaunchError(
            f"a batch of {settings.batch_size} does not fit into the {gigabytes:.0f} GiB of the GPU: {advice}"
        ) from error
