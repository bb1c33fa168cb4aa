"""The modules: official names, shapes and initial values; parity with the releases is in tests/test_parity.py."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bevdet_ops import ModulatedDeformConv2d, MSDeformAttn


def test_names_and_shapes_of_the_release() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in MSDeformAttn(256, 4, 8, 4).state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (256, 256),
        "sampling_offsets.bias": (256,),
        "attention_weights.weight": (128, 256),
        "attention_weights.bias": (128,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }


@pytest.mark.parametrize("heads", [4, 6, 8])
def test_initial_offsets_point_outwards(heads: int) -> None:
    attention = MSDeformAttn(24 * heads, 3, heads, 4)
    offsets = attention.sampling_offsets.bias.view(heads, 3, 4, 2)
    assert torch.count_nonzero(attention.sampling_offsets.weight) == 0
    for m in range(heads):
        x, y = math.cos(2 * math.pi * m / heads), math.sin(2 * math.pi * m / heads)
        longest = max(abs(x), abs(y))
        for point in range(4):
            wanted = torch.tensor([x, y]) / longest * (point + 1)
            torch.testing.assert_close(offsets[m, :, point], wanted.expand(3, 2), atol=1e-6, rtol=1e-5)


def test_a_global_xavier_pass_is_undone_by_reset_parameters() -> None:
    def model_with(reset: bool) -> nn.Module:
        torch.manual_seed(0)
        model = nn.ModuleList([MSDeformAttn(32, 2, 4, 2), nn.Linear(3, 4)])
        if reset:
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
            for module in model.modules():
                if isinstance(module, MSDeformAttn):
                    module.reset_parameters()
        return model

    fresh, kept = model_with(reset=False)[0], model_with(reset=True)[0]
    for name in ("sampling_offsets", "attention_weights"):
        assert torch.equal(getattr(kept, name).weight, getattr(fresh, name).weight)
        assert torch.equal(getattr(kept, name).bias, getattr(fresh, name).bias)
    bound = math.sqrt(6 / 64)
    assert 0.9 * bound < kept.value_proj.weight.abs().max() <= bound
    assert torch.count_nonzero(kept.output_proj.bias) == 0


@pytest.mark.parametrize("numbers", [2, 4])
def test_equals_the_module_of_transformers(numbers: int) -> None:
    deformable_detr = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    config = pytest.importorskip("transformers").DeformableDetrConfig(d_model=32, num_feature_levels=2)
    torch.manual_seed(0)
    theirs = deformable_detr.DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=3)
    ours = MSDeformAttn(32, 2, 4, 3)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    shapes = torch.tensor([[4, 6], [2, 3]])
    query, value, points = torch.randn(2, 7, 32), torch.randn(2, 30, 32), torch.rand(2, 7, 2, numbers)
    padding = torch.rand(2, 30) < 0.3
    wanted = theirs(
        query,
        attention_mask=~padding,
        encoder_hidden_states=value,
        reference_points=points,
        spatial_shapes=shapes,
        spatial_shapes_list=[tuple(shape) for shape in shapes.tolist()],
        level_start_index=torch.tensor([0, 24]),
    )[0]
    found = ours(query, points, value, shapes, torch.tensor([0, 24]), padding)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="multiple of n_heads"):
        MSDeformAttn(30, 4, 8, 4)


def test_convolution_starts_as_half_a_plain_one() -> None:
    torch.manual_seed(0)
    module = ModulatedDeformConv2d(8, 6, 3, stride=2, padding=1, groups=2, deform_groups=4)
    assert {name for name, _ in module.named_parameters()} == {
        "weight",
        "bias",
        "conv_offset.weight",
        "conv_offset.bias",
    }
    assert module.conv_offset.weight.shape == (3 * 4 * 9, 8, 3, 3)
    x = torch.randn(2, 8, 9, 10)
    plain = F.conv2d(x, module.weight, None, stride=2, padding=1, groups=2)
    torch.testing.assert_close(module(x), plain / 2)


@pytest.mark.parametrize(
    ("sizes", "message"), [({"groups": 3}, "groups=3 must divide"), ({"deform_groups": 3}, "deform_groups=3")]
)
def test_groups_must_divide_channels(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModulatedDeformConv2d(8, 6, 3, **sizes)
