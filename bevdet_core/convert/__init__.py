"""Weights of the official releases in and out of this library."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..checkpoint import load_weights
from .layout import Layout

__all__ = ["Layout", "load_official"]


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor], layout: Layout, origin: str) -> None:
    """Load an official state dict into a model of this library.

    Batch counters of norms whose statistics are fixed have no place in either, and may be there or not. A tensor that
    several layers share may be there once.

    Raises:
        CheckpointError: keys that the release does not have, that are missing, or whose shapes differ, each by name.
    """
    own = model.state_dict()
    counters = {name: t for name, t in own.items() if name.endswith("num_batches_tracked")}
    taken = layout.from_official(state_dict)
    taken = {n: t for n, t in taken.items() if n in own or not n.endswith("num_batches_tracked")}
    by_place = {own[name].data_ptr(): tensor for name, tensor in taken.items() if name in own}
    shared = {name: by_place[t.data_ptr()] for name, t in own.items() if t.numel() and t.data_ptr() in by_place}
    load_weights(model, counters | shared | taken, origin)
