"""Signs that work goes on: bars on a terminal; elsewhere, as in the log file of a scheduler, a plain line at times."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from . import processes

LEFT = " left"
EVERY = 10.0  # seconds at least between two plain lines
MEMORY = 300.0  # seconds of which the pace tells how long the rest takes

Item = TypeVar("Item")


class Bar:
    """How far some work has come; a context manager.

    Only the main process shows anything. Until the first step is done, which may have kernels to compile, it says
    "starting". A plain line is held back when one was written shortly before; the last one is written in any case.

    Args:
        label: what is being done.
        total: steps of it.
        completed: of them, at the start.
        quiet: nothing is shown.
        console: where; default: the error stream, so that the output holds results alone.
    """

    def __init__(
        self, label: str, total: int, completed: int = 0, quiet: bool = False, console: Console | None = None
    ) -> None:
        self._console = console or _errors()
        self._shown = not quiet and processes.is_main()
        self._live = self._shown and _moves(self._console)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(min_width=4, ratio=1)),
            MofNCompleteColumn(table_column=Column(min_width=len(f"{total}/{total}"), no_wrap=True)),
            _Clock(table_column=Column(min_width=len(_clock(0) + LEFT), no_wrap=True)),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),  # is what gives way
            console=self._console,
            expand=True,
            speed_estimate_period=MEMORY,
            disable=not self._live,
        )
        self._number = self._progress.add_task(label, total=total, completed=completed, text="starting")
        self._held: str | None = None  # the newest line that was not written
        self._written = -math.inf  # when the last one was

    def __enter__(self) -> Bar:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Show the bar."""
        self._progress.start()

    def stop(self) -> None:
        """Leave the bar as it stands, and write the line that was held back."""
        self._progress.stop()
        self.flush()

    def advance(self, text: str = "") -> None:
        """Count one step, with a text about it."""
        self._progress.update(self._number, advance=1, text=text)

    def tell(self, text: str = "") -> None:
        """Where lines take the place of the bar, write one, or hold it back."""
        self._progress.update(self._number, text=text)
        if not self._shown or self._live:
            return
        self._held = self._line(text)
        if time.monotonic() - self._written >= EVERY:
            self.flush()

    def step(self) -> None:
        """Count one step, and tell it."""
        self.advance()
        self.tell()

    def flush(self) -> None:
        """Write the plain line that was held back, before something else is said."""
        if self._held is not None:
            self._console.print(self._held, highlight=False, markup=False, soft_wrap=True)
            self._held, self._written = None, time.monotonic()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around other work that shows how far it is."""
        self.stop()
        yield
        if not self._progress.finished:
            self.start()

    def _line(self, text: str) -> str:
        task = self._progress.tasks[0]
        words = [f"{task.description} {task.completed:.0f}/{task.total:.0f}", text]
        if not task.finished and task.time_remaining is not None:
            words.append(_clock(task.time_remaining) + LEFT)
        return "  ".join(filter(None, words))


class _Clock(ProgressColumn):
    """How long the rest takes; in the end, how long all of it took."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(_clock(task.finished_time or 0))
        return Text("" if task.time_remaining is None else _clock(task.time_remaining) + LEFT)


def track(items: Iterable[Item], label: str, total: int, quiet: bool = False) -> Generator[Item, None, None]:
    """Give items one by one and show how many of them are done; see `Bar`. Close it where it is not read to its end."""
    with Bar(label, total, quiet=quiet) as bar:
        for item in items:
            yield item
            bar.step()


@contextlib.contextmanager
def status(label: str, quiet: bool = False) -> Iterator[None]:
    """Around work of unknown length: what it is, and for how long it has gone on. Without a terminal it is silent."""
    console = _errors()
    shown = not quiet and processes.is_main() and _moves(console)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        progress.add_task(label, total=None)
        yield


def _errors() -> Console:
    # The stream of this moment: what others write to it later may be caught, as that of the nuScenes devkit is.
    return Console(file=sys.stderr)


def _moves(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
