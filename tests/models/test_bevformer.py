"""BEVFormer: what a cell sees, what it remembers, and in which order frames may come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevdet_core.config import BackboneConfig, BevFormerConfig, Config, ConfigError, PixelConfig
from bevdet_core.geometry import pose, project_points, yaw_to_quaternion
from bevdet_core.models import build_criterion, build_model
from bevdet_core.models.bev_attention import SpatialCrossAttention, TemporalSelfAttention
from bevdet_core.models.bev_encoder import BevGrid
from bevdet_core.models.bev_fusion import BevFusion, PlacedView
from bevdet_core.models.bev_memory import BevMemory, SeenFrame, rounds
from bevdet_core.models.bevformer import BevFormer, PastView
from bevdet_core.models.ego_motion import FramePose, frame_poses, motion_between
from bevdet_core.structures import Camera, Predictions, Sample, Targets, collate

RANGE = (-20.0, -20.0, -3.0, 20.0, 20.0, 3.0)
CONFIG = BevFormerConfig(
    backbone=BackboneConfig(depth=18, width=8, norm="frozen", frozen_stages=0, out_stages=(3, 4)),
    num_cameras=2,
    num_levels=2,
    embed_dim=32,
    bev_shape=(8, 8),
    num_queries=12,
    encoder_layers=2,
    decoder_layers=2,
    num_heads=4,
    ffn_dim=32,
    dropout=0.0,
    queue_length=3,
    pc_range=RANGE,
    max_detections=20,
)
INTRINSIC = np.array([[40.0, 0, 48], [0, 40, 24], [0, 0, 1]])
LOOKS = (np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]))


def frame(scene: str = "one", step: int = 0, seconds: float = 0.5, **changes) -> Sample:
    """A rig of two cameras, forward and back, that drives ahead at 4 m/s in a gentle turn."""
    rng = np.random.default_rng([step, *scene.encode()])
    cameras = []
    for name, look in zip(("FRONT", "BACK"), LOOKS, strict=True):
        camera2lidar = np.eye(4)
        camera2lidar[:3, :3] = look
        cameras.append(Camera(name, INTRINSIC, camera2lidar))
    return Sample(
        [rng.integers(0, 256, (48, 96, 3), np.uint8) for _ in cameras],
        cameras,
        token=f"{scene}-{step}",
        lidar2global=pose(yaw_to_quaternion(0.1 * step), [100.0, 4 * seconds * step, 1.0]),
        timestamp=1000.0 + seconds * step,
        scene=scene,
    ).replace(**changes)


def batch_of(*samples: Sample):
    return collate(samples, PixelConfig())[0]


def make_model(**changes) -> BevFormer:
    """A detector whose every parameter matters: nothing is left at zero."""
    torch.manual_seed(0)
    model = build_model(replace(CONFIG, **changes), 4).eval()
    for parameter in model.head.parameters():
        if parameter.ndim == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return model


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def watch(model: BevFormer, samples, batch_size: int = 1) -> Tensor:
    """Logits [frames, Q, C] of frames in the order of time."""
    memory = model.new_memory()
    batches = [batch_of(*samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]
    return torch.cat([model(batch, memory).logits[-1] for batch in batches])


@torch.no_grad()
def alone(model: BevFormer, sample: Sample) -> Tensor:
    return model(batch_of(sample)).logits[-1, 0]


# --- what a cell sees


def test_spatial_attention_is_grid_sample_around_every_anchor_of_the_cameras_that_count():
    torch.manual_seed(0)
    layer = SpatialCrossAttention(32, 4, 2, 8)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    shapes = ((4, 6), (2, 3))
    maps = [torch.randn(2, 3, 32, *shape) for shape in shapes]
    tokens = torch.cat([m.flatten(3).transpose(2, 3) for m in maps], 2)
    query, locations, visible = torch.randn(2, 5, 32), torch.rand(2, 3, 5, 4, 2), torch.rand(2, 3, 5) > 0.5
    own = layer.attention
    offsets = own.sampling_offsets(query).view(2, 5, 4, 2, 8, 2)
    weights = own.attention_weights(query).view(2, 5, 4, 16).softmax(-1).view(2, 5, 4, 2, 8)
    total = torch.zeros(2, 5, 32)
    for b, n, q in visible.nonzero().tolist():
        for level, (height, width) in enumerate(shapes):
            value = own.value_proj(maps[level][b, n].flatten(1).T).T.view(4, 8, height, width)
            anchors = locations[b, n, q][torch.arange(8) % 4]  # [P, 2]
            places = anchors + offsets[b, q, :, level] / torch.tensor([width, height])  # [M, P, 2]
            sampled = F.grid_sample(value, 2 * places[:, None] - 1, align_corners=False)[:, :, 0]  # [M, D, P]
            total[b, q] += (sampled * weights[b, q, :, level, None]).sum(-1).flatten()
    expected = own.output_proj(total / visible.sum(1).clamp(min=1)[..., None])
    assert same(layer(query, tokens, shapes, locations, visible), expected)


def test_temporal_attention_without_a_past_takes_the_present_for_it():
    torch.manual_seed(0)
    layer = TemporalSelfAttention(32, 4, 4)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    query, query_pos, places = torch.randn(2, 12, 32), torch.randn(12, 32), torch.rand(2, 2, 12, 2)
    twice = torch.stack([query, query], 1)
    assert same(layer(query, query_pos, (3, 4), places), layer(query, query_pos, (3, 4), places, twice))
    other = layer(query, query_pos, (3, 4), places, torch.stack([query.flip(1), query], 1))
    assert not same(layer(query, query_pos, (3, 4), places), other)


def test_start_values_look_around_the_cell_in_all_directions():
    layer = TemporalSelfAttention(32, 4, 2)
    bias = layer.sampling_offsets.bias.view(4, 2, 2, 2)  # head, view, point, (x, y)
    torch.testing.assert_close(bias[0, 1], torch.tensor([[1.0, 0], [2, 0]]))
    torch.testing.assert_close(bias[3, 0], torch.tensor([[0.0, -1], [0, -2]]), atol=1e-6, rtol=0)


def test_pillars_stand_over_their_cells():
    grid = BevGrid((4, 8), (-8.0, -2.0, -1.0, 8.0, 2.0, 3.0), 4)
    pillars = grid.pillars.view(4, 8, 4, 3)
    torch.testing.assert_close(pillars[0, 0], torch.tensor([[-7.0, -1.5, z] for z in (-0.5, 0.5, 1.5, 2.5)]))
    torch.testing.assert_close(pillars[3, 7, 0], torch.tensor([7.0, 1.5, -0.5]))
    lidar2img = torch.from_numpy(np.array([[c.lidar2img for c in frame().cameras]], np.float32))
    locations, visible = grid.seen(lidar2img, (48, 96))
    pixels, _ = project_points(grid.pillars[None], lidar2img)
    shown = visible.flatten(2)
    torch.testing.assert_close(locations.flatten(2, 3)[shown] * torch.tensor([96.0, 48.0]), pixels[shown])
    assert not visible[0, 0, :8].any()  # behind the front camera
    assert visible[0, 1, 3].any()


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.25, 0.5)])
def test_a_turned_view_shows_what_stood_there(centre):
    """A quarter turn to the left about a point of the grid, in cells that are no squares."""
    grid = BevGrid((8, 4), (-8.0, -8.0, 0.0, 8.0, 8.0, 1.0), 1)
    bev = torch.arange(1.0, 33).view(1, 32, 1)
    turned = grid.turned(bev, torch.tensor([torch.pi / 2]), centre).view(8, 4)
    cells = bev.view(8, 4)
    pivot = (centre[0] * 16 - 8, centre[1] * 16 - 8)
    for row in range(8):
        for column in range(4):
            x, y = column * 4 - 6 - pivot[0], row * 2 - 7 - pivot[1]
            # a hair off the border between two cells, where the release's rounding decides
            source = np.floor(((-y + pivot[0] + 8 + 1e-9) / 4, (x + pivot[1] + 8 + 1e-9) / 2)).astype(int)
            inside = 0 <= source[0] < 4 and 0 <= source[1] < 8
            if abs((-y + pivot[0] + 8) / 4 % 1) > 1e-6 and abs((x + pivot[1] + 8) / 2 % 1) > 1e-6:
                assert turned[row, column] == (cells[source[1], source[0]] if inside else 0)
    whole = grid.turned(bev, torch.tensor([0.0]), centre)
    assert torch.equal(whole, bev)


def test_the_release_turns_oblong_cells_as_if_they_were_squares():
    grid = BevGrid((4, 4), (-8.0, -4.0, 0.0, 8.0, 4.0, 1.0), 1)  # cells of 4 m x 2 m
    bev = torch.arange(1.0, 17).view(1, 16, 1)
    quarter = torch.tensor([torch.pi / 2])
    turned = grid.turned(bev, quarter, (0.5, 0.5), (4, 4)).view(4, 4)
    assert torch.equal(turned, bev.view(4, 4).rot90())
    assert not torch.equal(turned, grid.turned(bev, quarter, (0.5, 0.5)).view(4, 4))
    assert make_model(release_quirks=True, bev_shape=(8, 4)).head.turn_extent == (4, 8)


def test_release_quirks_turn_about_a_fixed_cell():
    plain, quirky = make_model().head, make_model(release_quirks=True).head
    assert plain.turn_centre == (0.5, 0.5)
    assert quirky.turn_centre == (100 / 8, 100 / 8)
    off_centre = make_model(pc_range=(-10.0, -20.0, -3.0, 30.0, 20.0, 3.0)).head
    assert off_centre.turn_centre == (0.25, 0.5)


# --- batches


def test_frames_of_a_batch_do_not_see_each_other():
    """Rigs that differ in calibration and in cameras that work."""
    model = make_model()
    narrow = frame("two", 3)
    zoomed = [replace(camera, intrinsic=np.diag([1.3, 1.3, 1]) @ camera.intrinsic) for camera in narrow.cameras]
    narrow = narrow.replace(cameras=zoomed)
    broken = frame("three", 1)
    broken = broken.replace(cameras=[broken.cameras[0], replace(broken.cameras[1], hidden=True)])
    single = frame("four").replace(images=frame().images[:1], cameras=frame().cameras[:1])
    samples = [frame("one"), narrow, broken, single]
    with torch.no_grad():
        together = model(batch_of(*samples)).logits[-1]
    for sample, found in zip(samples, together, strict=True):
        assert same(found, alone(model, sample))


def test_a_rig_that_sees_nothing_gives_finite_answers():
    blind = frame()
    blind = blind.replace(cameras=[replace(camera, hidden=True) for camera in blind.cameras])
    model = make_model()
    found = watch(model, [blind, frame(step=1)])
    assert found.isfinite().all()
    assert not same(found[1], alone(model, frame(step=1)))  # what was remembered counts


def test_more_cameras_than_weights_are_refused():
    wide = frame().replace(images=frame().images * 2, cameras=frame().cameras * 2)
    with pytest.raises(ValueError, match="up to 2 cameras at 2 levels, got 4 cameras"):
        alone(make_model(), wide)


def test_convolutions_see_earlier_views_where_things_are_now():
    rows, columns, dim = 3, 4, 2
    fusion = BevFusion(dim, (rows, columns), 2)
    seen: list[Tensor] = []
    fusion.layers[0].register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    now, before, long_ago = torch.rand(3, 2, rows * columns, dim)
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    places = torch.stack([x + 1 / columns, y], -1).view(1, -1, 2).expand(2, -1, -1)  # the rig went on by one column
    still = torch.stack([x, y], -1).view(1, -1, 2).expand(2, -1, -1)
    fusion(now, [PlacedView(before, places, torch.tensor([True, False])), PlacedView(long_ago, still)])
    maps = seen[0].permute(0, 2, 3, 1)
    assert torch.equal(maps[..., :dim], now.unflatten(1, (rows, columns)))
    first, second, third = (fusion.reduce(view).unflatten(1, (rows, columns)) for view in (now, before, long_ago))
    torch.testing.assert_close(maps[0, :, :-1, dim], second[0, :, 1:, 0])
    assert not maps[0, :, -1, dim].any()  # from beyond the view
    torch.testing.assert_close(maps[1, ..., dim], first[1, ..., 0])  # has none before it
    torch.testing.assert_close(maps[..., dim + 1], third[..., 0])
    fusion(now)
    torch.testing.assert_close(seen[1][:, dim], first[..., 0])


def test_cells_lie_where_they_were_in_an_earlier_view():
    """Whatever the shape of the cells, and wherever the lidar stands in the grid."""
    grid = BevGrid((6, 8), (-8.0, -6.0, 0.0, 24.0, 6.0, 1.0), 1)
    before = pose(yaw_to_quaternion(0.3), [100.0, 50.0, 1.0])
    now = pose(yaw_to_quaternion(0.5), [104.0, 51.0, 1.0])
    motion = motion_between(FramePose("now", now), FramePose("before", before))
    found = grid.places_before(motion.shift, motion.turn)[0] * torch.tensor([32.0, 12.0]) - torch.tensor([8.0, 6.0])
    metres = grid.centres * torch.tensor([32.0, 12.0]) - torch.tensor([8.0, 6.0])
    points = np.concatenate([metres.numpy(), np.zeros((48, 1)), np.ones((48, 1))], 1)
    expected = (points @ (np.linalg.inv(before) @ now).T)[:, :2]
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), atol=1e-4, rtol=0)


# --- memory


BOTH_WAYS = pytest.mark.parametrize(
    "way",
    [{"temporal": "attention"}, {"temporal": "convolution", "history_steps": (1, 3)}],
    ids=["attention", "convolution"],
)


@BOTH_WAYS
def test_history_counts_and_its_results_do_not_depend_on_the_batch_size(way):
    model = make_model(**way)
    samples = [frame("one", k) for k in range(5)] + [frame("two", k) for k in range(2)] + [frame("three", 7)]
    one_by_one = watch(model, samples)
    for batch_size in (2, 3, 8):
        assert same(watch(model, samples, batch_size), one_by_one)
    assert same(one_by_one[0], alone(model, samples[0]))
    assert not same(one_by_one[1], alone(model, samples[1]))


@BOTH_WAYS
def test_no_history_leaks_from_one_scene_into_another(way):
    """Also where scenes alternate within a batch, and where one is a single frame."""
    model = make_model(**way)
    first, second = ([frame(scene, k) for k in range(3)] for scene in ("one", "two"))
    single = frame("single", 5)
    after = watch(model, [*first, single, *second])
    assert same(after[3], alone(model, single))
    assert same(after[4:], watch(model, second))
    mixed = [first[0], second[0], first[1], single, second[1], first[2], second[2]]
    found = watch(model, mixed, len(mixed))
    assert same(found[[0, 2, 5]], watch(model, first))
    assert same(found[[1, 4, 6]], watch(model, second))
    assert same(found[3], alone(model, single))


def test_what_was_seen_several_frames_ago_is_recalled():
    memory = BevMemory(2.0, (1, 3))
    for k, now in enumerate(frame_poses(batch_of(*(frame(step=k) for k in range(6))))):
        recalled = [None if seen is None else seen.bev for seen in memory.recall("lane", now)]
        assert recalled == [k - step if k >= step else None for step in (1, 3)]
        memory.keep("lane", SeenFrame(now, k))


@torch.no_grad()
def test_every_earlier_view_counts():
    model = make_model(temporal="convolution", history_steps=(1, 3))
    signals, still = torch.zeros(1, 18), (torch.zeros(1, 2), torch.zeros(1))
    one, three, other = (PastView(torch.randn(1, 64, 32), *still) for _ in range(3))
    found = [model.step(batch_of(frame()), signals, past)[1] for past in ([one, three], [one, other], [other, three])]
    assert not same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_gap_in_time_begins_anew():
    model = make_model(history_gap=2.0)
    late = watch(model, [frame(step=0), frame(step=5)])
    assert same(late[1], alone(model, frame(step=5)))
    early = watch(model, [frame(step=0), frame(step=4)])
    assert not same(early[1], alone(model, frame(step=4)))


@pytest.mark.parametrize("step", [0, 1])
def test_frames_out_of_order_and_of_one_time_are_refused(step):
    with pytest.raises(ValueError, match=rf"'one-{step}' .* does not come after frame 'one-1'.* order of time"):
        watch(make_model(), [frame(step=1), frame(step=step)])


def test_a_past_needs_poses_and_the_first_frame_none():
    model = make_model()
    lost = frame(step=0).replace(lidar2global=None)
    assert alone(model, lost).isfinite().all()
    with pytest.raises(ValueError, match="frame 'one-1' has no pose"):
        watch(model, [frame(step=0), frame(step=1).replace(lidar2global=None)])


def test_without_history_every_frame_stands_alone():
    model = make_model(queue_length=1)
    assert model.new_memory() is None
    samples = [frame(step=k) for k in range(2)]
    with torch.no_grad():
        found = model(batch_of(samples[1].replace(history=[samples[0]]))).logits[-1, 0]
    assert same(found, alone(model, samples[1]))


def test_the_order_of_rounds():
    assert rounds(["a", "a", "b", "a", "b"]) == [[0, 2], [1, 4], [3]]
    assert rounds(range(3)) == [[0, 1, 2]]


# --- the queue of training


def test_a_samples_own_history_is_what_a_stream_would_have_seen():
    """Batch items with two earlier frames, one, and none."""
    model = make_model()
    one, two, three = [frame("one", k) for k in range(3)], [frame("two", k) for k in range(2)], frame("three")
    with torch.no_grad():
        queue = batch_of(one[2].replace(history=one[:2]), three, two[1].replace(history=two[:1]))
        assert list(queue.history.owners) == [0, 0, 2]
        found = model(queue).logits[-1]
    assert same(found[0], watch(model, one)[2])
    assert same(found[1], alone(model, three))
    assert same(found[2], watch(model, two)[1])


def test_history_is_seen_in_evaluation_mode_and_without_gradients():
    model = make_model(dropout=0.5).train()
    seen = []
    encoder = model.head.encoder
    encoder.register_forward_hook(lambda module, _, bev: seen.append((module.training, bev.requires_grad)))
    model(batch_of(frame(step=2).replace(history=[frame(step=0), frame(step=1)])))
    assert seen == [(False, False), (False, False), (True, True)]
    assert model.training


def test_every_parameter_learns_from_a_queue():
    model, criterion = make_model().train(), build_criterion(CONFIG)
    batch = batch_of(frame(step=1).replace(history=[frame(step=0)]))
    targets = [Targets(torch.tensor([1]), torch.tensor([[2.0, 10, -0.5, 2, 4, 1.5, 0.3, 1, 0.5]]))]
    predictions = model(batch)
    assert isinstance(predictions, Predictions)
    criterion(predictions, targets)["total"].backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_settings_that_contradict_each_other():
    for changes, words in (
        ({"spatial_points": 6}, "spatial_points = 6 must be a multiple of model.pillar_points = 4"),
        ({"queue_length": 0}, "queue_length must be at least 1"),
        ({"bev_shape": (0, 4)}, "bev_shape"),
        ({"history_steps": (1, 2)}, r"attention looks at one view, model.history_steps \[1\], got \[1, 2\]"),
        ({"history_steps": (3, 1), "temporal": "convolution"}, "history_steps must begin with 1 and rise"),
    ):
        with pytest.raises(ConfigError, match=words):
            Config(replace(CONFIG, **changes))
