"""Which back ends this machine has, and why not the others."""

from __future__ import annotations

import importlib


def backend_status() -> dict[str, str]:
    """What serves tensors here: back end name -> "available", or one sentence saying why it is not.

    >>> backend_status()["reference"]
    'available'
    """
    names = ("reference", "cpu", "cuda")
    return {name: importlib.import_module(f"bevdet_ops.{name}").unavailable() or "available" for name in names}
