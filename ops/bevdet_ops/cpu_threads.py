"""Threads for the CPU kernels.

Not numba's: its OpenMP layer kills a forked process (a data-loader worker) and its own layer aborts when two Python
threads call it at once. Kernels here release the GIL and write disjoint parts of the result, so Python's threads do,
and no result depends on how many there are.
"""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

CHUNKS_PER_THREAD = 8  # a thread that is held up leaves its chunks to the others


def parallel_for(kernel: Callable[[int, int], None], items: int, nanoseconds: float) -> None:
    """Call ``kernel(begin, end)`` until every one of `items` was covered once.

    Args:
        kernel: Handles items begin..end; calls run at the same time.
        items: How many items there are.
        nanoseconds: Roughly how long they take together on one thread: small jobs are not worth waking threads for.
    """
    threads = min(torch.get_num_threads(), items, 1 + int(nanoseconds / 50_000))
    if threads <= 1:
        kernel(0, items)
        return
    chunk = -(-items // (threads * CHUNKS_PER_THREAD))
    begins = itertools.count(0, chunk)  # next() is atomic

    def work_off() -> None:
        while (begin := next(begins)) < items:
            kernel(begin, min(begin + chunk, items))

    helpers = [_executor().submit(work_off) for _ in range(threads - 1)]
    try:
        work_off()
    finally:
        for helper in helpers:
            if not helper.cancel():  # one that never started has nothing left to do
                helper.result()


_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(os.cpu_count() or 1, torch.get_num_threads()), "bevdet_ops")
        return _pool


def _forget_threads() -> None:
    """A forked child has none of its parent's threads, and maybe a lock that nobody will release."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
