"""Kernels compiled at the first call, and kept on disk for later processes."""

import functools
import hashlib
from pathlib import Path

from numba import njit


def cached_njit(function):
    """Compile a kernel; it runs without the GIL."""
    try:
        kernel = njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return njit(nogil=True, error_model="numpy")(function)
    # Of the sources numba looks at the kernel's own file alone, and would keep machine code of what that once called.
    kernel._cache._cache_file._source_stamp = _sources()  # type: ignore[attr-defined]
    return kernel


@functools.cache
def _sources() -> str:
    """A digest of all that kernels are made of."""
    files = sorted(Path(__file__).parent.glob("cpu*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
