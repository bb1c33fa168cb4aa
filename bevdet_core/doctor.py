"""What this machine and its packages can do, and the command that would make the rest work."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

DISTRIBUTION = "bevdet-core"
# What each extra is for; what it takes is read from the package's own metadata.
EXTRAS = {
    "nuscenes": "nuScenes metric",
    "coco": "COCO metric",
    "viz": "recordings for the rerun viewer",
    "export": "ONNX export",
}
WORTH_KNOWING = ("cupy-cuda12x", "cupy-cuda13x", "transformers", "pycocotools")
State = Literal["ok", "absent", "broken"]
COLORS = {"ok": "green", "absent": "yellow", "broken": "red"}


@dataclass(frozen=True)
class Check:
    """One thing that works here or does not.

    Attributes:
        name: what it is.
        state: "ok"; "absent": an optional thing that is not here; "broken": a thing that must work and does not.
        detail: one line about it.
        remedy: the command that makes it work; "" where there is none, or nothing to do.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """The outcome of an examination."""

    machine: dict[str, str]
    versions: dict[str, str]  # of all packages that matter and are installed
    checks: list[Check]

    @property
    def healthy(self) -> bool:
        """Whether everything that must work does."""
        return all(check.state != "broken" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self) | {"healthy": self.healthy}

    def print(self, console: Console | None = None) -> None:
        """Show the report in the terminal: the machine, the versions, the checks, the commands to run."""
        console = console or Console()
        console.print("[bold]machine[/bold]")
        _print_columns(console, [[Text(name), Text(value)] for name, value in self.machine.items()])
        console.print("[bold]versions[/bold]")
        known = "  ".join(f"{name}=={version}" for name, version in self.versions.items())
        console.print(Padding(known, (0, 2)), highlight=False)
        console.print("[bold]what works[/bold]")
        _print_columns(console, [[Text(c.state, COLORS[c.state]), Text(c.name), Text(c.detail)] for c in self.checks])
        remedies = [check for check in self.checks if check.remedy]
        if remedies:
            console.print("[bold]for the rest[/bold]")
        for check in remedies:
            # No wrapping, no markup: it is there to be copied, and extras stand in brackets.
            console.print(f"  {check.remedy}    # {check.name}", markup=False, highlight=False, soft_wrap=True)


def _print_columns(console: Console, rows: Sequence[Sequence[Text]]) -> None:
    """Print rows in columns. Unlike those of a table their lines are never broken: paths are there to be copied."""
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    for *cells, last in rows:
        for cell, width in zip(cells, widths, strict=False):
            cell.pad_right(width + 2 - cell.cell_len)
        console.print(Text("  ").join([Text(""), Text.assemble(*cells, last)]), soft_wrap=True, highlight=False)


def examine() -> Report:
    """Look at machine, packages and back ends; runs the operator once on each device."""
    from .progress import status

    with status("trying the back ends of the operator"):
        checks = [_interpreter(), *_requirements(), *_backends(), _video()]
        return Report(_machine(), _versions(), checks)


def _machine() -> dict[str, str]:
    import torch

    from .precision import native
    from .processes import usable_cores

    facts = {
        "system": platform.platform(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "CPU": f"{_cpu_name()}, {usable_cores()} of {os.cpu_count()} logical cores usable",
        "threads of torch": str(torch.get_num_threads()),
        "GPU": "none that torch sees",
    }
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            memory = f"{found.total_memory / 2**30:.0f} GiB"
            facts["GPU" if number == 0 else f"GPU {number}"] = f"{found.name}, {memory}, sm_{found.major}{found.minor}"
    facts["CUDA of torch"] = torch.version.cuda or "none: this is a build for CPUs"
    reason = "which this device multiplies faster" if native() == "bf16" else "there are no units for bf16 here"
    facts["--train.precision auto"] = f"{native()}: {reason}"
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    names = [DISTRIBUTION, *(name for name, _, _ in _declared()), *WORTH_KNOWING]
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _declared() -> list[tuple[str, str, str]]:
    """(distribution, specifier, extra or "") of everything that the package's metadata ask for."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    out = []
    for requirement in map(Requirement, lines):
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", str(requirement.marker or ""))
        if extra is None or extra[1] in EXTRAS:
            out.append((requirement.name, str(requirement.specifier), extra[1] if extra else ""))
    return out


def _interpreter() -> Check:
    if _version(DISTRIBUTION) is None:
        folder = Path(__file__).parents[1]
        return Check("package", "absent", f"imported from {folder}, but not installed", f"pip install -e '{folder}'")
    return Check("package", "ok", f"{DISTRIBUTION} {_version(DISTRIBUTION)}")


def _requirements() -> list[Check]:
    """One check for all that must be there, and one for each extra."""
    from packaging.specifiers import SpecifierSet

    wrong: dict[str, list[str]] = {}
    known = _declared()
    for name, specifier, extra in known:
        version = _version(name)
        if version is None:
            wrong.setdefault(extra, []).append(f"{name} is not installed")
        elif not SpecifierSet(specifier).contains(version, prereleases=True):
            wrong.setdefault(extra, []).append(f"{name} {version} is not {specifier}")
    checks = []
    for extra in dict.fromkeys(extra for _, _, extra in known):
        what, state = ("required packages", "broken") if not extra else (EXTRAS[extra], "absent")
        wanted = DISTRIBUTION + (f"[{extra}]" if extra else "")
        if extra in wrong:
            checks.append(Check(what, state, "; ".join(wrong[extra]), f"pip install '{wanted}'"))  # type: ignore[arg-type]
        else:
            names = [name for name, _, e in known if e == extra]
            checks.append(Check(what, "ok", ", ".join(names) if extra else f"all {len(names)} fit"))
    return checks


def _backends() -> list[Check]:
    """The operator's back ends, each tried on a small problem."""
    import torch

    from bevdet_ops import backend_status

    checks = []
    for name, status in backend_status().items():
        what = f"operator, {name} back end"
        if status != "available":
            checks.append(Check(what, "broken" if name == "reference" else "absent", status, _backend_remedy(status)))
            continue
        device = torch.device("cuda" if name == "cuda" else "cpu")
        try:
            seconds = _try_operator(device, name == "reference")
        except Exception as error:  # compilers and drivers raise what they like; telling it is what this is for
            checks.append(Check(what, "broken", f"fails: {error}", _backend_remedy(str(error))))
        else:
            checks.append(Check(what, "ok", f"solves a small problem in {seconds:.1f} s, compilation included"))
    return checks


def _backend_remedy(status: str) -> str:
    """The command in a status such as "CuPy is not installed: pip install cupy-cuda12x"."""
    if command := re.search(r"pip install [^)]+", status):
        return command[0]
    import torch

    has_driver = any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/dxg"))
    if torch.version.cuda is None and has_driver:
        return "pip install --force-reinstall torch    (there is a GPU, but this torch is a build for CPUs)"
    return ""


def _try_operator(device, by_reference: bool) -> float:
    """Run the operator forward and compare it with the formula worked out by hand; returns the seconds it took."""
    import contextlib

    import torch

    from bevdet_ops import multi_camera_deformable_attention, use_reference

    value = torch.arange(12.0, device=device).view(1, 1, 12, 1, 1).repeat(1, 1, 1, 1, 8)  # a ramp on a 3 x 4 map
    reference = torch.tensor([0.5, 0.5], device=device).view(1, 1, 1, 1, 1, 2)
    weights = torch.ones(1, 1, 1, 1, 1, 1, device=device)
    start = time.perf_counter()
    with use_reference() if by_reference else contextlib.nullcontext():
        out = multi_camera_deformable_attention(value, ((3, 4),), reference, None, weights)
    if not torch.allclose(out.cpu(), torch.full((1, 1, 8), 5.5)):
        raise ValueError(f"the middle of a ramp should be 5.5, got {out.flatten().tolist()}")
    return time.perf_counter() - start


def _video() -> Check:
    from .visualize.video import INSTALL_ENCODER, find_encoder

    program = find_encoder()
    if program is None:
        return Check("MP4 encoder", "absent", "no ffmpeg here; films become GIFs", INSTALL_ENCODER.split(",")[0])
    return Check("MP4 encoder", "ok", program)
