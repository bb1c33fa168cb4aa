"""The example of ops/README.md runs, trains, and computes what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "ops" / "README.md"
SHAPES = [(16, 24), (8, 12)]


@pytest.fixture
def head() -> torch.nn.Module:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 1
    namespace: dict = {}
    exec(compile(blocks[0], str(README), "exec"), namespace)
    torch.manual_seed(0)
    return namespace["KeypointAggregation"](channels=32, heads=4, levels=2, keypoints=3)


def rig() -> torch.Tensor:
    """Two cameras of 192 x 128 pixels, looking forward along x and backward."""
    intrinsics = torch.tensor([[90.0, 0, 96, 0], [0, 90, 64, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    forward = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    backward = torch.tensor([[0.0, 1, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    return (intrinsics @ torch.stack((forward, backward))).unsqueeze(0)


def test_example_trains(head: torch.nn.Module) -> None:
    query = torch.randn(1, 5, 32)
    centre = torch.tensor([[[10.0, 0, 0], [12, 2, 1], [-10, 0, 0], [-12, 3, 0], [8, 1, 0]]])
    features, target = torch.randn(1, 2, 480, 32), torch.randn(1, 5, 32)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = (head(query, centre, features, SHAPES, rig(), (128, 192)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert head.places.weight.grad.abs().sum() > 0
    assert losses[-1] < losses[0] / 2


def test_a_query_that_nobody_sees_stays_as_it_is(head: torch.nn.Module) -> None:
    query = torch.randn(1, 1, 32)
    above = torch.tensor([[[0.0, 0.0, 500.0]]])
    output = head(query, above, torch.randn(1, 2, 480, 32), SHAPES, rig(), (128, 192))
    torch.testing.assert_close(output, query + head.output.bias)
