"""Detectors as graphs: what is written, that it computes the same for any batch, and what is refused."""

import json

import pytest
import torch

from bevdet_core import Detector, export
from bevdet_core.cli import main
from bevdet_core.config import load_config
from bevdet_core.models import build_model
from bevdet_core.structures import Sample, collate

NAMES = ("car", "dog", "cat")
BACKBONE = {"depth": 18, "width": 8}
TINY = {"embed_dim": 32, "num_queries": 6, "encoder_layers": 1, "decoder_layers": 1, "num_heads": 4, "ffn_dim": 32}
COCO = {"name": "coco", "short_side": 40, "long_side": 60}
RIG = {
    "name": "nuscenes",
    "input_size": [32, 64],
    "cameras": ["CAM_FRONT", "CAM_BACK"],
    "classes": ["car", "truck", "bus"],
}
DETR3D = {
    "name": "detr3d",
    "backbone": {**BACKBONE, "out_stages": [4]},
    "num_levels": 1,
    "num_cameras": 2,
    "embed_dim": 16,
    "num_queries": 8,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_dim": 16,
}
MODELS = {
    "detr": {"model": {"name": "detr", "backbone": {**BACKBONE, "out_stages": [4]}, **TINY}, "data": COCO},
    "deformable_detr": {"model": {"name": "deformable_detr", "backbone": BACKBONE, **TINY}, "data": COCO},
    "two_stage": {
        "model": {"name": "deformable_detr", "backbone": BACKBONE, **TINY, "refine": True, "two_stage": True},
        "data": COCO,
    },
    "detr3d": {"model": DETR3D, "data": RIG},
}


def detector(name: str) -> Detector:
    torch.manual_seed(0)
    config = load_config(MODELS[name])
    return Detector(build_model(config.model, len(NAMES)), config, NAMES)


@pytest.mark.parametrize("name", ["detr", "two_stage", "detr3d"])
def test_every_model_compiles_in_one_graph(name):
    made = detector(name)
    graph = export.graph_of(made)
    inputs = export.example_inputs(made.config, (32, 64), 2)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(graph, backend="eager", fullgraph=True)(**inputs)
        for ours, theirs in zip(graph(**inputs), compiled, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_onnx_says_what_the_detector_says(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = detector("detr3d")
    path = tmp_path / "new" / "model.onnx"
    report = export.export(made, path)
    assert max(report.difference.values()) < 1e-4
    description = json.loads(path.with_suffix(".json").read_text())
    assert description == report.description
    assert description["classes"] == list(NAMES)
    assert description["input_size"] == {"height": 32, "width": 64}
    assert description["inputs"]["images"]["shape"] == ["batch", 2, 3, 32, 64]
    assert description["pixels"]["mean"] == list(made.config.model.pixels.mean)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(NAMES)
    inputs = export.example_inputs(made.config, (32, 64), 5)
    scores, boxes = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert scores.shape == (5, 8, 3)
    assert boxes.shape == (5, 8, 9)
    with torch.no_grad():
        predictions = made.model(export.RigGraph.batch(**inputs))
    for b, (found, labels, where) in enumerate(made.model.decode(predictions, None)):
        best = int(scores[b].argmax())
        assert labels[0] == best % 3
        torch.testing.assert_close(torch.tensor(scores[b].max()), found[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.from_numpy(boxes[b, best // 3]), where[0], atol=1e-4, rtol=1e-4)


def test_images_of_several_sizes_go_through_one_graph(tmp_path):
    made = detector("deformable_detr")
    path = tmp_path / "model.pt2"
    assert max(export.export(made, path, (96, 96)).difference.values()) < 1e-4
    graph = torch.export.load(path).module()
    sizes = ((96, 70), (60, 96), (80, 80))
    pixels = [torch.randint(0, 255, (*size, 3), dtype=torch.uint8).numpy() for size in sizes]
    batch, _ = collate([Sample([image]) for image in pixels], made.config.model.pixels)
    _, boxes = graph(images=batch.images[:, 0], sizes=batch.sizes[:, 0])
    for found, corners, (height, width) in zip(made.detect(batch), boxes, sizes, strict=True):
        in_pixels = corners.detach() * torch.tensor([width, height, width, height])
        distance = torch.cdist(found.boxes, in_pixels, p=float("inf")).amin(1)
        assert distance.max() < 1e-2


@pytest.fixture
def quick(monkeypatch):
    """A writer that takes no time and gives an answer off by what the test says."""

    def install(error: float) -> None:
        def write(graph, inputs, path, description):
            path.write_text("graph")
            return lambda inputs: (graph(**inputs)[0] + error, graph(**inputs)[1])

        monkeypatch.setitem(export.WRITERS, ".pt2", write)

    return install


def test_a_graph_that_differs_is_not_kept(tmp_path, quick):
    quick(0.01)
    with pytest.raises(export.ExportError, match=r"differs from the detector by 0\.01 in scores at batch size 1"):
        export.export(detector("detr"), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


class TestCommand:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        from bevdet_core.checkpoint import save

        save(tmp_path / "run" / "model.safetensors", detector("detr").checkpoint())
        return tmp_path / "run"

    def test_export_tells_what_it_did(self, checkpoint, tmp_path, capsys, quick):
        quick(0.0)
        out = tmp_path / "detr.pt2"
        assert main(["export", str(checkpoint), "--out", str(out), "--image_size", "64x32"]) == 0
        told = capsys.readouterr().out
        assert str(out) in told
        assert "largest difference" in told
        assert json.loads(out.with_suffix(".json").read_text())["input_size"] == {"height": 32, "width": 64}

    def test_what_cannot_be_exported(self, checkpoint, tmp_path, capsys, monkeypatch):
        assert main(["export", str(checkpoint), "--out", str(tmp_path / "a.engine")]) == 1
        assert ".onnx or a .pt2" in capsys.readouterr().err
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert main(["export", str(checkpoint), "--out", str(tmp_path / "a.onnx")]) == 1
        assert "pip install 'bevdet-core[export]'" in capsys.readouterr().err
        assert not list(tmp_path.glob("a.*"))
