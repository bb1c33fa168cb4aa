"""The CPU back end in the world: threads, forked workers, caches on disk, memory, imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import bevdet_ops
from bevdet_ops import MSDeformAttn, deform_conv2d, multi_camera_deformable_attention

SHAPES = ((20, 30), (10, 15))
PACKAGE = Path(bevdet_ops.__file__).parent

CALL = """
import time
import torch
from bevdet_ops import multi_camera_deformable_attention as attend
torch.set_num_threads(2)
value, weights = torch.ones(1, 1, 12, 1, 8, requires_grad=True), torch.ones(1, 1, 5, 1, 1, 4, requires_grad=True)
start = time.perf_counter()
attend(value, ((3, 4),), torch.full((1, 1, 5, 1, 1, 2), 0.5), None, weights).sum().backward()
seconds = time.perf_counter() - start
assert torch.allclose(weights.grad, torch.full_like(weights.grad, 8.0))
from bevdet_ops.cpu_kernels import attend, differentiate_samples, differentiate_value
hits = [sum(kernel.stats.cache_hits.values()) for kernel in (attend, differentiate_samples, differentiate_value)]
print(seconds, *hits)
"""


def outputs(seed: int = 0) -> list[torch.Tensor]:
    """Output and gradients of both operators, large enough for threads."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    value, weights, offsets = normal(1, 2, 750, 4, 32), normal(1, 1, 300, 4, 2, 4), normal(1, 1, 300, 4, 2, 4, 2)
    points = torch.rand(1, 2, 300, 1, 1, 2, generator=generator)
    attended = multi_camera_deformable_attention(value, SHAPES, points, offsets, weights, None, "softmax", "mean")
    image, offset, weight = normal(2, 64, 20, 20), normal(2, 18, 20, 20), normal(8, 64, 3, 3)
    convolved = deform_conv2d(image, offset, weight, padding=1)
    inputs = (value, offsets, weights, image, offset, weight)
    grads = torch.autograd.grad((attended.square().sum() + convolved.square().sum()), inputs)
    return [attended.detach(), convolved.detach(), *grads]


@pytest.fixture
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.usefixtures("restore_threads")
def test_same_bits_for_any_number_of_threads(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from bevdet_ops import cpu_kernels, cpu_threads

    def only_kernels() -> list[torch.Tensor]:
        """Without the matrix products of the convolution, which are torch's."""
        attended, _, value_grad, offsets_grad, weights_grad, *_ = outputs()
        return [attended, value_grad, offsets_grad, weights_grad]

    def counting(*arguments):
        workers.add(threading.get_ident())
        return attend(*arguments)

    if not openmp:
        monkeypatch.setattr(cpu_threads, "_openmp", lambda: None)
    elif cpu_threads._openmp() is None:
        pytest.skip("torch came without an OpenMP library")
    attend, workers = cpu_kernels.attend, set()
    monkeypatch.setattr(cpu_kernels, "attend", counting)
    torch.set_num_threads(1)
    wanted = only_kernels()
    assert len(workers) == 1
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(only_kernels(), wanted, strict=True))
    assert len(workers) > 1


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.usefixtures("restore_threads")
def test_two_python_threads_at_once(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from bevdet_ops import cpu_threads

    if not openmp:
        monkeypatch.setattr(cpu_threads, "_openmp", lambda: None)
    torch.set_num_threads(2)
    wanted = {seed: outputs(seed) for seed in range(4)}
    found: dict[int, list[list[torch.Tensor]]] = {}

    def work(seed: int) -> None:
        found[seed] = [outputs(seed) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, rounds in found.items():
        for tensors in rounds:
            torch.testing.assert_close(tensors, wanted[seed])
    assert set(found) == set(wanted)


class Attended(Dataset):
    """A data set that calls the operators for every item, in threads of its own if asked to."""

    def __init__(self, threaded: bool) -> None:
        self.threaded = threaded

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        from bevdet_ops import cpu_threads

        assert torch.get_num_threads() == 1 + self.threaded
        tensors = outputs(index)
        assert (cpu_threads._pool is not None) == self.threaded
        return tensors


def own_threads(worker: int) -> None:
    """Two threads for the kernels, but not for torch, whose OpenMP does not outlive a fork."""
    torch.get_num_threads = lambda: 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.usefixtures("restore_threads")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_data_loader_workers(threaded: bool) -> None:
    torch.set_num_threads(1)
    wanted = [outputs(index) for index in range(6)]  # torch's matrix products round as they do in the workers
    torch.set_num_threads(2)
    before = outputs(0)  # the parent's threads are at work before the fork
    for _ in range(2):
        loader = DataLoader(
            Attended(threaded),
            batch_size=None,
            num_workers=2,
            multiprocessing_context="fork",
            timeout=60,
            worker_init_fn=own_threads if threaded else None,
        )
        for tensors, expected in zip(loader, wanted, strict=True):
            torch.testing.assert_close(tensors, expected)
    torch.testing.assert_close(outputs(0), before)


def run(code: str, **environment: str) -> str:
    settings = os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | environment
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_call_compiles_and_later_processes_load(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "bevdet_ops", ignore=shutil.ignore_patterns("__pycache__"))
    places = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first = run(CALL, **places).split()
    assert first[1:] == ["0", "0", "0"]
    later = run(CALL, **places).split()
    assert later[1:] == ["1", "1", "1"]
    assert float(later[0]) < float(first[0]) / 2
    with (tmp_path / "bevdet_ops" / "cpu_vector.py").open("a") as called_by_kernels:
        called_by_kernels.write("# a new version\n")
    assert run(CALL, **places).split()[1:] == ["0", "0", "0"]


def test_package_folder_that_cannot_be_written(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "bevdet_ops", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "bevdet_ops" / "__pycache__").touch()  # a file: not even root can write into it
    home = tmp_path / "home"
    home.mkdir()
    places = {"PYTHONPATH": str(tmp_path), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    places |= {"XDG_CACHE_HOME": str(home / "cache")}
    assert run(CALL, **places).split()[1:] == ["0", "0", "0"]
    assert list(home.rglob("*.nbi"))  # in the user's cache instead
    assert run(CALL, **places).split()[1:] == ["1", "1", "1"]


def test_no_folder_for_the_cache_at_all(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    shutil.copytree(PACKAGE, tmp_path / "bevdet_ops", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "bevdet_ops" / "__pycache__").touch()
    places = {"PYTHONPATH": str(tmp_path), "HOME": str(blocked), "XDG_CACHE_HOME": str(blocked)}
    assert run(CALL, PYTHONDONTWRITEBYTECODE="1", **places).split()[1:] == ["0", "0", "0"]


def test_import_brings_torch_alone() -> None:
    code = """
import sys, time, torch
before = set(sys.modules)
start = time.perf_counter()
import bevdet_ops
seconds = time.perf_counter() - start
heavy = {"numba", "cupy", "llvmlite", "torch._dynamo", "torch._inductor", "scipy", "matplotlib"}
print(seconds, *(heavy & {name for name in sys.modules if name not in before}))
"""
    seconds, *heavy = min((run(code).split() for _ in range(3)), key=lambda words: float(words[0]))
    assert heavy == []
    assert float(seconds) < 0.1


def test_memory_of_a_call_is_its_output() -> None:
    """The peak of resident memory during forward and backward, beyond inputs, against the reference."""
    code = """
import resource, sys, torch, bevdet_ops, contextlib
shapes, B, M, D, P = ((64, 80), (32, 40)), 1, 8, 32, 4
Q = S = sum(h * w for h, w in shapes)
value, offsets = torch.randn(B, 1, S, M, D), torch.randn(B, 1, Q, M, 2, P, 2)
weights, points = torch.randn(B, 1, Q, M, 2, P), torch.rand(B, 1, Q, 1, 1, 2)
def call(count):
    part = [tensor[:, :, :count] for tensor in (points, offsets, weights)]
    return bevdet_ops.multi_camera_deformable_attention(value, shapes, *part, None, "softmax")
with bevdet_ops.use_reference() if sys.argv[1] == "reference" else contextlib.nullcontext():
    call(10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = call(Q)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    peaks = {}
    for name in ("cpu", "reference"):
        command = [sys.executable, "-c", code, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks[name] = int(done.stdout)
    assert peaks["cpu"] <= peaks["reference"] / 5


def test_status_says_what_runs() -> None:
    status = bevdet_ops.backend_status()
    assert (status["reference"], status["cpu"]) == ("available", "available")
    assert (status["cuda"] == "available") == torch.cuda.is_available() or "CuPy" in status["cuda"]


def test_module_trains() -> None:
    torch.manual_seed(0)
    attention = MSDeformAttn(32, 2, 4, 2)
    query, value = torch.randn(2, 7, 32), torch.randn(2, 750, 32)
    points, target = torch.rand(2, 7, 2, 2), torch.randn(2, 7, 32)
    optimizer = torch.optim.Adam(attention.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = (attention(query, points, value, SHAPES) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.usefixtures("restore_threads")
def test_errors_in_threads_reach_the_caller(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from bevdet_ops import cpu_threads

    def kernel(begin: int, end: int) -> None:
        if begin <= 13 < end:
            raise ArithmeticError("item 13")

    if not openmp:
        monkeypatch.setattr(cpu_threads, "_openmp", lambda: None)
    torch.set_num_threads(2)
    with pytest.raises(ArithmeticError, match="item 13"):
        cpu_threads.parallel_for(kernel, 100, 1e9)
    covered: list[int] = []
    cpu_threads.parallel_for(lambda begin, end: covered.extend(range(begin, end)), 100, 1e9)
    assert sorted(covered) == list(range(100))
