"""A scene as a recording for the rerun viewer: images, cameras, boxes and paths, in space and time."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..files import written_aside
from ..geometry import yaw_to_quaternion
from ..structures import Sample
from .style import INK, Objects
from .tracks import Moment

if TYPE_CHECKING:
    import rerun


def write_recording(moments: Iterable[Moment], path: str | Path) -> Path:
    """Write a scene as an .rrd file; `rerun FILE` shows it.

    The world is the lidar frame of the first sample, metres. `world/rig` moves in it and carries the cameras with their
    images; `world/rig/predicted` and `world/rig/truth` hold boxes, named and coloured as in pictures, and their trails;
    `world/path` is where the rig was. Times are those of the samples.

    Args:
        moments: of one scene, as `tracks.follow` gives them.
        path: the file; complete or absent at any moment.

    Raises:
        ImportError: rerun-sdk is not installed, or does not work; the message says how to get it.
    """
    rr = _rerun()
    path = Path(path)
    first2global: np.ndarray | None = None
    way: list[np.ndarray] = []
    with written_aside(path) as aside:
        recording = rr.RecordingStream("bevdet")
        recording.save(aside)
        for moment in moments:
            sample = moment.sample
            if first2global is None:
                first2global = moment.pose
                _set_the_scene(rr, recording, sample)
            recording.set_time("time", timestamp=sample.timestamp)
            # Relative to the first frame: rerun computes in float32, which places kilometres away do not fit into.
            lidar2world = np.linalg.inv(first2global) @ moment.pose
            way.append(lidar2world[:3, 3])
            recording.log("world/rig", rr.Transform3D(translation=lidar2world[:3, 3], mat3x3=lidar2world[:3, :3]))
            recording.log("world/path", rr.LineStrips3D([way], colors=[INK]))
            _log_cameras(rr, recording, sample)
            for objects in moment.layers:
                _log_objects(rr, recording, objects)
        recording.flush(blocking=True)
        recording.disconnect()
    return path


def _rerun() -> ModuleType:
    install = "pip install 'bevdet-core[viz]'"
    try:
        import rerun
    except ModuleNotFoundError:
        raise ImportError(f".rrd needs the package rerun-sdk, which is not installed: {install}") from None
    except ImportError as error:  # pyarrow and numpy of versions that do not fit
        raise ImportError(f".rrd needs the package rerun-sdk, which does not load here: {error}; {install}") from error
    if not hasattr(rerun, "RecordingStream"):
        raise ImportError(f".rrd needs the package rerun-sdk; what is installed under its name is another: {install}")
    return rerun


def _set_the_scene(rr: ModuleType, recording: rerun.RecordingStream, sample: Sample) -> None:
    """How the viewer lays it out: the world above, the cameras below."""
    names = [camera.name for camera in sample.cameras or ()]
    views = [rr.blueprint.Spatial2DView(origin=f"world/rig/{name}", name=name) for name in names]
    world = rr.blueprint.Spatial3DView(origin="world", name=sample.scene or "scene")
    layout = rr.blueprint.Vertical(world, rr.blueprint.Grid(*views), row_shares=[3, 2])
    recording.send_blueprint(rr.blueprint.Blueprint(layout))
    recording.log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)


def _log_cameras(rr: ModuleType, recording: rerun.RecordingStream, sample: Sample) -> None:
    for camera, image in zip(sample.cameras or (), sample.images, strict=True):
        entity = f"world/rig/{camera.name}"
        pose = camera.camera2lidar
        recording.log(entity, rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        height, width = image.shape[:2]
        recording.log(
            entity,
            rr.Pinhole(image_from_camera=camera.intrinsic, width=width, height=height, image_plane_distance=2.0),
        )
        packed = io.BytesIO()
        Image.fromarray(image).save(packed, "JPEG", quality=90)
        recording.log(entity, rr.EncodedImage(contents=packed.getvalue(), media_type="image/jpeg"))


def _log_objects(rr: ModuleType, recording: rerun.RecordingStream, objects: Objects) -> None:
    """Boxes and trails below the rig, whose frame they are in."""
    entity = "world/rig/truth" if objects.scores is None else "world/rig/predicted"
    boxes, everyone = objects.boxes, range(len(objects))
    colors = [objects.color(k) for k in everyone]
    recording.log(
        entity,
        rr.Boxes3D(
            centers=boxes[:, :3],
            half_sizes=boxes[:, [4, 3, 5]] / 2,
            quaternions=np.roll(yaw_to_quaternion(boxes[:, 6]), -1, axis=1),  # (x, y, z, w)
            colors=colors,
            labels=[objects.caption(k) for k in everyone],
            show_labels=False,
        ),
    )
    velocity = np.nan_to_num(boxes[:, 7:9])
    recording.log(
        f"{entity}/velocity",
        rr.Arrows3D(origins=boxes[:, :3], vectors=np.pad(velocity, ((0, 0), (0, 1))), colors=colors),
    )
    if objects.tracks is not None:
        past = [np.concatenate([trail[:, :3], boxes[k : k + 1, :3]]) for k, trail in enumerate(objects.trails)]
        recording.log(f"{entity}/trails", rr.LineStrips3D(past, colors=colors))
