"""What the handlers share: targets in, assignments and gradients out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bevdet_core.convert.layout import Layout
from bevdet_core.matching import Assignment


def split_targets(inputs: Mapping[str, np.ndarray], boxes: str, prefix: str = "") -> list[tuple[Tensor, Tensor]]:
    """(labels, boxes) of each image, from arrays that are concatenated over the batch."""
    counts = inputs[f"{prefix}targets/count"].tolist()
    labels = torch.from_numpy(inputs[f"{prefix}targets/labels"]).split(counts)
    return list(zip(labels, torch.from_numpy(inputs[f"{prefix}targets/{boxes}"]).split(counts), strict=True))


def match_outputs(assignment: Assignment, names: Sequence[str], batch_size: int) -> dict[str, np.ndarray]:
    """`match/<layer>/<image>/pred` and `target` of layers with the given names."""
    out = {}
    for layer, name in enumerate(names):
        for image in range(batch_size):
            own = assignment.images == image
            out[f"match/{name}/{image}/pred"] = assignment.queries[layer, own].numpy()
            out[f"match/{name}/{image}/target"] = assignment.targets[layer, own].numpy()
    return out


def gradient_outputs(model: nn.Module, layout: Layout) -> dict[str, np.ndarray]:
    """`grad/<key>` and `grad_norm/<key>` of every parameter that has a gradient, under its official name."""
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    out = {}
    for key, grad in layout.to_official(ours, copies=False).items():
        out[f"grad/{key}"] = grad.numpy()
        out[f"grad_norm/{key}"] = np.asarray(torch.linalg.vector_norm(grad.double()), np.float32)
    return out
