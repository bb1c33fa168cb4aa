"""Speed and memory of whole models beside plain PyTorch with the same weights, in one run.

    python tools/bench_models.py [--only bevformer] --json FILE

Deformable DETR R50 (multi-scale, 91 classes) on an image of 800 x 1066 pixels: `transformers` writes a checkpoint,
`bevdet convert` reads it. The criterion's share of a training step is its time for 16 images over 16 times the step of
one image.

BEVFormer-tiny (configs/nuscenes/bevformer_tiny.yaml) on the second frame of a stream of six cameras, so that it has a
view to look back at: the peer is `peers.bevformer`. "frame" is everything from normalised images to the predictions of
all decoder layers; "after_neck" is its encoder, decoder and heads, where the two differ most: backbone and neck do the
same convolutions. In "frame_bf16" both compute with bfloat16 (`--precision bf16`), and "bf16_against_float32" is how
much less time that takes us than float32 takes the peer.

Both models work in turns, so that whatever else the machine does hits both. A ratio is the median over the turns of
their time divided by ours. Peak memory is measured in a process for each model: the largest resident memory during the
call, less what the process held before it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peers.bevformer import PlainBevFormer
from torch import Tensor, nn

from bevdet_core import Detector, checkpoint
from bevdet_core.config import Precision
from bevdet_core.convert.release import from_release
from bevdet_core.data.synthetic.rig import sample_rig
from bevdet_core.geometry import rotation_about_z
from bevdet_core.models import build_criterion
from bevdet_core.models.bev_memory import BevMemory
from bevdet_core.models.bevformer import BevFormer
from bevdet_core.models.cameras import camera_features
from bevdet_core.models.ego_motion import frame_poses
from bevdet_core.precision import autocast
from bevdet_core.structures import Camera, ImageBatch, Predictions, Sample, Targets, collate

HEIGHT, WIDTH, CLASSES, OBJECTS = 800, 1066, 91, 12
MODELS = ("deformable_detr", "bevformer")
BEVFORMER = Path(__file__).parents[1] / "configs/nuscenes/bevformer_tiny.yaml"


def write_weights(folder: Path) -> None:
    """The same random weights as a checkpoint of `transformers` and as one of this library."""
    import transformers

    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone, num_labels=CLASSES, disable_custom_kernels=True, auxiliary_loss=True, class_cost=2
    )
    model = transformers.DeformableDetrForObjectDetection(config)
    with torch.no_grad():
        # The untrained heads say the same everywhere; agreement of the outputs should mean something.
        for name, parameter in model.named_parameters():
            if name.startswith(("class_embed", "bbox_embed")) and name.endswith("weight"):
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
            elif "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(0.0, 0.5 * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder / "theirs")
    # Both train what the published recipe trains.
    overrides = {"model.backbone.frozen_stages": 1}
    checkpoint.save(folder / "ours.safetensors", from_release(folder / "theirs", "hf-deformable-detr", None, overrides))


def load_theirs(folder: Path) -> nn.Module:
    """`transformers`' model, ready for inference."""
    import transformers

    model = transformers.DeformableDetrForObjectDetection.from_pretrained(folder / "theirs")
    for name, parameter in model.named_parameters():
        if "backbone" in name:
            parameter.requires_grad_(any(f"encoder.stages.{stage}." in name for stage in (1, 2, 3)))
    return model.eval()


def load_ours(folder: Path) -> Detector:
    """Our detector, ready for inference."""
    return Detector.load(folder / "ours.safetensors", "cpu")


def inputs() -> tuple[ImageBatch, list[Targets]]:
    """One image of noise with a few objects."""
    torch.manual_seed(1)
    sizes = torch.tensor([[[HEIGHT, WIDTH]]])
    boxes = torch.cat([torch.rand(OBJECTS, 2) * 0.6 + 0.2, torch.rand(OBJECTS, 2) * 0.3 + 0.05], 1)
    targets = [Targets(torch.randint(CLASSES, (OBJECTS,)), boxes)]
    return ImageBatch(torch.randn(1, 1, 3, HEIGHT, WIDTH), sizes, original_sizes=sizes), targets


def inference_calls(folder: Path, which: str) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """One forward pass without gradients, for either model or for both; returns logits and boxes."""
    batch, _ = inputs()
    calls: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {}
    if which in ("theirs", "both"):
        theirs = load_theirs(folder)

        @torch.inference_mode()
        def run_theirs() -> tuple[Tensor, Tensor]:
            out = theirs(batch.images[:, 0], ~batch.mask[:, 0])
            return out.logits, out.pred_boxes

        calls["theirs"] = run_theirs
    if which in ("ours", "both"):
        ours = load_ours(folder).model

        @torch.inference_mode()
        def run_ours() -> tuple[Tensor, Tensor]:
            out = ours(batch)
            return out.logits[-1], out.boxes[-1]

        calls["ours"] = run_ours
    return calls


def training_calls(folder: Path, which: str) -> dict[str, Callable[[], Tensor]]:
    """One training step: forward, loss, backward, clipping, AdamW; returns the loss."""
    batch, targets = inputs()
    calls: dict[str, Callable[[], Tensor]] = {}

    def step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        model.train()
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=True)

        def run() -> Tensor:
            total = loss()
            total.backward()
            torch.nn.utils.clip_grad_norm_(learning, 0.1)
            optimizer.step()
            optimizer.zero_grad()
            return total.detach()

        return run

    if which in ("theirs", "both"):
        theirs = load_theirs(folder)
        labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
        calls["theirs"] = step(theirs, lambda: theirs(batch.images[:, 0], ~batch.mask[:, 0], labels=labels).loss)
    if which in ("ours", "both"):
        detector = load_ours(folder)
        criterion = build_criterion(detector.config.model)
        calls["ours"] = step(detector.model, lambda: criterion(detector.model(batch), targets)["total"])
    return calls


def criterion_call(folder: Path) -> Callable[[], Tensor]:
    """Matching, losses and their backward pass for a batch of 16: 7 layers, 300 queries and 30 objects an image."""
    criterion = build_criterion(load_ours(folder).config.model)
    torch.manual_seed(2)
    logits = torch.randn(7, 16, 300, CLASSES, requires_grad=True)
    boxes = (torch.rand(7, 16, 300, 4) * 0.3 + 0.3).requires_grad_()
    targets = [Targets(torch.randint(CLASSES, (30,)), torch.rand(30, 4) * 0.3 + 0.3) for _ in range(16)]

    def run() -> Tensor:
        total = criterion(Predictions(logits, boxes), targets)["total"]
        torch.autograd.grad(total, (logits, boxes))
        return total.detach()

    return run


def write_bevformer(folder: Path) -> None:
    """BEVFormer with random weights whose attentions and heads differ from cell to cell and query to query."""
    torch.manual_seed(0)
    detector = Detector.load(BEVFORMER, "cpu")
    with torch.no_grad():
        for name, parameter in detector.model.named_parameters():
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                parameter.normal_(0.0, 0.5 * parameter.shape[1] ** -0.5)
    checkpoint.save(folder / "bevformer.safetensors", detector.checkpoint())


def rig_frame(detector: Detector, number: int) -> ImageBatch:
    """A frame of noise from six cameras on a car that drives and turns."""
    rng = np.random.default_rng(number)
    height, width = detector.config.data.input_size
    *sensors, lidar = sample_rig(np.random.default_rng(0), (width, height))
    lidar2ego, ego2global = np.eye(4), np.eye(4)
    lidar2ego[:3, :3], lidar2ego[:3, 3] = lidar.rotation, lidar.translation
    ego2global[:3, :3], ego2global[0, 3] = rotation_about_z(0.05 * number), 4.0 * number
    cameras = []
    for sensor in sensors:
        camera2ego = np.eye(4)
        camera2ego[:3, :3], camera2ego[:3, 3] = sensor.rotation, sensor.translation
        cameras.append(Camera(sensor.channel, sensor.intrinsic, np.linalg.inv(lidar2ego) @ camera2ego))
    frame = Sample(
        [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in sensors],
        cameras,
        lidar2global=ego2global @ lidar2ego,
        lidar2ego=lidar2ego,
        timestamp=0.5 * number,
        scene="drive",
    )
    return collate([frame], detector.config.model.pixels)[0]


def bevformer_calls(
    folder: Path, which: str, after_neck: bool = False, precision: Precision = "fp32"
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """The second frame of a stream, for either model or for both; returns logits and boxes of all layers."""
    detector = Detector.load(folder / "bevformer.safetensors", "cpu")
    ours = detector.model
    assert isinstance(ours, BevFormer)
    first, second = rig_frame(detector, 0), rig_frame(detector, 1)
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {}

    def call(
        features: Callable[[ImageBatch], list[Tensor]],
        head: Callable[[ImageBatch, list[Tensor], BevMemory], Predictions],
    ) -> Callable[[], tuple[Tensor, ...]]:
        with torch.inference_mode():
            past = BevMemory(ours.max_gap)
            head(first, features(first), past)
            [seen] = past.recall("drive", frame_poses(second)[0])
            given = features(second) if after_neck else None

        @torch.inference_mode()
        def run() -> tuple[Tensor, ...]:
            memory = BevMemory(ours.max_gap)
            memory.keep("drive", seen)
            with autocast(precision, detector.device):
                out = head(second, features(second) if given is None else given, memory)
            return out.logits.float(), out.boxes.float()

        return run

    if which in ("theirs", "both"):
        theirs = PlainBevFormer(ours)
        calls["theirs"] = call(theirs.features, theirs.after_neck)
    if which in ("ours", "both"):
        calls["ours"] = call(
            lambda batch: camera_features(ours.backbone, ours.neck, batch, None),
            lambda batch, features, memory: ours.head(ours.encode(batch, features, batch.scenes, memory)),
        )
    return calls


TASKS: dict[str, Callable[[Path, str], dict[str, Callable]]] = {
    "inference": inference_calls,
    "training": training_calls,
    "frame": bevformer_calls,
    "after_neck": partial(bevformer_calls, after_neck=True),
    "frame_bf16": partial(bevformer_calls, precision="bf16"),
}


def in_turns(calls: dict[str, Callable], turns: int) -> dict[str, list[float]]:
    """Seconds of each call, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(folder: Path, task: str, which: str) -> float:
    """MiB that the second call needs on top of what the process holds; to be called in a fresh process (Linux)."""
    call = TASKS[task](folder, which)[which]
    call()
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept for later, is not what the process holds
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def compare(folder: Path, task: str, turns: int, threads: int) -> dict:
    """Speed, peak memory and, without training, the outputs of both models."""
    calls = TASKS[task](folder, "both")
    figures: dict = {}
    if task != "training":
        theirs, ours = calls["theirs"](), calls["ours"]()
        pairs = list(zip(theirs, ours, strict=True))
        figures["largest_output"] = max(float(a.abs().max()) for a, _ in pairs)
        figures["largest_output_difference"] = max(float((a - b).abs().max()) for a, b in pairs)
    seconds = in_turns(calls, turns)
    del calls
    figures["seconds"] = {name: statistics.median(values) for name, values in seconds.items()}
    figures["images_per_second"] = {name: 1 / value for name, value in figures["seconds"].items()}
    ratios = [a / b for a, b in zip(seconds["theirs"], seconds["ours"], strict=True)]
    figures["speed_ratio"] = statistics.median(ratios)
    figures["speed_ratio_range"] = [min(ratios), max(ratios)]
    figures["peak_mib"] = {name: _in_own_process(folder, task, name, threads) for name in ("theirs", "ours")}
    figures["memory_ratio"] = figures["peak_mib"]["ours"] / figures["peak_mib"]["theirs"]
    print(f"{task}: {figures['speed_ratio']:.2f} x, memory {figures['memory_ratio']:.2f}", file=sys.stderr)
    return figures


def measure_deformable_detr(folder: Path, turns: int, training_turns: int, threads: int) -> dict:
    """All figures of Deformable DETR."""
    write_weights(folder)
    report: dict = {"model": f"Deformable DETR R50, multi-scale, {HEIGHT} x {WIDTH}, batch 1, float32"}
    report["inference"] = compare(folder, "inference", turns, threads)
    report["training"] = compare(folder, "training", training_turns, threads)
    criterion = statistics.median(in_turns({"criterion": criterion_call(folder)}, turns)["criterion"])
    report["criterion"] = {
        "seconds_for_16_images": criterion,
        "share_of_step": criterion / (16 * report["training"]["seconds"]["ours"]),
    }
    return report


def measure_bevformer(folder: Path, turns: int, threads: int) -> dict:
    """All figures of BEVFormer; its "images" are frames of six cameras."""
    write_bevformer(folder)
    report: dict = {"model": "BEVFormer-tiny, six cameras of 450 x 800 with a frame of history, batch 1, float32"}
    report["frame"] = compare(folder, "frame", turns, threads)
    report["after_neck"] = compare(folder, "after_neck", 3 * turns, threads)
    report["share_after_neck"] = {
        name: report["after_neck"]["seconds"][name] / report["frame"]["seconds"][name] for name in ("theirs", "ours")
    }
    report["frame_bf16"] = compare(folder, "frame_bf16", turns, threads)
    report["bf16_against_float32"] = report["frame"]["seconds"]["theirs"] / report["frame_bf16"]["seconds"]["ours"]
    print(f"bf16_against_float32: {report['bf16_against_float32']:.2f} x", file=sys.stderr)
    return report


def _in_own_process(folder: Path, task: str, which: str, threads: int) -> float:
    command = [sys.executable, __file__, "--threads", str(threads), "--peak", str(folder), task, which]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; default: 2")
    parser.add_argument("--only", choices=MODELS, help="one of the models; default: both")
    parser.add_argument("--turns", type=int, default=7, help="forward passes of each model; default: 7")
    parser.add_argument("--training_turns", type=int, default=3, help="training steps of each model; default: 3")
    parser.add_argument("--peak", nargs=3, metavar=("FOLDER", "TASK", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        folder, task, which = options.peak
        print(peak_memory(Path(folder), task, which))
        return
    report: dict = {"threads": options.threads, "torch": torch.__version__, "python": platform.python_version()}
    turns = ["--turns", str(options.turns), "--training_turns", str(options.training_turns)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only == "deformable_detr":
            report |= measure_deformable_detr(folder, options.turns, options.training_turns, options.threads)
        elif options.only == "bevformer":
            report["bevformer"] = measure_bevformer(folder, options.turns, options.threads)
        else:  # each in a fresh process: memory that the C library keeps from another model would make both quicker
            for model in MODELS:
                part = folder / f"{model}.json"
                command = [sys.executable, __file__, "--only", model, "--json", str(part), *turns]
                subprocess.run([*command, "--threads", str(options.threads)], stdout=subprocess.DEVNULL, check=True)
                report |= json.loads(part.read_text())
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
