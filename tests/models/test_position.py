"""Position embeddings against their definition."""

from __future__ import annotations

import math

import pytest
import torch

from bevdet_core.models.position import (
    LearnedPositionEmbedding,
    SinePositionEmbedding,
    box_embedding,
    sine_embedding,
)


def test_sine_embedding_interleaves_sine_and_cosine_of_each_frequency():
    out = sine_embedding(torch.tensor([0.7]), 6)
    rates = [1.0, 10000 ** (-2 / 6), 10000 ** (-4 / 6)]
    wanted = [f(0.7 * rate) for rate in rates for f in (math.sin, math.cos)]
    assert out[0].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("centred", "row", "column"), [(True, 1.5 / 3, 0.5 / 4), (False, 2 / 3, 1 / 4)])
def test_positions_are_fractions_of_the_image_without_padding(centred, row, column):
    mask = torch.ones(1, 5, 7, dtype=torch.bool)
    mask[:, :3, :4] = False
    out = SinePositionEmbedding(8, centred)(mask)
    assert out.shape == (1, 5, 7, 8)
    angles = torch.tensor([row, column]) * 2 * math.pi
    torch.testing.assert_close(out[0, 1, 0], sine_embedding(angles, 4).flatten(), atol=1e-5, rtol=0)


def test_box_embedding_holds_one_number_after_the_other():
    box = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    out = box_embedding(box, 4)
    assert out.shape == (1, 16)
    torch.testing.assert_close(out[0, 8:12], sine_embedding(torch.tensor(0.3 * 2 * math.pi), 4))


def test_learned_positions_put_the_column_first():
    torch.manual_seed(0)
    embedding = LearnedPositionEmbedding(6)
    out = embedding(torch.zeros(2, 3, 4, dtype=torch.bool))
    assert out.shape == (2, 3, 4, 6)
    wanted = torch.cat([embedding.columns.weight[3], embedding.rows.weight[1]])
    assert torch.equal(out[1, 1, 3], wanted)


def test_positions_name_what_they_cannot_do():
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        SinePositionEmbedding(6, centred=True)
    with pytest.raises(ValueError, match="50 rows and 50 columns, the map has 51 x 2"):
        LearnedPositionEmbedding(4)(torch.zeros(1, 51, 2, dtype=torch.bool))
