"""Records of source msda-module: multi-scale deformable attention on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bevdet_ops import MSDeformAttn


def run(
    meta: dict[str, Any], inputs: dict[str, np.ndarray], state_dict: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Outputs with and without padding, and gradients with it, for references of 2 and of 4 numbers."""
    module = MSDeformAttn(**meta["config"])
    module.load_state_dict({key: torch.from_numpy(array) for key, array in state_dict.items()})
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    levels = tensors["spatial_shapes"].tolist(), tensors["level_start_index"].tolist()
    outputs = {}
    for case in sorted(name.removeprefix("reference/") for name in inputs if name.startswith("reference/")):
        module.zero_grad()
        query, value, reference = (
            tensors[name].clone().requires_grad_() for name in ("query", "value", f"reference/{case}")
        )
        output = module(query, reference, value, *levels, tensors["padding_mask"])
        (output * tensors["upstream"]).sum().backward()
        outputs[f"{case}/output"] = output
        outputs[f"{case}_nomask/output"] = module(query, reference, value, *levels)
        for name, tensor in (("query", query), ("value", value), ("reference", reference)):
            outputs[f"{case}/grad_input/{name}"] = tensor.grad
        for key, parameter in module.named_parameters():
            outputs[f"{case}/grad/{key}"] = parameter.grad.clone()
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}
