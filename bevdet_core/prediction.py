"""From files to files: what `bevdet predict` and `bevdet visualize` do around a detector."""

from __future__ import annotations

import difflib
import glob
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from .config import Precision, load_config
from .data import build_dataset
from .data.file_names import file_name
from .data.nuscenes import NuScenesDataset
from .data.rig import write_frame
from .detections import Detections
from .detector import Detector
from .documents import listed
from .files import write_text
from .progress import track
from .visualize import draw_detections, draw_moments, draw_sample, follow, write_recording, write_video

FILM_SUFFIXES = (".mp4", ".gif", ".rrd")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class InputError(ValueError):
    """Inputs among others in which nothing could be detected; the message says which, and why."""


def expand_inputs(inputs: Sequence[str], detector: Detector) -> list[Path]:
    """The files that names, folders and patterns mean, each once, in a stable order.

    Of a folder, those that the detector takes: images, or frame files (see `data.rig`).

    Raises:
        FileNotFoundError: a name or a pattern without any such file.
    """
    suffixes = IMAGE_SUFFIXES if detector.takes_images else (".json",)
    files: dict[Path, None] = {}
    for text in inputs:
        if not text:
            raise FileNotFoundError("an input is empty: give the names of files, folders or patterns")
        path = Path(text)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
            if not found:
                kind = "image" if detector.takes_images else "frame file (.json)"
                raise FileNotFoundError(f"{text}: no {kind} in this folder, which {detector.config.model.name} needs")
        else:
            names = [text] if path.is_file() else sorted(glob.glob(text, recursive=True))
            found = [Path(name) for name in names if Path(name).is_file()]
            if not found:
                raise FileNotFoundError(f"{text}: no such file")
        files.update(dict.fromkeys(found))
    return list(files)


def predict_files(
    detector: Detector, files: Sequence[Path], out: Path, threshold: float = 0.3, batch_size: int = 1
) -> str:
    """Detect objects in every file; write a picture of each and one `predictions.json` into a folder.

    The JSON maps each file to its detections: {"label", "score", "box"}, where a box is
    (x0, y0, x1, y1) in pixels, or (x, y, z, w, l, h, yaw, vx, vy) in the lidar frame: metres, radians, m/s.

    Returns:
        A line that says what came out.

    Raises:
        InputError: files in which nothing could be detected. All others have their pictures and their entries.
    """
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    faults: list[str] = []
    taken: set[str] = set()
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    try:
        with closing(track(batches, "predicting", len(batches))) as shown:
            for path, found in chain.from_iterable(_predict_each(detector, batch, threshold) for batch in shown):
                if isinstance(found, Exception):
                    faults.append(str(found) if str(path) in str(found) else f"{path}: {found}")
                    continue
                draw_detections(found, _picture_name(out, path.stem, taken), threshold=threshold)
                results[str(path)] = [
                    {"label": detector.class_names[label], "score": score, "box": box}
                    for label, score, box in zip(
                        found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
                    )
                ]
    finally:  # when it is interrupted, too
        if results:
            write_text(out / "predictions.json", json.dumps(results, indent=1))
    told = (
        f"{sum(map(len, results.values()))} detections in {len(results)} inputs; pictures and predictions.json: {out}"
    )
    if len(faults) == len(files) == 1:
        raise InputError(faults[0])
    if faults:
        raise InputError(f"{told}\n{len(faults)} of {len(files)} inputs could not be used:{listed(faults)}")
    return told


def _predict_each(
    detector: Detector, files: Sequence[Path], threshold: float
) -> list[tuple[Path, Detections | ValueError | OSError]]:
    """What is found in each file, or why nothing can be: one that is damaged does not take its batch along."""
    try:
        return list(zip(files, detector.predict(files, threshold, len(files)), strict=True))
    except (ValueError, OSError) as error:
        if len(files) == 1:
            return [(files[0], error)]
        return [pair for path in files for pair in _predict_each(detector, [path], threshold)]


def draw_samples(
    source: Path,
    samples: Sequence[str],
    out: Path,
    threshold: float,
    frames: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
) -> None:
    """Draw validation samples: with their truth from a configuration, with predictions beside it from a checkpoint.

    Args:
        source: a configuration or a checkpoint.
        samples: tokens or numbers within the split.
        out: folder for the pictures.
        threshold: detections with a lower score are left out.
        frames: folder in which each sample becomes a frame file that `predict` takes, named as in `samples`.
        overrides: dotted settings.
        precision: of the detector; see `Detector.load`.

    Raises:
        ValueError: a sample that is not there, or one without cameras where frame files are wanted.
    """
    detector, dataset = _open(source, overrides, precision)
    out.mkdir(parents=True, exist_ok=True)
    for name in samples:
        sample = dataset[_index(dataset, name)]
        if frames is not None:
            write_frame(sample, frames / f"{file_name(name)}.json")
        path = out / f"{file_name(sample.token)}.png"
        if detector is None:
            draw_sample(sample, dataset.class_names, path)
        else:
            draw_detections(detector.predict(sample, threshold), path, truth=sample.targets, threshold=threshold)
        print(path)


def render_scene(
    source: Path,
    scene: str,
    out: Path,
    threshold: float = 0.3,
    width: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
) -> Path:
    """Render one scene of the validation split as a film or as a recording for rerun, with the paths of all objects.

    Args:
        source: a configuration, which shows the truth; or a checkpoint, which shows predictions beside it.
        scene: its name.
        out: an .mp4, .gif or .rrd file. Where no encoder for MP4 is present it becomes a GIF, which is told.
        threshold: detections with a lower score are left out.
        width: of the film in pixels; default: 1920, of a GIF 1280.
        overrides: dotted settings.
        precision: of the detector; see `Detector.load`.

    Returns:
        The file that was written.

    Raises:
        ValueError: another suffix, no such scene (with the nearest that exist), or a data set without scenes.
    """
    from .visualize.video import INSTALL_ENCODER, find_encoder

    if out.suffix not in FILM_SUFFIXES:
        raise ValueError(f"{out}: a scene becomes one of {', '.join(FILM_SUFFIXES)}")
    if out.suffix == ".mp4" and find_encoder() is None:
        out = out.with_suffix(".gif")
        print(f"no encoder for MP4 here, so this becomes {out}; to get one: {INSTALL_ENCODER}")
    detector, dataset = _open(source, overrides, precision)
    positions = _scene_positions(dataset, scene)
    times = [dataset.time(position) for position in positions]
    stream = None if detector is None else detector.stream()
    with closing(track(positions, "rendering", len(positions))) as shown:
        samples = (dataset[position] for position in shown)
        pairs = ((sample, None if stream is None else stream.predict(sample, threshold)) for sample in samples)
        moments = follow(pairs, dataset.class_names, threshold)
        if out.suffix == ".rrd":
            return write_recording(moments, out)
        width = width or (1280 if out.suffix == ".gif" else 1920)
        return write_video(draw_moments(moments, times, width), times, out)


def _open(source: Path, overrides: Mapping[str, Any] | None, precision: Precision) -> tuple[Detector | None, Any]:
    """The detector, if the source is one, and the validation split."""
    if source.suffix in (".yaml", ".yml"):
        return None, build_dataset(load_config(source, overrides).data, training=False)
    detector = Detector.load(source, overrides=overrides, precision=precision)
    return detector, build_dataset(detector.config.data, training=False)


def _scene_positions(dataset, scene: str) -> list[int]:
    """Where the samples of a scene are in the split, in the order of time."""
    if not isinstance(dataset, NuScenesDataset):
        raise ValueError(f"scene {scene!r}: plain images do not make scenes; --samples draws single ones")
    positions = [k for k in range(len(dataset)) if dataset.scene(k) == scene]
    if not positions:
        names = list(dict.fromkeys(map(dataset.scene, range(len(dataset)))))
        nearest = difflib.get_close_matches(scene, names, n=3, cutoff=0.4) or names[:5]
        raise ValueError(f"no scene {scene!r} in split {dataset.config.val_split!r}; nearest: {', '.join(nearest)}")
    return sorted(positions, key=dataset.time)


def _index(dataset, name: str) -> int:
    if name in dataset.tokens:
        return dataset.tokens.index(name)
    if name.isdigit() and int(name) < len(dataset):
        return int(name)
    raise ValueError(f"no sample {name!r}: give a token of the split, or a number from 0 to {len(dataset) - 1}")


def _picture_name(folder: Path, stem: str, taken: set[str]) -> Path:
    """A PNG name in a folder that no other picture of this call has."""
    name, number = stem, 1
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name)
    return folder / f"{name}.png"
