"""What the pages let their readers build: it runs, it learns, and it is what they say."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image

from bevdet_core import Detector, checkpoint
from bevdet_core.config import NuScenesConfig
from bevdet_core.data import build_dataset
from bevdet_core.data.rig import write_frame
from bevdet_core.models.deformable_transformer import FeatureTokens

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def people() -> Detector:
    """An untrained, small detector of people."""
    torch.manual_seed(0)
    small = {"model.backbone.width": 8, "model.embed_dim": 32, "data.short_side": 48, "data.long_side": 96}
    settings = {**small, "data.classes": ["person"], "model.num_queries": 5}
    return Detector.load(ROOT / "configs/coco/deformable_detr_r18_tiny.yaml", "cpu", settings)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """A landscape and a portrait, which cannot share a batch without padding."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((60, 90, 3), (90, 60, 3))]


def test_the_three_lines_draw_a_frame(synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    detector = tiny.detector("detr3d")
    checkpoint.save("demo/run/model.safetensors", detector.checkpoint())
    cameras = detector.config.data.cameras
    data = NuScenesConfig(root=str(synthetic_root), version="v1.0-mini", val_split="mini_val", cameras=cameras)
    frame = build_dataset(data, training=False)[0]
    write_frame(frame, "demo/frames/10.json")
    (lines,) = blocks("../README.md", "python")
    namespace: dict = {}
    exec(compile(lines.replace("threshold=0.3", "threshold=0.0"), "README.md", "exec"), namespace)
    found = namespace["detections"]
    assert len(found.scores) == len(found.labels) == len(found.boxes) > 0
    torch.testing.assert_close(found.scores, detector.predict(frame).scores)
    with Image.open("frame.png") as picture:
        assert picture.width > 500


def test_the_coco_page_prints_what_is_found(
    people: Detector, pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save("runs/streets-tiny/model.safetensors", people.checkpoint())
    for name, picture in zip("ab", pictures, strict=True):
        Image.fromarray(picture).save(f"{name}.jpg")
    (code,) = blocks("coco.md", "python")
    exec(compile(code.replace("threshold=0.3", "threshold=0.0"), "coco.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    found = people.predict(["a.jpg", "b.jpg"], batch_size=2)
    assert len(printed) == sum(len(each.scores) for each in found) > 0
    assert printed[0].startswith(f"person {found[0].scores[0]:.2f} at {found[0].boxes[0, 0]:.0f}, ")


def test_the_custom_head_learns(people: Detector, pictures: list[np.ndarray]) -> None:
    head_code, use, training = blocks("custom_head.md", "python")
    namespace: dict = {"detector": people}
    for code in (head_code, use):
        exec(compile(code, "custom_head.md", "exec"), namespace)
    joints = torch.rand(2, 5, 17, 2)
    visible = torch.rand(2, 5, 17) < 0.5
    namespace["loader"] = [(pictures, joints, visible)] * 3
    torch.manual_seed(0)
    before = namespace["JointHead"](32, 4)
    known = namespace["look"](people, pictures)
    first = namespace["loss_of"](before, known, joints, visible)
    exec(compile(training, "custom_head.md", "exec"), namespace)
    assert namespace["loss_of"](namespace["head"], known, joints, visible) < first - 1e-3
    assert all(parameter.grad is None for parameter in people.model.parameters())


def test_padding_is_nothing_to_the_custom_head() -> None:
    namespace: dict = {}
    exec(compile(blocks("custom_head.md", "python")[0], "custom_head.md", "exec"), namespace)
    torch.manual_seed(0)
    head = namespace["JointHead"](32, levels=2, heads=4, joints=3)
    torch.nn.init.normal_(head.place.weight)
    whole = [torch.randn(1, height, width, 32) for height, width in ((6, 8), (3, 4))]
    padded = [torch.randn(1, level.shape[1], 2 * level.shape[2], 32) for level in whole]
    masks = [torch.ones(level.shape[:3], dtype=torch.bool) for level in padded]
    for level, larger, mask in zip(whole, padded, masks, strict=True):
        larger[:, :, : level.shape[2]] = level
        mask[:, :, : level.shape[2]] = False
    hidden, boxes = torch.randn(1, 4, 32), torch.rand(1, 4, 4) * 0.2 + 0.3
    alone = head(hidden, boxes, tokens_of(whole, None, torch.ones(1, 2, 2)))
    beside = head(hidden, boxes, tokens_of(padded, masks, torch.tensor([0.5, 1.0]).expand(1, 2, 2)))
    torch.testing.assert_close(alone, beside)


def tokens_of(
    levels: list[torch.Tensor], masks: list[torch.Tensor] | None, valid_ratios: torch.Tensor
) -> FeatureTokens:
    """What a decoder reads, from maps [B, H, W, D]."""
    mask = None if masks is None else torch.cat([m.flatten(1) for m in masks], 1)
    shapes = tuple((level.shape[1], level.shape[2]) for level in levels)
    return FeatureTokens(torch.cat([level.flatten(1, 2) for level in levels], 1), shapes, mask, valid_ratios)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package to which the edits of adding_a_model.md are made."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "bevdet_core", folder / "bevdet_core", ignore=shutil.ignore_patterns("__pycache__"))
    (model,) = blocks("adding_a_model.md", "python")
    (folder / "bevdet_core/models/multi_point.py").write_text(model)
    for edit in blocks("adding_a_model.md", "diff"):
        apply(folder, edit)
    return folder


def apply(folder: Path, edit: str) -> None:
    """Make one edit of a page: what its unmarked and removed lines say stands in the file once, and is replaced."""
    header, *lines = edit.splitlines()
    path = folder / header.removeprefix("--- ")
    before = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
    after = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
    text = path.read_text()
    assert text.count(before) == 1, f"{header}: these lines stand there {text.count(before)} times:\n{before}"
    path.write_text(text.replace(before, after))


CHECK = """
import sys
from pathlib import Path
import bevdet_core, torch
from bevdet_core import Detector
from bevdet_core.models.deformable_transformer import FeatureTokens
from bevdet_core.config import load_config
from bevdet_core.data import build_dataset
from bevdet_core.models import build_criterion
from bevdet_core.structures import collate

assert Path(bevdet_core.__file__).is_relative_to(sys.argv[1])
config = load_config(sys.argv[2])
torch.manual_seed(0)
detector = Detector.load(sys.argv[2], "cpu")
model, criterion = detector.model.train(), build_criterion(config.model)
data = build_dataset(config.data, training=True)
batch, targets = collate([data[0], data[1]], config.model.pixels)
batch.targets = targets
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
losses = []
for _ in range(6):
    total = criterion(model(batch), targets)["total"]
    optimizer.zero_grad()
    total.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    optimizer.step()
    losses.append(total.item())
assert losses[-1] < losses[0], losses
attention = model.head.layers[0].cross_attention
assert attention.sampling_offsets.weight.grad.abs().sum() > 0

from bevdet_core import checkpoint
checkpoint.save(sys.argv[3], detector.checkpoint())
again = Detector.load(sys.argv[3], "cpu")
assert type(again.config.model).__name__ == "MultiPointConfig"
sample = build_dataset(config.data, training=False)[0]
assert torch.equal(again.predict(sample).boxes, detector.predict(sample).boxes)
"""


def test_the_added_model_learns_and_comes_back(extended: Path, synthetic_root: Path, tmp_path: Path) -> None:
    (text,) = blocks("adding_a_model.md", "yaml")
    settings = yaml.safe_load(text)
    settings["model"] |= {"embed_dim": 32, "num_queries": 8, "num_proposals": 4, "ffn_dim": 32}
    settings["model"]["backbone"]["width"] = 8
    settings["data"] |= {"root": str(synthetic_root), "version": "v1.0-mini", "input_size": [48, 80]}
    settings["data"] |= {"train_split": "mini_train", "val_split": "mini_val"}
    config, weights = tmp_path / "multi_point.yaml", tmp_path / "multi_point.safetensors"
    config.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(extended), str(config), str(weights)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(extended), str(ROOT / "ops")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_imports_run_the_way_that_the_page_says() -> None:
    section = (DOCS / "architecture.md").read_text().partition("## Which way imports run")[2].partition("\n## ")[0]
    lines = [re.findall(r"`(\w+)`", row) for row in section.splitlines() if row.startswith("| ") and "`" in row][1:]
    level = {name: number for number, names in enumerate(lines) for name in names}
    files = sorted((ROOT / "bevdet_core").rglob("*.py"))
    parts = {file: file.relative_to(ROOT / "bevdet_core").with_suffix("").parts for file in files}
    assert {own[0] for own in parts.values()} == set(level)
    upwards = [
        f"{'.'.join(parts[file])} imports {name}"
        for file in files
        for name in imported(ast.parse(file.read_text()), parts[file])
        if name != parts[file][0] and name in level and level[name] <= level[parts[file][0]]
    ]
    assert upwards == []


def imported(tree: ast.Module, place: tuple[str, ...]) -> set[str]:
    """The modules and packages right under bevdet_core that a module imports at once, by relative imports."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*place[: len(place) - node.level], *(node.module.split(".") if node.module else [])]
            names |= {base[0]} if base else {alias.name for alias in node.names}
    return names
