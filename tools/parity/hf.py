"""DETR and Deformable DETR of `transformers`, from the arguments of their configurations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bevdet_core.convert.deformable_detr import hf_deformable_detr
from bevdet_core.convert.detr import HF_DETR
from bevdet_core.convert.hf_config import deformable_detr_config, detr_config

from . import images


def run(meta: dict, inputs: dict[str, np.ndarray], state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a `hf-deformable-detr` or `hf-detr` record."""
    arguments = meta["config"]
    for name in ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
        if arguments.get(name):
            raise ValueError(f"{name} must be 0 in a record, got {arguments[name]}")
    if meta["source"] == "hf-detr":
        config, layout = detr_config(arguments), HF_DETR
    else:
        config = deformable_detr_config(arguments)
        layout = hf_deformable_detr(config)
    auxiliary = arguments.get("auxiliary_loss", False)
    adapt = renormalise if auxiliary and meta["source"] == "hf-detr" else None
    outputs = images.run(config, arguments["num_labels"], layout, meta, inputs, state_dict, auxiliary, adapt)
    if meta["source"] == "hf-detr":
        outputs["hs"] = outputs["hs"][-1:]
    return outputs


def renormalise(model: nn.Module) -> None:
    """Make DETR's decoder do what that of `transformers` does with auxiliary losses on, and only then.

    Each layer hands its normalised output to the next one, and the last is normalised twice.
    """
    decoder = model.decoder

    def forward(query_pos: Tensor, memory: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        query = torch.zeros_like(query_pos)
        hidden = []
        for layer in decoder.layers:
            query = decoder.norm(layer(query, query_pos, memory, memory + positions, valid))
            hidden.append(query)
        return torch.stack([*hidden[:-1], decoder.norm(query)])

    decoder.forward = forward
