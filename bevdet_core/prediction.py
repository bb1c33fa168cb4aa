"""From files to files: what `bevdet predict` and `bevdet visualize` do around a detector."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from .config import load_config
from .data import build_dataset
from .detector import Detector
from .visualize import draw_detections, draw_sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def expand_inputs(inputs: Sequence[str]) -> list[Path]:
    """The files that names, folders and patterns mean, each once, in a stable order.

    Raises:
        FileNotFoundError: a name or a pattern without any file.
    """
    files: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in (*IMAGE_SUFFIXES, ".json"))
        elif path.is_file():
            found = [path]
        else:
            found = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]
        if not found:
            raise FileNotFoundError(f"{text}: no such file, or no image or frame file in it")
        files.update(dict.fromkeys(found))
    return list(files)


def predict_files(
    detector: Detector, files: Sequence[Path], out: Path, threshold: float = 0.3, batch_size: int = 1
) -> None:
    """Detect objects in every file; write a picture of each and one `predictions.json` into a folder.

    The JSON maps each file to its detections: {"label", "score", "box"}, where a box is
    (x0, y0, x1, y1) in pixels, or (x, y, z, w, l, h, yaw, vx, vy) in the lidar frame: metres, radians, m/s.
    """
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    taken: set[str] = set()
    for start in track(range(0, len(files), batch_size), "predicting"):
        chosen = list(files[start : start + batch_size])
        for path, found in zip(chosen, detector.predict(chosen, threshold, batch_size), strict=True):
            draw_detections(found, _picture_name(out, path.stem, taken), threshold=threshold)
            results[str(path)] = [
                {"label": detector.class_names[label], "score": score, "box": box}
                for label, score, box in zip(
                    found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
                )
            ]
    (out / "predictions.json").write_text(json.dumps(results, indent=1))
    print(f"{sum(map(len, results.values()))} detections in {len(files)} inputs; pictures and predictions.json: {out}")


def draw_samples(
    source: Path, samples: Sequence[str], out: Path, threshold: float, overrides: Mapping[str, Any] | None = None
) -> None:
    """Draw validation samples: with their truth from a configuration, with predictions beside it from a checkpoint."""
    detector = None if source.suffix in (".yaml", ".yml") else Detector.load(source, overrides=overrides)
    config = load_config(source, overrides) if detector is None else detector.config
    dataset = build_dataset(config.data, training=False)
    out.mkdir(parents=True, exist_ok=True)
    for name in samples:
        sample = dataset[_index(dataset, name)]
        path = out / f"{sample.token}.png"
        if detector is None:
            draw_sample(sample, dataset.class_names, path)
        else:
            draw_detections(detector.predict(sample, threshold), path, truth=sample.targets, threshold=threshold)
        print(path)


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
