"""Boxes from the cells of a bird's-eye view: where they lie, whose they are, and that queries start there."""

import pytest
import tiny
import torch

from bevdet_core.config import BevFormerConfig, Config, ConfigError
from bevdet_core.export.graphs import ring
from bevdet_core.models import build_criterion
from bevdet_core.models.bev_boxes import BevBoxHead
from bevdet_core.models.bev_encoder import BevGrid
from bevdet_core.structures import CameraRig, ImageBatch, Targets

# Four rows of 3 m along y, eight columns of 4 m along x; the lidar stands off the middle.
GRID = BevGrid((4, 8), (-8.0, -6.0, -1.0, 24.0, 6.0, 3.0), 2)


def head(num_proposals: int = 3) -> BevBoxHead:
    torch.manual_seed(0)
    return BevBoxHead(16, 3, GRID, num_proposals)


def targets(*places: tuple[float, float]) -> Targets:
    boxes = torch.tensor([[x, y, 0.5, 2, 4, 1.5, 0.3, 1, 2] for x, y in places]).reshape(-1, 9)
    return Targets(torch.arange(len(places)) % 3, boxes)


def test_a_cell_answers_with_a_box_code_beside_its_own_centre():
    network = head()
    torch.nn.init.zeros_(network.box_head.weight)
    answer = torch.tensor([0.5, -0.25, 0.1, 0.2, 0.7, 0.3, 0.6, 0.8, 3.0, 4.0])
    network.box_head.bias.data = answer
    codes = network(torch.randn(2, 32, 16)).codes
    assert codes.shape == (2, 1, 4, 8, 10)
    torch.testing.assert_close(codes[1, 0, 2, 3, :2], torch.tensor([6.0 + 0.5 * 4, 1.5 - 0.25 * 3]))
    torch.testing.assert_close(codes[1, 0, 2, 3, 2:], answer[2:])


def test_a_target_belongs_to_the_four_cells_around_its_centre():
    cells = head()(torch.randn(2, 32, 16))
    found = cells.paired([targets((7.0, 1.0), (-30.0, 0.0)), targets((-7.9, -5.9))])
    assert found.queries.tolist() == [1 * 8 + 3, 1 * 8 + 4, 2 * 8 + 3, 2 * 8 + 4, 32 + 0]  # beyond the grid: none
    torch.testing.assert_close(found.targets.boxes[[0, 4], :2], torch.tensor([[7.0, 1.0], [-7.9, -5.9]]))
    assert found.logits.shape == (1, 64, 3)
    assert len(cells.paired([targets(), targets()]).queries) == 0


def test_of_targets_that_share_cells_the_nearest_to_the_rig_has_them():
    found = head()(torch.randn(1, 32, 16)).paired([targets((8.5, 0.5), (8.0, 0.0))])
    assert (found.targets.boxes[:, 0] == 8.0).all()
    assert len(found.queries) == 4


def frames() -> ImageBatch:
    """Noise for the two cameras of the tiny detector."""
    images = torch.randn(1, 2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    return ImageBatch(images, torch.tensor([[[32, 64]] * 2]), CameraRig(ring(2, (32, 64), 0.1)[None]))


def test_queries_start_from_the_likeliest_cells():
    model = tiny.detector("bevformer_fusion").model
    seen = []
    model.bev_boxes.register_forward_hook(lambda _, __, cells: seen.append(cells))
    with torch.no_grad():
        predictions = model(frames())
    assert predictions.logits.shape[2] == 6 + 3 + 4  # learned, from the cameras' cells, from the view's
    starts = predictions.references[0][0, -4:, :2] * 102.4 - 51.2
    torch.testing.assert_close(starts, seen[0].best(4).codes[0, :, :2].clamp(-51.2, 51.2), atol=1e-3, rtol=0)


def test_cells_and_queries_learn_together():
    detector = tiny.detector("bevformer_fusion")
    model, batch = detector.model.train(), frames()
    batch.targets = [targets((2.0, 10.0))]
    losses = build_criterion(detector.config.model)(model(batch), batch.targets)
    losses["total"].backward()
    assert {"bev/loss_class", "bev/loss_box", "perspective/loss_box", "loss_box"} <= losses.keys()
    for name, parameter in model.bev_boxes.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_settings():
    with pytest.raises(ConfigError, match=r"model\.num_bev_proposals must be at least 0, got -1"):
        Config(BevFormerConfig(num_bev_proposals=-1))
