"""Check the operator on this machine's GPU and measure it, in under 8 minutes.

    python tools/gpu_check.py [--json gpu_check.json] [--skip sanitizer --skip benchmark]

Needs torch, CuPy and nothing installed from this repository. Prints a table and writes a JSON file; the exit status is
0 if all passed, 1 if something failed, 2 where there is no GPU that the kernels can run on.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "ops", ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402

from bevdet_ops import cuda, multi_camera_deformable_attention, reference  # noqa: E402
from bevdet_ops.cuda_kernels import C_TYPES, SPECIALISED  # noqa: E402
from ops import cuda_cases  # noqa: E402

SANITIZED_CASES = 30


class CannotRunError(Exception):
    """A check that this machine cannot run, and why."""


def run_case(case: cuda_cases.Case, device: str) -> tuple[torch.Tensor, tuple]:
    """Output and gradients of the CUDA back end."""
    arguments = cuda_cases.tensors(case, device)
    output = cuda.forward(*arguments)
    grads = cuda.backward(cuda_cases.grad_output(case, device), *arguments, case.deterministic, case.needs_grad)
    return output, grads


def check_specialised(device: str) -> str:
    """Every kernel of its own, every dtype."""
    for dtype in C_TYPES:
        for D, L, P in SPECIALISED:
            shapes = ((5, 4), (3, 3), (2, 2), (1, 1))[: L or 3]
            case = cuda_cases.Case(dtype=dtype, N=3, Q=31, D=D, shapes=shapes, P=P or 3, visible="some", spread=2.0)
            cuda_cases.assert_matches(case, *run_case(case, device))
    return f"{len(C_TYPES) * len(SPECIALISED)} cases"


def check_random(device: str, count: int = 300, seconds: float = 60.0) -> str:
    """Random calls of the whole contract."""
    start = time.perf_counter()
    for seed in range(count):
        case = cuda_cases.random_case(random.Random(seed), tuple(C_TYPES))
        try:
            cuda_cases.assert_matches(case, *run_case(case, device))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{case}") from None
        if time.perf_counter() - start > seconds:
            return f"{seed + 1} cases, then out of time"
    return f"{count} cases"


def check_large(device: str) -> str:
    """More than 2^31 elements, sampled at their end."""
    side, channels = 8208, 32
    needed = 2 * 4 * side * side * channels
    free, _ = torch.cuda.mem_get_info(device)
    if free < 1.2 * needed:
        raise CannotRunError(f"{needed / 2**30:.0f} GiB of GPU memory needed, {free / 2**30:.0f} free")
    value = torch.zeros(1, 1, side * side, 1, channels, device=device)
    value[0, 0, -1] = 1
    location = torch.full((1, 1, 1, 1, 1, 2), 1 - 0.5 / side, device=device)
    arguments = (value, [side, side], location, None, torch.ones(1, 1, 1, 1, 1, 1, device=device), None, "none", "sum")
    output = cuda.forward(*arguments)
    torch.testing.assert_close(output, torch.ones_like(output), rtol=0, atol=2e-3)
    grad_value = cuda.backward(torch.ones_like(output), *arguments, False, (True, False, False, False))[0]
    torch.testing.assert_close(grad_value.sum((1, 2, 3, 4)), torch.full((1,), 32.0, device=device), rtol=0, atol=0.1)
    return f"{value.numel():,} elements"


def check_convolution(device: str) -> str:
    """Deformable convolution against the reference."""
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in (
        (torch.float64, 1e-12),
        (torch.float32, 1e-4),
        (torch.float16, 4e-3),
        (torch.bfloat16, 3e-2),
    ):
        coordinates = torch.float64 if dtype == torch.float64 else torch.float32
        shapes = ((2, 12, 9, 11), (2, 36, 5, 6), (2, 18, 5, 6), (6, 6, 3, 3))
        inputs = [torch.randn(shape, generator=generator, dtype=coordinates) for shape in shapes]
        inputs[0], inputs[3] = inputs[0].to(dtype), inputs[3].to(dtype)
        grad = torch.randn(2, 6, 5, 6, generator=generator).to(dtype)
        options = ([2, 2], [1, 1], [1, 1])
        exact = [tensor.double().requires_grad_() for tensor in inputs]
        expected = reference.deform_conv2d_forward(*exact, *options)
        expected_grads = torch.autograd.grad(expected, exact, grad.double())
        on_device = [tensor.to(device) for tensor in inputs]
        for deterministic in (False, True):
            found = [
                cuda.deform_conv2d_forward(*on_device, *options),
                *cuda.deform_conv2d_backward(
                    grad.to(device), *on_device, *options, deterministic, cuda_cases.NEEDS_ALL
                ),
            ]
            for actual, wanted in zip(found, (expected, *expected_grads), strict=True):
                atol = tolerance * wanted.abs().max().item()
                torch.testing.assert_close(actual.cpu().double(), wanted.detach(), rtol=0, atol=atol)
    return "4 dtypes"


def public_call(case: cuda_cases.Case, device: str) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
    """The public function over a case's tensors, and those of them that take gradients."""
    value, flat, points, offsets, weights, visible, activation, reduction = cuda_cases.tensors(case, device)
    leaves = [tensor.requires_grad_() for tensor in (value, points, offsets, weights)]
    shapes = tuple(zip(flat[::2], flat[1::2], strict=True))

    def call() -> torch.Tensor:
        return multi_camera_deformable_attention(
            value, shapes, points, offsets, weights, visible, activation, reduction, case.deterministic
        )

    return call, leaves


def check_gradcheck(device: str) -> str:
    """Numerical derivatives in double precision, through the public function."""
    for D in (3, 30, 32, 71):
        case = cuda_cases.Case(dtype=torch.float64, N=2, Q=2, M=1, D=D, shapes=((3, 4), (2, 2)), P=2)
        call, leaves = public_call(case, device)
        torch.autograd.gradcheck(lambda *_, call=call: call(), leaves, fast_mode=D > 3, nondet_tol=1e-10)
    return "D = 3, 30, 32, 71"


def check_determinism(device: str) -> str:
    """The same bits in two runs in which many queries meet in few pixels."""
    case = cuda_cases.Case(B=2, Q=5000, M=8, shapes=((6, 5), (3, 3)), deterministic=True)
    (first, first_grads), (second, second_grads) = run_case(case, device), run_case(case, device)
    for a, b in zip((first, *first_grads), (second, *second_grads), strict=True):
        assert torch.equal(a, b)
    return "5,000 queries on 39 pixels"


def check_no_synchronization(device: str) -> str:
    """Neither pass waits for the GPU."""
    call, leaves = public_call(cuda_cases.Case(N=3, visible="some", reduction="mean_visible"), device)
    torch.autograd.grad(call().sum(), leaves)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(call().sum(), leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "set_sync_debug_mode('error')"


def check_second_stream(device: str) -> str:
    """Work queued on another stream stays in order with torch's own work there."""
    call, leaves = public_call(cuda_cases.Case(Q=31), device)
    expected = call().detach()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        kept = leaves[0].detach().clone()
        with torch.no_grad():
            leaves[0].fill_(float("nan"))
            torch.cuda._sleep(50_000_000)  # a kernel on the default stream would now see the NaN
            leaves[0].copy_(kept)
        output = call().detach()
    stream.synchronize()
    assert torch.equal(output, expected)
    return "ok"


def check_graph(device: str) -> str:
    """Forward and backward captured into a CUDA graph, replayed on new numbers."""
    case = cuda_cases.Case(N=3, Q=31, visible="some", reduction="mean_visible", deterministic=True)
    call, leaves = public_call(case, device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            torch.autograd.grad(call().sum(), leaves)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
        grads = torch.autograd.grad(output.sum(), leaves)
    for _ in range(3):
        with torch.no_grad():
            for leaf in leaves:
                leaf.copy_(torch.rand_like(leaf))
        graph.replay()
        expected = call()
        for a, b in zip((output, *grads), (expected, *torch.autograd.grad(expected.sum(), leaves)), strict=True):
            assert torch.equal(a, b)
    return "3 replays"


def check_second_device(device: str) -> str:
    """Tensors on cuda:1 while cuda:0 is current."""
    if torch.cuda.device_count() < 2:
        raise CannotRunError("one GPU only")
    assert torch.cuda.current_device() == 0
    case = cuda_cases.Case(Q=31, N=2, visible="some")
    cuda_cases.assert_matches(case, *run_case(case, "cuda:1"))
    assert torch.cuda.current_device() == 0
    return torch.cuda.get_device_name(1)


def check_sanitizer(tool: str) -> str:
    """compute-sanitizer over random cases, in a process of its own."""
    candidates = [shutil.which("compute-sanitizer")]
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        candidates += [shutil.which("compute-sanitizer", path=f"{home}/bin:{home}/compute-sanitizer")] if home else []
    program = next((path for path in candidates if path), None)
    if program is None:
        raise CannotRunError("compute-sanitizer is not installed")
    command = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", sys.executable]
    finished = _run([*command, str(Path(__file__)), "--only-cases", str(SANITIZED_CASES)], seconds=100)
    assert finished.returncode == 0, f"exit status {finished.returncode}:\n{finished.stdout[-3000:]}"
    return f"{SANITIZED_CASES} cases"


def check_tests() -> str:
    """The operator's own tests, which take the GPU where there is one."""
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        raise CannotRunError("pytest or hypothesis is not installed")
    ignored = [
        f"--ignore={path}" for path in (ROOT / "tests" / "ops").glob("test_cuda_*.py")
    ]  # those of the CPU harness
    finished = _run([sys.executable, "-m", "pytest", "-x", str(ROOT / "tests" / "ops"), *ignored], seconds=120)
    assert finished.returncode == 0, finished.stdout[-3000:]
    return finished.stdout.strip().splitlines()[-1]


def benchmark() -> Any:
    """What tools/bench_ops.py measures."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "bench.json")
        command = [sys.executable, str(ROOT / "tools" / "bench_ops.py"), "--device", "cuda", "--json", str(report)]
        finished = _run(command, seconds=150)
        assert finished.returncode == 0, finished.stdout[-3000:]
        print(finished.stdout)
        return json.loads(report.read_text())


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "ops"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": paths},
    )


def machine() -> dict[str, str]:
    """Card and versions that the figures belong to."""
    import cupy

    properties = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "card": f"{properties.name} (sm_{properties.major}{properties.minor})",
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "cupy": cupy.__version__,
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "python": sys.version.split()[0],
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="where the report goes")
    parser.add_argument("--skip", action="append", default=[], choices=("sanitizer", "tests", "benchmark"))
    parser.add_argument("--only-cases", type=int, metavar="COUNT", help="random cases only; what the sanitizer runs")
    arguments = parser.parse_args()
    reason = cuda.unavailable()
    if reason is not None:
        print(f"gpu_check needs a GPU: {reason}", file=sys.stderr)
        return 2
    device = "cuda:0"
    if arguments.only_cases:
        print(check_random(device, arguments.only_cases))
        return 0

    checks: list[tuple[str, Callable[[], Any]]] = [
        ("specialised kernels", lambda: check_specialised(device)),
        ("random calls", lambda: check_random(device)),
        ("more than 2^31 elements", lambda: check_large(device)),
        ("deformable convolution", lambda: check_convolution(device)),
        ("gradcheck", lambda: check_gradcheck(device)),
        ("deterministic gradients", lambda: check_determinism(device)),
        ("no synchronization", lambda: check_no_synchronization(device)),
        ("second stream", lambda: check_second_stream(device)),
        ("CUDA graph", lambda: check_graph(device)),
        ("cuda:1", lambda: check_second_device(device)),
    ]
    if "sanitizer" not in arguments.skip:
        checks += [
            (f"compute-sanitizer {tool}", lambda tool=tool: check_sanitizer(tool)) for tool in ("memcheck", "racecheck")
        ]
    if "tests" not in arguments.skip:
        checks.append(("operator tests", check_tests))
    report: dict[str, Any] = {"machine": machine(), "checks": []}
    print("\n".join(f"{key:8s} {entry}" for key, entry in report["machine"].items()), "\n")
    for name, check in checks:
        report["checks"].append(_checked(name, check))
    if "benchmark" not in arguments.skip:
        result = _checked("benchmark", benchmark)
        report["benchmark"] = result.pop("detail") if result["result"] == "ok" else None
        report["checks"].append(result)

    failed = [entry["name"] for entry in report["checks"] if entry["result"] == "FAIL"]
    arguments.json.write_text(json.dumps(report, indent=1))
    print(
        f"\n{len(report['checks']) - len(failed)} of {len(report['checks'])} without failure; report: {arguments.json}"
    )
    return 1 if failed else 0


def _checked(name: str, check: Callable[[], Any]) -> dict[str, Any]:
    """Run one check, print its line of the table, and return it for the report."""
    start = time.perf_counter()
    detail: Any
    try:
        detail = check()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        result = "ok"
    except CannotRunError as reason:
        result, detail = "not run", str(reason)
    except Exception as error:  # a failed check is a line of the table, and the next one runs
        result, detail = "FAIL", "".join(traceback.format_exception_only(error)).strip()
    seconds = time.perf_counter() - start
    shown = detail if isinstance(detail, str) else ""
    print(f"{name:26s} {result:8s} {seconds:6.1f} s  {shown}", flush=True)
    return {"name": name, "result": result, "seconds": round(seconds, 2), "detail": detail}


if __name__ == "__main__":
    sys.exit(main())
