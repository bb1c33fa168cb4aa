"""What a training run tells: how far it is, on the terminal; `log.jsonl` and TensorBoard files in the run folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from .documents import DocumentError, is_integer, parse_json
from .files import write_text
from .progress import Bar


@dataclass
class Pace:
    """How quickly some steps went."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # seconds of them, for the next batch

    @property
    def rate(self) -> float:
        """Camera images per second."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def waiting(self) -> float:
        """The share of the time that was spent waiting for the loader, 0 to 1."""
        return self.waited / max(self.seconds, 1e-9)


class RunLog:
    """Writes the log of one run; a context manager. Every line of `log.jsonl` is one JSON object.

    A resumed run continues the file; lines after the step it resumes from are dropped first, so that each step stands
    in the log once.

    Args:
        folder: of the run; None: neither file nor word, for processes that work beside the main one.
        total_steps: of the whole run.
        start_step: from which it goes on.
        quiet: nothing on the terminal.
    """

    def __init__(self, folder: Path | None, total_steps: int, start_step: int = 0, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet or folder is None)
        self._file = self._board = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            path = folder / "log.jsonl"
            _drop_after(path, start_step)
            self._file = path.open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
        self._bar = Bar("training", total_steps, start_step, quiet or folder is None, self.console)
        self._epoch = self._last = ""  # for the reader: the epoch, and loss and pace of the last line
        self.pace = Pace()  # of all steps since the start, without evaluations
        self._recent = Pace()  # since the last line
        self._waited, self._since = 0.0, time.perf_counter()  # in this step; its start

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._file is not None and self._board is not None:
            self._board.close()
            self._file.close()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for the loader."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def advance(self, epoch: str, images: int) -> None:
        """Count one step and the camera images that went into it."""
        now = time.perf_counter()
        for pace in (self._recent, self.pace):
            pace.images += images
            pace.seconds += now - self._since
            pace.waited += self._waited
        self._waited, self._since = 0.0, now
        self._epoch = f"epoch {epoch}"
        self._bar.advance(self._epoch + self._last)

    def training(self, step: int, epoch: float, losses: Mapping[str, float], lr: float, grad_norm: float) -> None:
        """One line about the steps since the last one; `losses` holds "total" and the terms."""
        pace, self._recent = self._recent, Pace()
        self._last = f"  loss {losses['total']:.3f}  {pace.rate:.1f} images/s"
        self._bar.tell(self._epoch + self._last)
        terms = {name: value for name, value in losses.items() if name != "total"}
        self._write(
            {
                "step": step,
                "epoch": round(epoch, 4),
                "loss": losses["total"],
                "lr": lr,
                "grad_norm": grad_norm,
                "images_per_second": round(pace.rate, 2),
                "loader_wait": round(pace.waiting, 4),
                "losses": terms,
            }
        )
        self._draw("train", {"loss": losses["total"], "lr": lr, "grad_norm": grad_norm, **terms}, step)

    def evaluation(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """One line about an evaluation."""
        self._write({"step": step, "epoch": round(epoch, 4), "metrics": dict(metrics)})
        self._draw("val", metrics, step)
        self._waited, self._since = 0.0, time.perf_counter()

    def say(self, message: str) -> None:
        """A line for the reader, above the bar."""
        self._bar.flush()
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Around an evaluation, which shows by itself how far it is."""
        return self._bar.aside()

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")

    def _draw(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a `log.jsonl`; one that a killed run cut short, or that is damaged, is left out."""
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(DocumentError):
            line = parse_json(text)
            if isinstance(line, dict) and is_integer(line.get("step")):
                lines.append(line)
    return lines


def _drop_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [line for line in read_log(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
