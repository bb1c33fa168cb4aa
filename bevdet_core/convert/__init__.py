"""Weights of the official releases in and out of this library."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..checkpoint import load_weights
from .detr3d import DETR3D
from .layout import Layout

__all__ = ["LAYOUTS", "Layout", "load_official"]

LAYOUTS: dict[str, Layout] = {"detr3d": DETR3D}


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor], layout: Layout, origin: str) -> None:
    """Load an official state dict into a model of this library.

    Batch counters of norms whose statistics are fixed have no place in either, and may be there or not.

    Raises:
        CheckpointError: keys that the release does not have, that are missing, or whose shapes differ, each by name.
    """
    own = model.state_dict()
    counters = {name: t for name, t in own.items() if name.endswith("num_batches_tracked")}
    taken = layout.from_official(state_dict)
    load_weights(
        model,
        counters | {n: t for n, t in taken.items() if n in own or not n.endswith("num_batches_tracked")},
        origin,
    )
