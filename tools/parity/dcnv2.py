"""Records of source dcnv2-module: modulated deformable convolution on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bevdet_ops import ModulatedDeformConv2d


def run(
    meta: dict[str, Any], inputs: dict[str, np.ndarray], state_dict: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The output and the gradients of input and parameters."""
    module = ModulatedDeformConv2d(**meta["config"])
    module.load_state_dict({key: torch.from_numpy(array) for key, array in state_dict.items()})
    x = torch.from_numpy(inputs["x"]).requires_grad_()
    output = module(x)
    (output * torch.from_numpy(inputs["upstream"])).sum().backward()
    outputs = {"output": output, "grad_input/x": x.grad}
    outputs |= {f"grad/{key}": parameter.grad for key, parameter in module.named_parameters()}
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}
