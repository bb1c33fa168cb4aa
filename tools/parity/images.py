"""What the handlers of 2D detectors share: one run of a model, and its outputs under the names of the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from bevdet_core.config import DeformableDetrConfig, DetrConfig
from bevdet_core.convert.layout import Layout, load_official
from bevdet_core.losses import CardinalityError, ClassError, SetCriterion
from bevdet_core.models import build_criterion, build_model
from bevdet_core.structures import ImageBatch, Predictions, Targets

from . import common

LOSSES = {"loss_class": "loss_ce", "loss_box": "loss_bbox", "loss_giou": "loss_giou"}  # our name, the records'
METRICS = ("cardinality_error", "class_error")


def run(
    config: DetrConfig | DeformableDetrConfig,
    num_classes: int,
    layout: Layout,
    meta: Mapping,
    inputs: Mapping[str, np.ndarray],
    state_dict: Mapping[str, np.ndarray],
    auxiliary: bool,
    proposals: bool = False,
    adapt: Callable[[nn.Module], None] | None = None,
) -> dict[str, np.ndarray]:
    """All outputs of a record of a 2D detector.

    Args:
        config: our settings of its model.
        num_classes: without "no object".
        layout: of its weights.
        meta: of the record.
        inputs: of the record.
        state_dict: under official names.
        auxiliary: whether the layers before the last have a loss.
        proposals: whether the total loss counts that of two-stage proposals.
        adapt: changes what the release does otherwise than our model.
    """
    model = build_model(config, num_classes)
    load_official(model, {key: torch.from_numpy(value) for key, value in state_dict.items()}, layout, meta["name"])
    if adapt is not None:
        adapt(model)
    batch = image_batch(inputs)
    seen: dict[str, object] = {}
    for part in ("backbone", "neck", "encoder", "decoder"):
        model.get_submodule(part).register_forward_hook(lambda _, __, out, part=part: seen.update({part: out}))
    predictions = model(batch)
    out = feature_outputs(seen["backbone"], seen["neck"], seen["encoder"], batch.mask[:, 0])
    out |= prediction_outputs(predictions)
    if isinstance(config, DeformableDetrConfig):
        references = [reference.detach() for reference in seen["decoder"].references]
        out["reference/init"] = references[0].numpy()
        out["reference/inter"] = torch.stack(references[1:]).numpy()
    out |= loss_outputs(build_criterion(config), predictions, inputs, auxiliary, proposals)
    out |= common.gradient_outputs(model, layout)
    if batch.original_sizes is not None:
        out |= decoded_outputs(model, predictions, batch)
    return out


def image_batch(inputs: Mapping[str, np.ndarray]) -> ImageBatch:
    """The images of a record, padded as they are there."""
    valid = ~torch.from_numpy(inputs["mask"])
    sizes = torch.stack([valid.any(2).sum(1), valid.any(1).sum(1)], -1)  # [B, 2] (height, width)
    originals = torch.from_numpy(inputs["target_sizes"])[:, None] if "target_sizes" in inputs else None
    return ImageBatch(torch.from_numpy(inputs["images"])[:, None], sizes[:, None], original_sizes=originals)


def feature_outputs(
    maps: list[Tensor], levels: list[Tensor] | Tensor, memory: Tensor, mask: Tensor
) -> dict[str, np.ndarray]:
    """What backbone, neck and encoder give."""
    levels = [levels] if isinstance(levels, Tensor) else levels
    masks = [nn.functional.interpolate(mask[:, None].float(), size=level.shape[-2:]) for level in levels]
    padding = torch.cat([m.flatten(1) for m in masks], 1).bool()
    return {
        **{f"backbone/{i}": m[:, :8].detach().numpy() for i, m in enumerate(maps)},
        "spatial_shapes": np.array([level.shape[-2:] for level in levels]),
        "memory_mask": padding.numpy(),
        "memory": memory.detach().masked_fill(padding[..., None], 0.0).numpy(),
    }


def prediction_outputs(predictions: Predictions) -> dict[str, np.ndarray]:
    """What the decoder and the heads give."""
    logits, boxes = predictions.logits.detach().numpy(), predictions.boxes.detach().numpy()
    out = {"hs": predictions.hidden.detach().numpy(), "pred_logits": logits[-1], "pred_boxes": boxes[-1]}
    for layer in range(len(logits) - 1):
        out[f"aux/{layer}/pred_logits"], out[f"aux/{layer}/pred_boxes"] = logits[layer], boxes[layer]
    if predictions.proposals is not None:
        out["enc/pred_logits"] = predictions.proposals.logits[0].detach().numpy()
        out["enc/pred_boxes"] = predictions.proposals.boxes[0].detach().numpy()
    return out


def loss_outputs(
    criterion: SetCriterion,
    predictions: Predictions,
    inputs: Mapping[str, np.ndarray],
    auxiliary: bool,
    proposals: bool,
) -> dict[str, np.ndarray]:
    """Assignment and losses; fills the gradients. The flags are those of `run`."""
    targets = [Targets(labels, boxes) for labels, boxes in common.split_targets(inputs, "boxes")]
    last = len(predictions.logits) - 1
    first = 0 if auxiliary else last
    supervised = replace(predictions, logits=predictions.logits[first:], boxes=predictions.boxes[first:])
    sets = criterion.layer_sets(supervised, targets)
    assignments = criterion.matcher(sets)
    counted = slice(None) if proposals else slice(1)  # the proposals come after the decoder's layers
    total = criterion.losses(sets[counted], assignments[counted])["total"]
    total.backward(retain_graph=True)
    out = {"loss/total": total.detach().numpy()}

    # The records hold losses without their weights, and a metric that takes the last class for "no object".
    terms = [replace(term, weight=1.0) for term in criterion.loss_terms if term.weight is not None]
    terms += [CardinalityError(), ClassError()]
    losses = SetCriterion(criterion.matcher, terms).losses(sets, assignments)
    names = LOSSES | {name: name for name in METRICS}
    for ours, theirs in names.items():
        out[f"loss/{theirs}"] = losses[ours].numpy()
        for layer in range(first, last):
            out[f"loss/{theirs}_{layer}"] = losses[f"layer{layer}/{ours}"].numpy()
        if predictions.proposals is not None:
            out[f"loss/{theirs}_enc"] = losses[f"proposals/{ours}"].numpy()
    out |= common.match_outputs(assignments[0], [str(layer) for layer in range(first, last + 1)], len(targets))
    if predictions.proposals is not None:
        out |= common.match_outputs(assignments[1], ["enc"], len(targets))
    return out


def decoded_outputs(model: nn.Module, predictions: Predictions, batch: ImageBatch) -> dict[str, np.ndarray]:
    """Detections of the last layer."""
    out = {}
    for image, found in enumerate(model.decode(predictions, batch)):
        for name, values in zip(("scores", "labels", "boxes"), found, strict=True):
            out[f"decoded/{image}/{name}"] = values.numpy()
    return out
