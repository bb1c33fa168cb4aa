"""Processes that run `bevdet` without the seconds that Python needs to import it.

One process has imported everything and waits; each command is a fork of it, with a life, signals and an exit status of
its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = """
import json, os, signal, sys
import bevdet_core.cli, bevdet_core.engine, bevdet_core.visualize, bevdet_core.evaluation.nuscenes
import bevdet_core.evaluation.coco, bevdet_core.data.nuscenes, bevdet_core.data.coco, torch.utils.tensorboard
import nuscenes.eval.detection.algo, nuscenes.utils.splits, faster_coco_eval, matplotlib.backends.backend_agg

for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        print(os.waitstatus_to_exitcode(os.waitpid(task["wait"], 0)[1]), flush=True)
        continue
    if "poll" in task:
        pid, status = os.waitpid(task["poll"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(task["environment"])
    status = 70
    try:
        for limit, size in task["limits"].items():
            import resource
            resource.setrlimit(getattr(resource, limit), (size, size))
        status = bevdet_core.cli.main(task["words"])
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
"""


class Child:
    """A running command."""

    def __init__(self, nursery: Nursery, pid: int, output: Path) -> None:
        self.nursery, self.pid, self.output = nursery, pid, output
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status, minus the signal that killed it; None while it runs."""
        if self._status is None:
            self._status = self.nursery._ask({"poll": self.pid})
        return self._status

    def wait(self) -> int:
        """The exit status, at its end."""
        if self._status is None:
            self._status = self.nursery._ask({"wait": self.pid})
        return self._status

    def kill(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def told(self) -> str:
        """What it has written to its terminal."""
        return self.output.read_text()


class Nursery:
    """Starts `bevdet` commands; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def __enter__(self) -> Nursery:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._server.communicate()

    def start(
        self,
        words: Sequence[object],
        environment: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> Child:
        """Start `bevdet WORDS`; `limits` are those of `resource.setrlimit`, by name."""
        self._count += 1
        output = self.folder / f"output-{self._count}.txt"
        task = {
            "words": [str(word) for word in words],
            "environment": dict(environment or {}),
            "limits": dict(limits or {}),
            "output": str(output),
        }
        return Child(self, self._ask(task), output)

    def start_together(self, count: int, words: Sequence[object]) -> list[Child]:
        """Start `bevdet WORDS` in several processes that know of each other, as `torchrun` would."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        return [self.start(words, {**common, "RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(count)]

    def _ask(self, task: Mapping[str, object]):
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def wait_until(condition, child: Child, seconds: float = 120.0) -> None:
    """Wait for a condition while a command runs; fails if it ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, child.told()
        assert time.monotonic() < deadline, child.told()
        time.sleep(0.002)
