"""Geometry of the rasteriser: what a pixel shows is what projection says."""

from __future__ import annotations

import numpy as np
import pytest

from bevdet_core.data.synthetic.lidar import sweep
from bevdet_core.data.synthetic.mesh import Mesh, MeshBuilder
from bevdet_core.data.synthetic.render import Camera, Renderer
from bevdet_core.data.synthetic.rig import CAMERA_AXES, CAMERA_CHANNELS, quaternion, rotation_from_angles, sample_rig
from bevdet_core.data.synthetic.shapes import SHAPES
from bevdet_core.data.synthetic.weather import sample_ground, sample_light
from bevdet_core.data.synthetic.world import SIZES, sample_world


def renderer(meshes: list[Mesh], supersample: int = 1, seed: int = 0) -> Renderer:
    rng = np.random.default_rng(seed)
    return Renderer(meshes, sample_light(rng), sample_ground(rng, 30.0), supersample)


def camera(size: tuple[int, int] = (320, 180), height: float = 1.5, focal: float = 200.0) -> Camera:
    intrinsic = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
    return Camera(CAMERA_AXES, np.array([0.0, 0.0, height]), intrinsic, size)


def block(width: float, length: float, height: float) -> Mesh:
    builder = MeshBuilder()
    builder.box((-length / 2, length / 2), (-width / 2, width / 2), (0, height), (0.5, 0.5, 0.5))
    return builder.build()


def project(points: np.ndarray, view: Camera) -> np.ndarray:
    local = (points - view.position) @ view.rotation
    assert local[:, 2].min() > 0
    return (local @ view.intrinsic.T)[:, :2] / local[:, 2:]


def corners(pose: np.ndarray, size: tuple[float, float, float]) -> np.ndarray:
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (0, 2)])
    local = signs * np.array([size[1], size[0], size[2]]) / 2
    return local @ rotation_from_angles(0, 0, pose[3]).T + pose[:3]


@pytest.mark.parametrize("yaw", [0.0, 0.6, 2.5])
def test_a_block_covers_exactly_its_projection(yaw: float) -> None:
    view = camera()
    pose = np.array([9.0, 1.0, 0.0, yaw])
    picture = renderer([block(2.0, 4.0, 1.6)]).picture(view, pose[None])
    rows, columns = np.nonzero(picture.solids == 0)
    outline = project(corners(pose, (2.0, 4.0, 1.6)), view)
    low, high = outline.min(0), outline.max(0)
    assert columns.min() == pytest.approx(low[0], abs=1.0)
    assert columns.max() + 1 == pytest.approx(high[0], abs=1.0)
    assert rows.min() == pytest.approx(low[1], abs=1.0)
    assert rows.max() + 1 == pytest.approx(high[1], abs=1.0)


def test_a_near_block_hides_a_far_one() -> None:
    view = camera()
    poses = np.array([[8.0, 0, 0, 0], [16.0, 0, 0, 0], [16.0, 6.0, 0, 0]])
    hidden_first = renderer([block(3, 1, 3), block(1, 1, 1), block(1, 1, 1)]).picture(view, poses)
    assert hidden_first.visible[1] == 0
    assert hidden_first.covered[1] > 50
    assert hidden_first.visible[2] == hidden_first.covered[2] > 50
    reordered = renderer([block(1, 1, 1), block(3, 1, 3), block(1, 1, 1)]).picture(view, poses[[1, 0, 2]])
    assert np.array_equal(reordered.image, hidden_first.image)


def test_a_hidden_object_returns_no_lidar_points() -> None:
    poses = np.array([[16.0, 0, 0, 0], [16.0, 6.0, 0, 0], [8.0, 0, 0, 0]])
    scene = renderer([block(1, 1, 1), block(1, 1, 1), block(4, 1, 4)])
    cloud = sweep(scene, poses, 3, np.eye(3), np.array([0.0, 0, 1.8]), np.random.default_rng(0))
    counts = [(np.abs(cloud[:, :3] - [*pose[:2], 0.5]) < 0.51).all(1).sum() for pose in poses[:2]]
    assert counts[0] == 0
    assert counts[1] > 5


def test_lidar_points_lie_on_the_ground_or_on_a_surface() -> None:
    poses = np.array([[12.0, 3.0, 0, 0.4]])
    cloud = sweep(renderer([block(2, 4, 2)]), poses, 1, np.eye(3), np.array([0.0, 0, 1.8]), np.random.default_rng(0))
    local = (cloud[:, :3] - poses[0, :3]) @ rotation_from_angles(0, 0, 0.4)
    outside = np.abs(local - [0, 0, 1]) - [2, 1, 1]
    on_block = np.abs(outside.max(1)) < 1e-4
    assert on_block.sum() > 20
    assert np.abs(cloud[~on_block, 2]).max() < 1e-6


def test_a_wall_that_runs_past_the_camera_is_cut_at_the_near_plane() -> None:
    view = camera()
    picture = renderer([block(1, 10, 2)]).picture(view, np.array([[0.0, 1.5, 0, 0]]))  # its near side is y = 1, x to 5
    columns, rows = np.meshgrid(np.arange(320) + 0.5 - 160, np.arange(180) + 0.5 - 90)
    distance = 200.0 / np.maximum(-columns, 1e-9)  # along the axis where a pixel's ray meets y = 1
    height = 1.5 - rows / 200.0 * distance
    expected = (columns < 0) & (distance < 5) & (height > 0) & (height < 2)
    assert expected.sum() > 5000
    assert (expected != (picture.solids == 0)).sum() <= 4


def test_a_solid_around_the_camera_and_one_behind_it_are_not_seen() -> None:
    picture = renderer([block(2, 2, 2), block(9, 9, 9)]).picture(camera(), np.array([[-6.0, 0, 0, 0], [0, 0, 0, 0]]))
    assert picture.visible.tolist() == [0, 0]
    assert (picture.solids == -1).all()


def test_pixels_of_every_object_lie_inside_its_projected_box() -> None:
    rng = np.random.default_rng(3)
    world = sample_world(rng, 3.0)
    scene = Renderer(world.meshes(), world.light, world.ground, 1)
    time = 1.3
    poses = world.poses(time)
    ego = rotation_from_angles(*world.ego.angles(time))
    origin = np.array([*world.ego.position(time), 0.0])
    checked, shares = 0, []
    for sensor in sample_rig(rng, (400, 225)):
        if sensor.intrinsic is None:
            continue
        view = Camera(ego @ sensor.rotation, ego @ sensor.translation + origin, sensor.intrinsic, (400, 225))
        picture = scene.picture(view, poses)
        for index, actor in enumerate(world.actors):
            box = corners(poses[index], actor.size)
            if ((box - view.position) @ view.rotation)[:, 2].min() < 0.2:
                continue
            outline = project(box, view)
            rows, columns = np.nonzero(picture.solids == index)
            if len(rows) == 0:
                continue
            low, high = outline.min(0), outline.max(0)
            assert low[0] - 0.51 < columns.min()
            assert columns.max() + 0.49 < high[0]
            assert low[1] - 0.51 < rows.min()
            assert rows.max() + 0.49 < high[1]
            checked += 1
            inside = low.min() > 0 and high[0] < 400 and high[1] < 225
            if inside and picture.visible[index] == picture.covered[index] and len(rows) > 150:
                shares.append((np.ptp(columns) + 1) * (np.ptp(rows) + 1) / np.prod(high - low))
    assert checked >= 15
    assert len(shares) >= 4
    assert np.median(shares) > 0.8  # and they fill it: a mesh reaches the sides of its box


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_fill_their_box_and_are_closed(name: str) -> None:
    size = SIZES[name][0]
    extra = {"rider": True} if name in ("motorcycle", "bicycle") else {}
    mesh = SHAPES[name](np.random.default_rng(0), size, **extra)
    half = np.array([size[1], size[0], size[2]]) / 2
    reach = mesh.vertices - [0, 0, half[2]]
    assert np.abs(reach).max(0) == pytest.approx(half, abs=0.021)
    assert (np.abs(reach) < half).all()
    assert np.linalg.norm(mesh.normals, axis=1) == pytest.approx(1.0, abs=1e-5)
    total = np.zeros(3)
    for face, normal in enumerate(mesh.normals.astype(float)):
        loop = mesh.vertices[mesh.loops[mesh.loop_start[face] : mesh.loop_start[face + 1]]].astype(float)
        area = np.linalg.norm(np.cross(loop[1:-1] - loop[0], loop[2:] - loop[0]).sum(0)) / 2
        total += area * normal
    assert total == pytest.approx(0.0, abs=1e-3)  # the outward normals of a closed surface cancel


def test_supersampling_only_smooths() -> None:
    view = camera((160, 90))
    poses = np.array([[9.0, 0, 0, 0.5]])
    plain, smooth = (renderer([block(2, 4, 2)], supersample=s).picture(view, poses) for s in (1, 4))
    assert (plain.solids == smooth.solids).mean() > 0.99
    assert np.abs(plain.image.astype(int) - smooth.image).mean() < 3
    assert smooth.covered[0] == pytest.approx(16 * plain.covered[0], rel=0.05)


def test_shadows_darken_the_ground() -> None:
    view = camera()
    bare = renderer([]).picture(view, np.zeros((0, 4))).image.astype(int)
    scene = renderer([block(2, 2, 3)])
    picture = scene.picture(view, np.array([[12.0, 0, 0, 0]]))
    ground = picture.solids < 0
    change = picture.image.astype(int).sum(2) - bare.sum(2)
    assert (change[ground] <= 2).all()
    assert (change[ground] < -30).sum() > 50


def test_wrong_poses_are_named() -> None:
    with pytest.raises(ValueError, match=r"poses must be \[1, 4\] .* got \[2, 4\]"):
        renderer([block(1, 1, 1)]).picture(camera(), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="supersample must be at least 1, got 0"):
        renderer([], supersample=0)


def test_the_rig_looks_all_around() -> None:
    rig = sample_rig(np.random.default_rng(0), (800, 450))
    yaw = {s.channel: np.degrees(np.arctan2(s.rotation[1, 2], s.rotation[0, 2])) for s in rig[:6]}
    assert tuple(yaw) == CAMERA_CHANNELS
    expected = {"CAM_FRONT": 0, "CAM_FRONT_LEFT": 55, "CAM_BACK_LEFT": 109, "CAM_BACK_RIGHT": -110}
    for channel, angle in expected.items():
        assert yaw[channel] == pytest.approx(angle, abs=2)
    field = {s.channel: 2 * np.degrees(np.arctan(400 / s.intrinsic[0, 0])) for s in rig[:6] if s.intrinsic is not None}
    assert field["CAM_BACK"] == pytest.approx(89, abs=2)
    assert field["CAM_FRONT"] == pytest.approx(65, abs=2)


def test_quaternions_are_those_of_pyquaternion() -> None:
    pyquaternion = pytest.importorskip("pyquaternion")
    for angles in np.random.default_rng(0).uniform(-np.pi, np.pi, (50, 3)):
        rotation = rotation_from_angles(*angles)
        assert pyquaternion.Quaternion(quaternion(rotation)).rotation_matrix == pytest.approx(rotation, abs=1e-12)
