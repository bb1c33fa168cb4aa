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

from bevdet_ops import cuda
from bevdet_ops.cuda_kernels import Kernel, every_kernel

CACHE = Path(__file__).parents[1] / "build" / "nvrtc"
ARCHITECTURES = ("sm_70", "sm_80", "sm_90", "sm_100")
# What CuPy adds to the options that it is given.
OPTIONS = (*cuda.COMPILE_OPTIONS, "-ftz=true", "--device-as-default-execution-space", "--ptxas-options=-v")


def check(kernel: Kernel, architecture: str) -> dict[str, Any]:
    """Compile one kernel: {kernel, architecture, registers, stack, spills, cubin_bytes}, or {.., error}."""
    cuda.load_nvrtc()
    from cupy.cuda import nvrtc

    key = json.dumps((kernel.source, architecture, OPTIONS, nvrtc.getVersion()))
    cached = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    if cached.exists():
        return json.loads(cached.read_text())
    result: dict[str, Any] = {"kernel": kernel.name, "architecture": architecture}
    program = nvrtc.createProgram(kernel.source, f"{kernel.name}.cu", [], [])
    try:
        nvrtc.compileProgram(program, [f"-arch={architecture}", *OPTIONS])
    except nvrtc.NVRTCError:
        return {**result, "error": nvrtc.getProgramLog(program)}
    log = nvrtc.getProgramLog(program)
    for name, pattern in (
        ("registers", r"Used (\d+) registers"),
        ("stack", r"(\d+) bytes stack frame"),
        ("spills", r"(\d+) bytes spill stores"),
    ):
        found = re.search(pattern, log)
        result[name] = int(found.group(1)) if found else None
    result["warnings"] = [line for line in log.splitlines() if "warning" in line and "deprecated" not in line]
    result["cubin_bytes"] = len(nvrtc.getCUBIN(program))
    nvrtc.destroyProgram(program)
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = cached.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(result))
    partial.replace(cached)
    return result


def check_all(kernels: list[Kernel], architectures: tuple[str, ...]) -> list[dict[str, Any]]:
    """`check` of every pair, on all cores."""
    pairs = [(kernel, architecture) for kernel in kernels for architecture in architectures]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        return list(pool.map(check, *zip(*pairs, strict=True), chunksize=4))


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
