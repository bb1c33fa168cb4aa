"""Threads for the CPU kernels.

Not numba's: its OpenMP layer kills a forked process (a data-loader worker) and its own layer aborts when two Python
threads call it at once. Kernels here release the GIL and write disjoint parts of the result, so that any threads will
do, and no result depends on how many there are.

The best threads are torch's own: they spin for milliseconds after each of torch's operators, and others would have to
share the cores with them. Where torch's OpenMP library cannot be found, and in forked processes, which it does not
outlive, Python's threads take their place.
"""

import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

CHUNKS_PER_THREAD = 8  # a thread that is held up leaves its chunks to the others
NANOSECONDS_PER_THREAD = 50_000  # of work that are worth waking a thread for


def parallel_for(kernel: Callable[[int, int], None], items: int, nanoseconds: float) -> None:
    """Call ``kernel(begin, end)`` until every one of `items` was covered once.

    Args:
        kernel: Handles items begin..end; calls run at the same time.
        items: How many items there are.
        nanoseconds: Roughly how long they take together on one thread.
    """
    threads = min(torch.get_num_threads(), items, 1 + int(nanoseconds / NANOSECONDS_PER_THREAD))
    if threads <= 1:
        kernel(0, items)
        return
    chunk = -(-items // (threads * CHUNKS_PER_THREAD))
    begins = itertools.count(0, chunk)  # next() is atomic
    errors: list[BaseException] = []

    def work_off(_: object = None) -> None:
        try:
            while (begin := next(begins)) < items and not errors:
                kernel(begin, min(begin + chunk, items))
        except BaseException as error:
            errors.append(error)

    openmp = None if _forked else _openmp()
    if openmp is not None:
        openmp.GOMP_parallel(_CALLBACK(work_off), None, threads, 0)
    else:
        helpers = [_executor().submit(work_off) for _ in range(threads - 1)]
        work_off()
        for helper in helpers:
            if not helper.cancel():  # one that never started has nothing left to do
                helper.result()
    if errors:
        raise errors[0]


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


@functools.cache
def _openmp() -> Any:
    """The OpenMP library that torch brought along, already loaded; None where it is not found."""
    found = [*Path(torch.__file__).parent.glob("lib/lib[gi]*omp*.so*")]
    if len(found) != 1:
        return None
    library = ctypes.CDLL(str(found[0]))
    if not hasattr(library, "GOMP_parallel"):
        return None
    library.GOMP_parallel.argtypes = (_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    library.GOMP_parallel.restype = None
    return library


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(os.cpu_count() or 1, torch.get_num_threads()), "bevdet_ops")
        return _pool


def _after_fork() -> None:
    """A forked child has none of its parent's threads, and maybe a lock that nobody will release."""
    global _forked, _lock, _pool
    _forked, _lock, _pool = True, threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
