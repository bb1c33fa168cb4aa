"""DETR and Deformable DETR of `transformers`, from the arguments of their configurations."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from bevdet_core.convert.deformable_detr import hf_deformable_detr
from bevdet_core.convert.detr import HF_DETR
from bevdet_core.convert.hf_config import deformable_detr_config, detr_config
from bevdet_core.convert.layout import Layout
from bevdet_core.convert.resnet import torchvision_resnet

from . import images
from .settings import check_settings

BACKBONE = "model.backbone.conv_encoder.model."
READ = (
    "backbone_config", "backbone", "use_timm_backbone", "dilation", "d_model", "num_queries", "encoder_layers",
    "decoder_layers", "encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim",
    "position_embedding_type", "class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient",
    "giou_loss_coefficient", "auxiliary_loss", "num_labels", "dropout", "attention_dropout", "activation_dropout",
    "encoder_layerdrop", "decoder_layerdrop",
)  # fmt: skip
READ_BY_DETR = ("eos_coefficient",)
READ_BY_DEFORMABLE_DETR = (
    "num_feature_levels", "encoder_n_points", "decoder_n_points", "two_stage", "two_stage_num_proposals",
    "with_box_refine", "focal_alpha",
)  # fmt: skip
READ_BACKBONE = (
    "embedding_size", "hidden_sizes", "depths", "layer_type", "hidden_act", "downsample_in_first_stage",
    "downsample_in_bottleneck", "out_features", "out_indices", "backbone",
)  # fmt: skip
# What they start from, how they are run, and the losses of masks; no loss of these has a class "no object" to weigh.
INERT = (
    "init_std", "init_xavier_std", "use_pretrained_backbone", "max_position_embeddings", "disable_custom_kernels",
    "return_intermediate", "mask_loss_coefficient", "dice_loss_coefficient", "eos_coefficient", "model_type",
    "id2label", "label2id", "architectures", "torch_dtype", "dtype", "transformers_version", "stage_names",
)  # fmt: skip


def run(meta: dict, inputs: dict[str, np.ndarray], state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a `hf-deformable-detr` or `hf-detr` record."""
    arguments = meta["config"]
    for name in ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
        if arguments.get(name):
            raise ValueError(f"{name} must be 0 in a record, got {arguments[name]}")
    check_settings(
        arguments,
        "config",
        (*READ, *(READ_BY_DETR if meta["source"] == "hf-detr" else READ_BY_DEFORMABLE_DETR)),
        {"num_channels": 3, "activation_function": "relu", "is_encoder_decoder": True},
        INERT,
    )
    if arguments.get("backbone_config"):
        check_settings(
            arguments["backbone_config"], "config.backbone_config", READ_BACKBONE, {"num_channels": 3}, INERT
        )
    if meta["source"] == "hf-detr":
        config, layout = detr_config(arguments), HF_DETR
    else:
        config = deformable_detr_config(arguments)
        layout = hf_deformable_detr(config)
    auxiliary = arguments.get("auxiliary_loss", False)
    adapt = renormalise if auxiliary and meta["source"] == "hf-detr" else None
    layout = named_as(layout, state_dict)
    outputs = images.run(config, arguments["num_labels"], layout, meta, inputs, state_dict, auxiliary, adapt=adapt)
    if meta["source"] == "hf-detr":
        outputs["hs"] = outputs["hs"][-1:]
    return outputs


def named_as(layout: Layout, state_dict: Container[str]) -> Layout:
    """The layout that names gradients as a record does whose backbone is timm's."""
    if f"{BACKBONE}conv1.weight" not in state_dict:
        return layout
    return replace(layout, rules=(*torchvision_resnet(BACKBONE), *layout.rules))


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
