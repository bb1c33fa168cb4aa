"""The feature pyramid: its levels, and how each is made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bevdet_core.config import BackboneConfig, DeformableDetrConfig
from bevdet_core.models import build_model
from bevdet_core.models.neck import FPN


def test_levels_follow_the_published_recipe():
    torch.manual_seed(0)
    neck = FPN([4, 8], 6, num_levels=4)
    fine, coarse = torch.randn(2, 4, 7, 9), torch.randn(2, 8, 4, 5)
    lateral, output = neck.lateral_convs, neck.output_convs
    top = lateral[1](coarse)
    rows, columns = torch.tensor([0, 0, 1, 1, 2, 2, 3]), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4])
    expected = [output[0](lateral[0](fine) + top[:, :, rows][..., columns]), output[1](top)]
    expected.append(output[2](expected[1]))  # the first extra level takes the output as it is
    expected.append(output[3](F.relu(expected[2])))
    for ours, theirs in zip(neck([fine, coarse]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [tuple(level.shape[-2:]) for level in expected] == [(7, 9), (4, 5), (2, 3), (1, 2)]


def test_as_many_levels_as_maps():
    assert [tuple(f.shape) for f in FPN([4], 6, 1)([torch.zeros(1, 4, 3, 3)])] == [(1, 6, 3, 3)]


def test_fewer_levels_than_maps_are_the_finest():
    torch.manual_seed(0)
    neck = FPN([4, 8], 6, 1)
    fine, coarse = torch.randn(2, 4, 4, 6), torch.randn(2, 8, 2, 3)
    (level,) = neck([fine, coarse])
    merged = neck.lateral_convs[0](fine) + neck.lateral_convs[1](coarse).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(level, neck.output_convs[0](merged))
    assert len(neck.output_convs) == 1  # none that nothing would ever train


def test_maps_that_find_no_level_are_counted():
    config = DeformableDetrConfig(backbone=BackboneConfig(depth=18, width=8, out_stages=(2, 3, 4)), num_levels=2)
    with pytest.raises(ValueError, match="3 feature maps do not fit in num_levels = 2 levels"):
        build_model(config, 1)
