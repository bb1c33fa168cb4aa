"""The command line: `bevdet VERB ...`. Each verb imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import __version__
from .arguments import (
    UsageError,
    add_precision,
    confidence,
    file_path,
    folder_path,
    image_size,
    one_of,
    parse,
    parser_of,
    trained_detector,
    whole_number,
)
from .interruption import GO_ON, stopping_at_once


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status.

    0; 1 for an error in the input; 2 for a wrong command line; 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="bevdet",
        usage="bevdet VERB ...",
        description="Camera perception: 2D detection and bird's-eye-view 3D detection.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="verbs:\n" + "\n".join(f"  {name:<11} {verb.__doc__}" for name, verb in VERBS.items()),
    )
    parser.add_argument("--version", action="version", version=f"bevdet {__version__}")
    help_text = "what to do; bevdet VERB --help tells more"
    parser.add_argument("verb", type=one_of(VERBS, "verb"), metavar="VERB", help=help_text)
    verb = parser.parse_args(arguments[:1]).verb
    try:
        with stopping_at_once(""):
            status = VERBS[verb](arguments[1:])
            sys.stdout.flush()
            return status or 0
    except UsageError as error:
        print(f"bevdet {verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads has had enough, as in `bevdet ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more when it ends
        return 1
    except (ValueError, OSError, ImportError) as error:
        # What a user's input can cause; anything else is a defect of the library and keeps its traceback.
        print(f"bevdet {verb}: {_told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as request:
        told = str(request) or "interrupted"
        if verb == "train" and GO_ON not in told:
            told += f"; {GO_ON}"
        print(f"\nbevdet {verb}: {told}", file=sys.stderr)
        return getattr(request, "exit_code", 130)


def _told(error: Exception) -> str:
    """What an error says; of one that comes from the system, the file first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def train(argv: list[str]) -> None:
    """Train a detector from a configuration"""
    parser = parser_of("train", train)
    parser.add_argument("config", type=file_path, help="YAML file, such as configs/nuscenes/detr3d_r50.yaml")
    run_help = "folder for all that the run leaves; default: runs/NAME-OF-CONFIG; torchrun lets only --run_folder pass"
    parser.add_argument("--run", "--run_folder", type=folder_path, help=run_help)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")
    deterministic_help = "the same bits in every run on the same machine; short for --train.deterministic true"
    parser.add_argument("--deterministic", action="store_true", help=deterministic_help)
    print_help = "print all settings as they would be used, as YAML that train takes back, and leave"
    parser.add_argument("--print_config", action="store_true", help=print_help)
    options, overrides = parse(parser, argv)
    if options.deterministic:
        if "train.deterministic" in overrides:
            raise UsageError("--deterministic is short for --train.deterministic true: give one of the two")
        overrides["train.deterministic"] = "true"
    from .config import load_config

    config = load_config(options.config, overrides)
    if options.print_config:
        print(config.to_yaml(), end="")
        return
    from . import engine, processes, visualize

    run = options.run or Path("runs") / options.config.stem
    metrics = engine.train(config, run, resume=options.resume)
    if not processes.is_main():
        return
    visualize.training_curve(run / "log.jsonl", run / "curve.png")
    metrics.print()
    print(f"weights: {run / 'model.safetensors'}")
    print(f"metrics and curves: {run / 'evaluation'}")
    print(f"training curve: {run / 'curve.png'}")


def evaluate(argv: list[str]) -> None:
    """Score a trained detector with the official metric of its data set"""
    parser = parser_of("evaluate", evaluate)
    parser.add_argument("checkpoint", type=trained_detector, help="run folder or .safetensors file")
    parser.add_argument(
        "--out", type=folder_path, help="folder for metrics, curves and results; default: beside the weights"
    )
    add_precision(parser)
    options, overrides = parse(parser, argv)
    from . import launch, processes
    from .checkpoint import weights_of
    from .data import build_dataset
    from .detector import Detector
    from .evaluation import evaluate as score
    from .evaluation import refuse_other_scores

    device = launch.start().device
    weights = weights_of(options.checkpoint)
    detector = Detector.load(weights, device, overrides, options.precision)
    out = options.out or weights.parent / "evaluation"
    settings = detector.config.train
    dataset = build_dataset(detector.config.data, training=False)
    if options.out is None:
        refuse_other_scores(out, dataset, weights)
    metrics = score(detector, dataset, out, settings.batch_size, settings.workers, weights=weights)
    if not processes.is_main():
        return
    metrics.print()
    print(f"metrics, curves and results: {out}")


def predict(argv: list[str]) -> None:
    """Detect objects in rig frames (JSON) or images; pictures and results out"""
    parser = parser_of("predict", predict)
    parser.add_argument("checkpoint", type=trained_detector, help="run folder or .safetensors file")
    parser.add_argument("inputs", nargs="+", help="frame files, images, folders or patterns such as 'frames/*.json'")
    parser.add_argument("--out", type=folder_path, default=Path("predictions"), help="folder; default: predictions")
    parser.add_argument("--threshold", type=confidence, default=0.3, help="lowest score that is kept; default: 0.3")
    parser.add_argument("--batch_size", type=whole_number, default=1, help="inputs that go through the network at once")
    add_precision(parser)
    options, overrides = parse(parser, argv)
    from .detector import Detector
    from .prediction import expand_inputs, predict_files

    detector = Detector.load(options.checkpoint, overrides=overrides, precision=options.precision)
    files = expand_inputs(options.inputs, detector)
    print(predict_files(detector, files, options.out, options.threshold, options.batch_size))


def visualize(argv: list[str]) -> None:
    """Draw samples or whole scenes with their truth, and a detector's answer beside it"""
    parser = parser_of("visualize", visualize)
    parser.add_argument("source", type=file_path, help="configuration (truth alone), run folder or .safetensors file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--samples", nargs="+", default=["0"], help="tokens or numbers within the split; default: 0")
    what.add_argument(
        "--scene", help="name of a scene of the split, which becomes a film with the paths of all objects"
    )
    parser.add_argument("--threshold", type=confidence, default=0.3, help="lowest score that is drawn; default: 0.3")
    out_help = "folder, default: pictures; with --scene a file, .mp4, .gif or .rrd (rerun), default: SCENE.mp4"
    parser.add_argument("--out", type=file_path, help=out_help)
    parser.add_argument(
        "--frames", type=folder_path, help="folder: write the samples as frame files as well, for predict"
    )
    parser.add_argument("--width", type=int, help="of a film in pixels; default: 1920, of a GIF 1280")
    add_precision(parser)
    options, overrides = parse(parser, argv)
    if options.scene is None and options.width is not None:
        raise UsageError("--width is that of a film: it goes with --scene")
    if options.scene is not None and options.frames is not None:
        raise UsageError("--frames writes single samples: it goes with --samples, not with --scene")
    from .prediction import draw_samples, render_scene

    if options.scene is not None:
        out = options.out or Path(f"{Path(options.scene).name}.mp4")
        film = render_scene(
            options.source, options.scene, out, options.threshold, options.width, overrides, options.precision
        )
        print(film)
        return
    out = options.out or Path("pictures")
    draw_samples(options.source, options.samples, out, options.threshold, options.frames, overrides, options.precision)


def convert(argv: list[str]) -> None:
    """Bring official weights into this library, and back"""
    from .convert.names import BACKBONE, BOX_CONVENTIONS, RELEASES, SUFFIXES

    parser = parser_of("convert", convert)
    parser.add_argument(
        "checkpoint", type=file_path, help="weights file, run folder, or folder that transformers wrote"
    )
    origins = (*RELEASES, BACKBONE)
    parser.add_argument("--from", dest="origin", choices=origins, help="release it comes from; default: this library")
    parser.add_argument("--to", dest="target", choices=RELEASES, help="release to write for; default: this library")
    out_help = "file to write, .safetensors; with --to also .pth, .pt or .bin"
    parser.add_argument("--out", type=file_path, required=True, help=out_help)
    parser.add_argument("--config", type=file_path, help="YAML file with the settings; default: what the weights tell")
    parser.add_argument("--classes", type=file_path, help="text file with the class names, one a line, in label order")
    parser.add_argument(
        "--box_convention",
        choices=BOX_CONVENTIONS,
        help="boxes of a 3D release: old (mmdet3d before 1.0: w, l, h and yaw = -ours - pi / 2), new (from 1.0 on: "
        "l, w, h and our yaw), mixed (new sizes, old yaw); default: old for detr3d, petr and bevformer; for mmdet3d "
        "what its projects have: new of DETR3D, mixed of PETR",
    )
    options, overrides = parse(parser, argv)
    if options.origin is None and options.target is None:
        raise UsageError("name the release: --from for weights to bring in, --to for weights to bring out")
    suffixes = SUFFIXES if options.target else SUFFIXES[:1]
    if options.out.suffix not in suffixes:
        raise UsageError(f"--out {options.out}: must end in {' or '.join(suffixes)}")
    unused = {"--config": options.config, "--classes": options.classes} | {f"--{n}": v for n, v in overrides.items()}
    why = "a checkpoint of this library has its settings and classes in itself"
    if options.origin == BACKBONE:
        unused |= {"--to": options.target, "--box_convention": options.box_convention}
        why = f"what {BACKBONE} makes is a backbone of this library, without settings, classes or boxes"
    elif options.origin is not None:
        unused = {"--data.classes": overrides.get("data.classes")} if options.classes else {}
        why = "--classes names the classes"
    if given := [name for name, value in unused.items() if value is not None]:
        raise UsageError(f"no use for {', '.join(given)}: {why}")
    from .convert.class_names import read_class_names
    from .convert.release import convert as convert_file
    from .progress import status

    names = read_class_names(options.classes) if options.classes else None
    settings = (options.config, overrides, names, options.box_convention)
    with status("reading, converting, writing"):
        done = convert_file(options.checkpoint, options.out, options.origin, options.target, *settings)
    print(done)


def export(argv: list[str]) -> None:
    """Write a detector as ONNX or torch.export graph, checked against the original"""
    parser = parser_of("export", export)
    parser.add_argument("checkpoint", type=trained_detector, help="run folder or .safetensors file")
    parser.add_argument(
        "--out", type=file_path, required=True, help=".onnx or .pt2; a .json beside it describes the graph"
    )
    parser.add_argument(
        "--image_size", type=image_size, help="WIDTHxHEIGHT of the padded images; default: as configured"
    )
    options, overrides = parse(parser, argv)
    from .detector import Detector
    from .export import export as write
    from .export import require_format
    from .progress import status

    require_format(options.out)  # before anything is loaded
    size = options.image_size[::-1] if options.image_size else None
    detector = Detector.load(options.checkpoint, "cpu", overrides)
    with status("tracing, writing, comparing"):
        done = write(detector, options.out, size)
    gaps = ", ".join(f"{name} {gap:.1e}" for name, gap in done.difference.items())
    for name, own in done.rounding.items():
        gaps += f"; rounding alone makes {own:.1e} in the {name} of the detector itself"
    size = "{width}x{height}".format(**done.description["input_size"])
    print(f"written: {done.path} for images of {size}, described in {done.path.with_suffix('.json')}")
    print(f"largest difference to the detector: {gaps}")


def synthesize(argv: list[str]) -> None:
    """Render a synthetic data set in the nuScenes or COCO format"""
    parser = parser_of("synthesize", synthesize, settings=False)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="FORMAT", help="nuscenes or coco")
    for name, unit, count in (("nuscenes", "scenes", 10), ("coco", "images", 200)):
        kind = kinds.add_parser(name, help=f"{unit} in the {name} layout", allow_abbrev=False)
        kind.add_argument("--out", type=file_path, required=True, help="folder to write; nothing else may be in it")
        kind.add_argument(f"--{unit}", type=int, default=count, help=f"number of {unit}; default: {count}")
        kind.add_argument("--seed", type=int, default=0, help="same seed, same bytes; default: 0")
        if name == "nuscenes":
            kind.add_argument("--frames", type=int, default=8, help="key frames of each scene, at 2 Hz; default: 8")
            kind.add_argument("--can_bus", action="store_true", help="CAN-bus files of the vehicle's motion as well")
        val_help = f"how many of the {unit} are for validation; default: a fifth, at least one"
        kind.add_argument(f"--val_{unit}", type=int, help=val_help)
        size = (800, 450) if name == "nuscenes" else (640, 480)
        kind.add_argument(
            "--image_size", type=image_size, default=size, help=f"WIDTHxHEIGHT; default: {size[0]}x{size[1]}"
        )
    options = parser.parse_args(argv)
    from .data import synthetic

    if options.kind == "nuscenes":
        synthetic.synthesize_nuscenes(
            options.out,
            options.scenes,
            options.seed,
            frames_per_scene=options.frames,
            val_scenes=options.val_scenes,
            image_size=options.image_size,
            can_bus=options.can_bus,
        )
    else:
        synthetic.synthesize_coco(
            options.out, options.images, options.seed, val_images=options.val_images, image_size=options.image_size
        )
    settings = synthetic.settings_of(options.out)
    print(f"written: {options.out}; to use it: {' '.join(f'--{name} {value}' for name, value in settings.items())}")


def doctor(argv: list[str]) -> int:
    """Say what works on this machine, and which command makes the rest work"""
    parser = parser_of("doctor", doctor, settings=False)
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    options = parser.parse_args(argv)
    import json

    from .doctor import examine

    report = examine()
    if options.json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        report.print()
    return 0 if report.healthy else 1


def completion(argv: list[str]) -> None:
    """Print a script that completes verbs, options and settings in the shell"""
    from .completion import SHELLS, script

    parser = parser_of("completion", completion, settings=False)
    parser.add_argument("shell", choices=SHELLS, help='for example: eval "$(bevdet completion bash)"')
    print(script(parser.parse_args(argv).shell, VERBS), end="")


VERBS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "visualize": visualize,
    "convert": convert,
    "export": export,
    "synthesize": synthesize,
    "doctor": doctor,
    "completion": completion,
}


if __name__ == "__main__":
    sys.exit(main())
