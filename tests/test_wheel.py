"""The wheel: all that belongs into it, and that it works where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = [
    *("--data.root", "data", "--data.version", "v1.0-mini"),
    *("--data.train_split", "mini_train", "--data.val_split", "mini_val", "--data.input_size", "[32, 64]"),
    *("--train.epochs", "1", "--train.workers", "0", "--model.backbone.width", "8"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_is_pure_and_holds_every_module_kernel_and_configuration(wheel: Path):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    homes = {"bevdet_core": "bevdet_core", "ops/bevdet_ops": "bevdet_ops", "configs": "bevdet_core/configs"}
    wanted = {
        f"{home}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, home in homes.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert found == wanted
    assert {"bevdet_ops/csrc/forward.cu", "bevdet_core/configs/demo/detr3d.yaml"} <= found


def test_the_wheel_renders_trains_and_draws_without_a_checkout(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")  # which is what installing a pure wheel does
    work = tmp_path / "work"
    work.mkdir()

    def python(*words: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}  # goes before this checkout
        done = subprocess.run([sys.executable, *words], cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def bevdet(*words: str) -> str:
        return python("-m", "bevdet_core.cli", *words)

    where = python("-c", "import bevdet_core, bevdet_ops; print(bevdet_core.__path__, bevdet_ops.__path__)")
    assert where.count(str(tmp_path / "site")) == 2
    assert "usage: bevdet" in bevdet("--help")
    assert json.loads(bevdet("doctor", "--json"))["healthy"]
    bevdet("synthesize", "nuscenes", "--out", "data", "--scenes", "2", "--frames", "2", "--image_size", "96x54")
    bevdet("train", "configs/demo/detr3d.yaml", "--run", "run", *SMALL)
    bevdet("visualize", "run", "--samples", "0", "--out", "pictures", "--frames", "frames", "--threshold", "0")
    bevdet("predict", "run", "frames/0.json", "--out", "found")
    assert (work / "found" / "predictions.json").is_file()
    assert (work / "found" / "0.png").is_file()
