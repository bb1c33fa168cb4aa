"""DETR and Deformable DETR against `transformers`' models with the same random weights, through the converter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bevdet_core import Detector
from bevdet_core.cli import main
from bevdet_core.convert.release import from_release, to_release, write_release
from bevdet_core.models import build_criterion
from bevdet_core.models.detr import Detr
from bevdet_core.structures import ImageBatch, Targets

SIZES = ((97, 128), (128, 70))  # of the images of a batch, in a frame of 128 x 128
COMMON = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 11,
    "dropout": 0.0,
    "num_labels": 5,
    "class_cost": 2,
}
VARIANTS = {
    "detr": {},
    "detr-learned": {"position_embedding_type": "learned"},
    "deformable": {},
    "deformable-single-scale": {"num_feature_levels": 1, "encoder_n_points": 2},
    "deformable-learned-five-levels": {"position_embedding_type": "learned", "num_feature_levels": 5},
    "deformable-refine": {"with_box_refine": True},
    "deformable-two-stage": {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 13},
}


def hf_model(variant: str) -> torch.nn.Module:
    """A small model of `transformers` with weights that make every part matter."""
    import transformers

    torch.manual_seed(0)
    settings = COMMON | VARIANTS[variant]
    single = variant.startswith("detr") or settings.get("num_feature_levels") == 1
    backbone = transformers.ResNetConfig(
        embedding_size=12,
        hidden_sizes=[16, 24, 32, 64],
        depths=[1, 2, 1, 1],
        layer_type="basic" if variant == "deformable-refine" else "bottleneck",
        out_features=["stage4"] if single else ["stage2", "stage3", "stage4"],
    )
    if variant.startswith("detr"):
        config = transformers.DetrConfig(backbone_config=backbone, **settings)
        model = transformers.DetrForObjectDetection(config)
    else:
        config = transformers.DeformableDetrConfig(backbone_config=backbone, auxiliary_loss=True, **settings)
        model = transformers.DeformableDetrForObjectDetection(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif "embeddings" in name or name.endswith("level_embed"):
                tensor.normal_()
            elif tensor.ndim > 1:
                tensor.normal_(0.0, 1.5 / tensor[0].numel() ** 0.5)
            elif tensor.is_floating_point():
                tensor.normal_(0.0, 0.3)
    return model.eval()


def release_of(variant: str) -> str:
    return "hf-detr" if variant.startswith("detr") else "hf-deformable-detr"


def batch_of_two() -> ImageBatch:
    torch.manual_seed(1)
    sizes = torch.tensor(SIZES)[:, None]
    batch = ImageBatch(torch.randn(2, 1, 3, 128, 128), sizes, original_sizes=sizes)
    batch.images.masked_fill_(batch.mask[:, :, None], 0.0)
    return batch


@pytest.fixture(params=VARIANTS)
def pair(request, tmp_path: Path) -> tuple[torch.nn.Module, Detector]:
    """Their model and ours, which took its weights from the file that theirs wrote."""
    theirs = hf_model(request.param)
    theirs.save_pretrained(tmp_path / "theirs")
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(tmp_path / "theirs"), "--from", release_of(request.param), "--out", str(out)]) == 0
    return theirs, Detector.load(out, "cpu")


def test_same_outputs_losses_and_gradients_as_transformers(pair):
    theirs, model = pair[0], pair[1].model
    batch = batch_of_two()
    # In float64 rounding cannot hide a difference, but their DETR's loss is for float32 alone.
    dtype, tolerance = torch.float64, {"atol": 1e-5, "rtol": 1e-6}
    if isinstance(model, Detr):
        dtype, tolerance = torch.float32, {"atol": 5e-4, "rtol": 1e-4}
    theirs.to(dtype), model.to(dtype)
    batch = replace(batch, images=batch.images.to(dtype))
    ours = model(batch)
    targets = [
        Targets(torch.tensor([1, 4, 0]), torch.rand(3, 4, dtype=dtype) * 0.5 + 0.2),
        Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=dtype)),
    ]
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    wanted = theirs(batch.images[:, 0], ~batch.mask[:, 0], labels=labels)
    assert ours.logits[-1].std(1).mean() > 0.01  # queries differ, so agreement says something
    torch.testing.assert_close(ours.logits[-1], wanted.logits, **tolerance)
    torch.testing.assert_close(ours.boxes[-1], wanted.pred_boxes, **tolerance)
    for layer, auxiliary in enumerate(wanted.auxiliary_outputs or ()):
        torch.testing.assert_close(ours.logits[layer], auxiliary["logits"], **tolerance)
        torch.testing.assert_close(ours.boxes[layer], auxiliary["pred_boxes"], **tolerance)

    first = 0 if wanted.auxiliary_outputs else -1
    # Proposals have no loss in transformers.
    ours = replace(ours, logits=ours.logits[first:], boxes=ours.boxes[first:], proposals=None)
    total = build_criterion(pair[1].config.model)(ours, targets)["total"]
    torch.testing.assert_close(total, wanted.loss, **tolerance)
    total.backward()
    wanted.loss.backward()
    gradient = model.get_parameter("encoder.layers.0.ffn.linear1.weight").grad
    name = next(n for n, _ in theirs.named_parameters() if "encoder.layers.0." in n and n.endswith("fc1.weight"))
    torch.testing.assert_close(gradient, theirs.get_parameter(name).grad, **tolerance)


# Learned positions come in under the names of any version of transformers, and go out under those of version 4.
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if "learned" not in variant])
def test_weights_go_back_to_the_file_that_they_came_from(variant: str, tmp_path: Path):
    from safetensors.torch import load_file

    theirs = hf_model(variant)
    theirs.save_pretrained(tmp_path)
    official = to_release(from_release(tmp_path, release_of(variant)), release_of(variant))
    for key, tensor in load_file(tmp_path / "model.safetensors").items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(official[key], tensor), key
    write_release(official, release_of(variant), tmp_path / "model.safetensors")
    again = type(theirs).from_pretrained(tmp_path).state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again[name], tensor), name
