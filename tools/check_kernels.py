"""Compile every CUDA kernel for every supported architecture. Needs no GPU: NVRTC is a library.

    pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12
    python tools/check_kernels.py [--arch sm_90] [--only backward_float] [--json FILE]

Prints registers, local memory and spills of each kernel; the exit status is 1 if one does not compile. Results are kept
in build/nvrtc, so only what has changed is compiled again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path
from typing import Any

from bevdet_ops import cuda_runtime
from bevdet_ops.cuda_kernels import Kernel, every_kernel, source_text

CACHE = Path(__file__).parents[1] / "build" / "nvrtc"
ARCHITECTURES = ("sm_70", "sm_80", "sm_90", "sm_100")
NUMBERS = {
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "spills": r"(\d+) bytes spill stores",
}
# What CuPy adds to the options that it is given.
OPTIONS = (*cuda_runtime.COMPILE_OPTIONS, "-ftz=true", "--device-as-default-execution-space", "--ptxas-options=-v")


def check(kernels: list[Kernel], architecture: str) -> list[dict[str, Any]]:
    """Compile kernels of one file: {kernel, architecture, registers, stack, spills, warnings or error} of each."""
    cuda_runtime.load_nvrtc()
    from cupy.cuda import nvrtc

    source = source_text(kernels[0].file) + "".join(kernel.instantiation for kernel in kernels)
    key = json.dumps((source, architecture, OPTIONS, nvrtc.getVersion()))
    cached = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    if cached.exists():
        return json.loads(cached.read_text())
    program = nvrtc.createProgram(source, kernels[0].file, [], [])
    try:
        nvrtc.compileProgram(program, [f"-arch={architecture}", *OPTIONS])
    except nvrtc.NVRTCError:
        error = nvrtc.getProgramLog(program)
        return [{"kernel": kernel.name, "architecture": architecture, "error": error} for kernel in kernels]
    general, *sections = nvrtc.getProgramLog(program).split("Compiling entry function")
    nvrtc.destroyProgram(program)
    warnings = [line for line in general.splitlines() if "warning" in line and "deprecated" not in line]
    found = {}
    for section in sections:
        name = section.split("'")[1]
        found[name] = {"kernel": name, "architecture": architecture, "warnings": warnings}
        for number, pattern in NUMBERS.items():
            found[name][number] = int(re.search(pattern, section).group(1))  # type: ignore[union-attr]
    results = [found[kernel.name] for kernel in kernels]
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = cached.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(results))
    partial.replace(cached)
    return results


def check_all(kernels: list[Kernel], architectures: tuple[str, ...]) -> list[dict[str, Any]]:
    """`check` of all kernels for all architectures, on all cores."""
    units: dict[tuple, list[Kernel]] = {}
    for kernel in kernels:
        units.setdefault((kernel.file, kernel.arguments[0]), []).append(kernel)
    jobs = [(unit, architecture) for unit in units.values() for architecture in architectures]
    jobs.sort(key=lambda job: job[0][0].template != "backward")  # the longest first
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        results = [result for unit in pool.map(check, *zip(*jobs, strict=True)) for result in unit]
    names = [kernel.name for kernel in kernels]
    return sorted(results, key=lambda r: (names.index(r["kernel"]), architectures.index(r["architecture"])))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append", help=f"default: {' '.join(ARCHITECTURES)}")
    parser.add_argument("--only", default="", help="part of the kernels' names")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    kernels = [kernel for kernel in every_kernel() if arguments.only in kernel.name]
    if not kernels:
        parser.error(f"no kernel's name contains {arguments.only!r}")
    results = check_all(kernels, tuple(arguments.arch or ARCHITECTURES))
    for result in results:
        report = "FAIL" if "error" in result else "{registers:4d} registers, {stack} B local, {spills} B spilled"
        print(f"{result['kernel']:32s} {result['architecture']:7s} {report.format(**result)}")
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(f"\n{result['kernel']} {result['architecture']}:\n{result['error']}", file=sys.stderr)
    print(f"{len(results) - len(failed)} of {len(results)} compile")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
