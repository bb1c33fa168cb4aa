"""Detectors as graphs: what is written, that it computes the same for any batch, and what is refused."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from bevdet_core import Detector, checkpoint, export
from bevdet_core.cli import main
from bevdet_core.data.rig import write_frame
from bevdet_core.export.graphs import graph_of
from bevdet_core.geometry import pose, yaw_to_quaternion
from bevdet_core.structures import Camera, Sample, collate

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
FULL_SIZE = [
    *("coco/detr_r50", "coco/deformable_detr_r50"),
    *("nuscenes/detr3d_r50", "nuscenes/petr_r50", "nuscenes/bevformer_tiny"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def exported(folder):
    """Detectors, and what became of them as ONNX; the first call exports."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = {}

    def get(name):
        if name not in done:
            made = tiny.detector(name)
            done[name] = made, export.export(made, folder / "new" / f"{name}.onnx")
        return done[name]

    return get


def these_now(*names):
    """All kinds of detectors; those not named wait for the long tests."""
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=[] if n in names else pytest.mark.soak) for n in tiny.MODELS]
    )


@these_now("two_stage", "detr3d_proposals", "petr", "bevformer")
def test_onnx_says_what_the_detector_says(exported, name):
    _, report = exported(name)
    assert max(report.difference.values()) < 1e-4
    assert report.difference.keys() == report.description["outputs"].keys()


@these_now("detr", "bevformer_alone")
def test_torch_export_says_what_the_detector_says(tmp_path, name):
    report = export.export(tiny.detector(name), tmp_path / "model.pt2")
    assert max(report.difference.values()) < 1e-4


@pytest.mark.soak  # minutes and up to 10 GiB of memory each
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", FULL_SIZE)
def test_detectors_of_full_size_are_exported(tmp_path, name, suffix):
    pytest.importorskip("onnxscript")
    settings = {"model.backbone.weights": None}
    if name.startswith("coco"):
        settings["data.classes"] = [f"class {i}" for i in range(80)]
    torch.manual_seed(0)
    made = Detector.load(ROOT / "configs" / f"{name}.yaml", "cpu", settings)
    report = export.export(made, tmp_path / f"model{suffix}")
    assert report.difference["scores"] < export.TOLERANCE  # boxes may be off by some roundings
    assert report.path.stat().st_size > 4 * sum(parameter.numel() for parameter in made.model.parameters())


def test_the_file_tells_what_a_user_has_to_know(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    made, report = exported("bevformer")
    description = json.loads(report.path.with_suffix(".json").read_text())
    assert description == report.description
    assert description["classes"] == list(tiny.NAMES)
    assert description["input_size"] == {"height": 32, "width": 64}
    assert description["inputs"]["images"]["shape"] == ["batch", 2, 3, 32, 64]
    assert description["outputs"]["bev"]["shape"] == ["batch", 24, 16]
    assert description["inputs"]["previous"]["shape"] == ["batch", 1, 24, 16]
    assert description["history_steps"] == [1]
    assert description["pixels"]["mean"] == list(made.config.model.pixels.mean)
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(tiny.NAMES)
    for name, port in description["inputs"].items():
        found = next(i for i in session.get_inputs() if i.name == name)
        assert found.shape[1:] == port["shape"][1:]
        assert isinstance(found.shape[0], str)


@pytest.mark.parametrize("name", ["detr3d_proposals", "petr", "bevformer"])
def test_a_camera_that_failed_is_not_read(exported, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    made, report = exported(name)
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    inputs = {k: v.numpy() for k, v in graph_of(made, (32, 64)).examples(2).items()}
    assert inputs["hidden"].tolist() == [[False, False], [False, True]]
    images = inputs["images"].copy()
    images[1, 1] *= -10
    for one, other in zip(session.run(None, inputs), session.run(None, inputs | {"images": images}), strict=True):
        np.testing.assert_array_equal(one, other)
    seen = inputs | {"hidden": np.zeros((2, 2), bool)}
    one, other = (session.run(["boxes"], seen | {"images": i})[0] for i in (inputs["images"], images))
    assert np.abs(one - other)[1].max() > 1e-3


def test_images_of_several_sizes_go_through_one_graph(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    made, report = exported("two_stage")
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    sizes = ((40, 30), (25, 60), (32, 32))
    pixels = [torch.randint(0, 255, (*size, 3), dtype=torch.uint8).numpy() for size in sizes]
    batch, _ = collate([Sample([image]) for image in pixels], made.config.model.pixels)
    _, boxes = session.run(None, {"images": batch.images[:, 0].numpy(), "sizes": batch.sizes[:, 0].numpy()})
    for found, corners, (height, width) in zip(made.detect(batch), boxes, sizes, strict=True):
        in_pixels = torch.from_numpy(corners) * torch.tensor([width, height, width, height])
        distance = torch.cdist(found.boxes, in_pixels, p=float("inf")).amin(1)
        assert distance.max() < 1e-2


def test_the_documented_examples_say_what_the_detector_says(exported, tmp_path, monkeypatch, capsys):
    """An image; and a drive, in which each frame sees the ones before."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    noise = lambda *shape: Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))  # noqa: E731
    noise(40, 60).save("photo.png")
    cameras = [Camera(name, np.array([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]]), np.eye(4)) for name in ("one", "two")]
    cameras[0].camera2lidar[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    cameras[1].camera2lidar[:3, :3] = [[0, 0, -1], [1, 0, 0], [0, -1, 0]]
    moments = [
        Sample(
            [np.asarray(noise(32, 64)) for _ in cameras],
            cameras,
            token=f"frame{i}",
            lidar2global=pose(yaw_to_quaternion(0.1 * i), [3.0 * i, 1.0, 0.0]),
            timestamp=10 + 0.5 * i,
        )
        for i in range(3)
    ]
    for name, graph in {"two_stage": "coco", "bevformer": "rig"}.items():
        _, report = exported(name)
        for suffix in (".onnx", ".json"):
            shutil.copy(report.path.with_suffix(suffix), graph + suffix)
    for moment in moments:
        write_frame(moment, f"{moment.token}.json")

    names: dict[str, Any] = {}
    exec(EXAMPLES[0].replace("> 0.3", "> 0"), names)
    assert "dog 0." in capsys.readouterr().out
    best = np.sort(names["scores"].ravel())[::-1].copy()
    torch.testing.assert_close(torch.from_numpy(best), exported("two_stage")[0].predict("photo.png").scores)

    exec(EXAMPLES[1].replace("> 0.3", "> 0"), names)
    assert " m ahead" in capsys.readouterr().out
    stream = exported("bevformer")[0].stream()
    last = [stream.predict(f"{moment.token}.json") for moment in moments][-1]
    forgetful = exported("bevformer")[0].predict("frame2.json")
    distances = [torch.cdist(x.boxes, torch.from_numpy(names["boxes"][0])).amin(1) for x in (last, forgetful)]
    assert len(last.boxes) > 0
    assert distances[0].max() < 1e-4
    assert distances[1].max() > 5e-4


class TestRefusals:
    @pytest.fixture
    def quick(self, monkeypatch):
        """A writer that takes no time, and gives an answer off by what the test says."""

        def install(error: float) -> None:
            def write(program, path, description):
                path.write_text("graph")
                made = export.graph_of(tiny.detector("detr"), (32, 64))

                def run(inputs):
                    answers = export.answers(made, inputs)
                    return {**answers, "scores": answers["scores"] + error}

                return run

            monkeypatch.setitem(export.WRITERS, ".pt2", write)
            monkeypatch.setattr(export, "trace", lambda graph: None)

        return install

    @pytest.fixture
    def run_folder(self, tmp_path):
        checkpoint.save(tmp_path / "run" / "model.safetensors", tiny.detector("detr").checkpoint())
        return str(tmp_path / "run")

    @pytest.mark.parametrize("error", [0.01, float("nan")])
    def test_a_graph_that_differs_is_not_kept(self, tmp_path, quick, error):
        quick(error)
        with pytest.raises(
            export.ExportError, match=rf"differs from the detector by {error} in scores at batch size 1"
        ):
            export.export(tiny.detector("detr"), tmp_path / "model.pt2", (32, 64))
        assert not list(tmp_path.iterdir())

    def test_a_difference_that_rounding_explains_is_told(self, run_folder, tmp_path, capsys, quick, monkeypatch):
        """Here every answer of the detector is farther from the first by a thousandth."""
        seen, answers = itertools.count(), export.answers

        def unsteady(graph, inputs):
            right = answers(graph, inputs)
            return {**right, "scores": right["scores"] + 0.001 * next(seen)}

        monkeypatch.setattr(export, "answers", unsteady)
        command = ["export", run_folder, "--out", str(tmp_path / "detr.pt2"), "--image_size", "64x32"]
        quick(0.02)
        assert main(command) == 1
        assert "by 0.022 in scores at batch size 1; 0.012 is allowed" in capsys.readouterr().err
        quick(0.0)
        assert main(command) == 0
        told = capsys.readouterr().out
        assert "scores 3.0e-03, boxes 0.0e+00; rounding alone makes 4.0e-03 in the scores of the detector" in told

    def test_the_command_tells_what_it_did(self, run_folder, tmp_path, capsys, quick):
        quick(0.0)
        out = tmp_path / "detr.pt2"
        assert main(["export", run_folder, "--out", str(out), "--image_size", "64x32"]) == 0
        told = capsys.readouterr().out
        assert str(out) in told
        assert "largest difference" in told
        assert json.loads(out.with_suffix(".json").read_text())["input_size"] == {"height": 32, "width": 64}

    def test_what_cannot_be_exported(self, run_folder, tmp_path, capsys, monkeypatch):
        assert main(["export", run_folder, "--out", str(tmp_path / "a.engine")]) == 1
        assert ".onnx or a .pt2" in capsys.readouterr().err
        monkeypatch.setattr("bevdet_core.extras.find_spec", lambda name: None)
        assert main(["export", run_folder, "--out", str(tmp_path / "a.onnx")]) == 1
        assert "pip install 'bevdet-core[export]'" in capsys.readouterr().err
        assert not list(tmp_path.glob("a.*"))

    def test_images_too_small_for_the_detector(self, tmp_path):
        with pytest.raises(ValueError, match="6 queries cannot be chosen from 5 encoder cells: use larger images"):
            export.export(tiny.detector("two_stage"), tmp_path / "model.pt2", (4, 12))
        assert not list(tmp_path.iterdir())


def test_queries_that_changed_places_are_compared_with_their_likes():
    generator = torch.Generator().manual_seed(0)
    ours = {"scores": torch.rand(2, 5, 3, generator=generator), "boxes": torch.rand(2, 5, 9, generator=generator)}
    order = torch.tensor([3, 0, 4, 1, 2])
    theirs = {**{name: value[:, order] for name, value in ours.items()}, "bev": torch.ones(2)}
    back = export.in_our_order(ours, theirs)
    assert torch.equal(back["scores"], ours["scores"])
    assert torch.equal(back["boxes"], ours["boxes"])
    assert torch.equal(back["bev"], theirs["bev"])


def test_headings_are_compared_the_short_way_round():
    graph = export.graph_of(tiny.detector("petr"), (32, 64))
    ours, theirs = torch.zeros(1, 1, 9), torch.zeros(1, 1, 9)
    ours[..., 6], theirs[..., 6] = 3.14159, -3.14159
    assert graph.difference("boxes", ours, theirs).max() < 1e-4
