"""Build the wheel, install it into a clean environment outside the checkout, and use it there from end to end.

Run as `python tools/check_wheel.py [--keep FOLDER]`; needs the package index. `make soak` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = (
    "bevdet_core/cli.py",
    "bevdet_core/configs/nuscenes/detr3d_r50.yaml",
    "bevdet_core/py.typed",
    "bevdet_ops/csrc/forward.cu",
    "bevdet_ops/csrc/problem.cuh",
    "bevdet_ops/py.typed",
)
SMALL = [
    *("--data.root", "data", "--data.version", "v1.0-mini"),
    *("--data.train_split", "mini_train", "--data.val_split", "mini_val", "--data.input_size", "[48, 80]"),
    *("--train.epochs", "1", "--train.workers", "0", "--model.backbone.width", "8"),
]


def main() -> int:
    """Returns the exit status: 0 if everything worked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder to work in, which stays; default: a temporary one")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        check(options.keep.resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))
    print("the wheel works")
    return 0


def check(folder: Path) -> None:
    """Build, look into, install and use the wheel; all that it leaves is in the folder."""
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder / "dist", ROOT], folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    look_into(wheel)
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install = [binaries / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    run([*install, f"{wheel}[nuscenes]"], folder)
    bevdet = binaries / "bevdet"
    work = folder / "work"
    work.mkdir(exist_ok=True)
    run([bevdet, "--help"], work)
    report = json.loads(run([bevdet, "doctor", "--json"], work))
    if not report["healthy"]:
        raise SystemExit(f"doctor: {json.dumps(report, indent=1)}")
    run([bevdet, "synthesize", "nuscenes", "--out", "data", "--scenes", "2", "--frames", "2"], work)
    run([bevdet, "train", "configs/demo/detr3d.yaml", "--run", "run", *SMALL], work)
    run([bevdet, "visualize", "run", "--out", "pictures", "--threshold", "0"], work)
    run([bevdet, "predict", "run", frame(binaries, work), "--out", "found"], work)
    for file in ("run/model.safetensors", "found/predictions.json", "found/frame.png"):
        if not (work / file).is_file():
            raise SystemExit(f"{work / file} is missing")


def look_into(wheel: Path) -> None:
    """A pure wheel with kernels, configurations and type marks, and nothing that does not belong there."""
    if not wheel.name.endswith("-py3-none-any.whl"):
        raise SystemExit(f"{wheel.name} is no pure wheel")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    missing = [name for name in NEEDED if name not in names]
    strange = [name for name in names if not name.startswith(("bevdet_core/", "bevdet_ops/", "bevdet_core-"))]
    if missing or strange:
        raise SystemExit(f"{wheel.name} misses {missing}, and has {strange}")


def frame(binaries: Path, work: Path) -> str:
    """Write a rig frame with the installed package."""
    script = (
        "from bevdet_core.config import load_config\n"
        "from bevdet_core.data import build_dataset\n"
        "from bevdet_core.data.rig import write_frame\n"
        "write_frame(build_dataset(load_config('run/config.yaml').data, training=False)[0], 'frame.json')\n"
    )
    run([binaries / "python", "-c", script], work)
    return "frame.json"


def run(command: list, folder: Path) -> str:
    """Run a command without this checkout on the path; returns what it printed.

    Raises:
        SystemExit: it failed; with what it said.
    """
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
