"""How a run ends that is asked to stop: by SIGTERM, as schedulers do, or by Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

SAME_REQUEST = 2.0  # seconds; a launcher passes on the Ctrl-C that the terminal has sent to all of its processes
GO_ON = "--resume goes on from the last checkpoint"


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop.

    Attributes:
        number: of the signal.
        exit_code: 128 + number of the signal, as shells and schedulers count: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


@contextlib.contextmanager
def stopping_at_once(words: str) -> Iterator[None]:
    """A stretch that SIGTERM or Ctrl-C ends where it stands, by `Interrupted`, so that what is open is closed.

    Args:
        words: for the message, after what has stopped the run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if raised and now - raised[-1] <= SAME_REQUEST:
            return  # what is open is being closed
        raised.append(now)
        raise Interrupted(number, f"stopped by {signal.Signals(number).name}{words}")

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopSignals:
    """A stretch in which SIGTERM and the first Ctrl-C are noted instead of ending the process where it stands.

    A second Ctrl-C does end it. What was noted and not answered by the end of the stretch is raised there as
    `Interrupted`. Outside the main thread, where Python delivers no signals, nothing is noted.

    Args:
        words: for the message, after what has stopped the run.

    Attributes:
        received: number of the signal, 0 while there was none.
    """

    def __init__(self, words: str = f"; {GO_ON}") -> None:
        self.words = words
        self.received = 0
        self._since = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self.received and error is None:
            raise Interrupted(self.received, f"stopped by {signal.Signals(self.received).name}{self.words}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._since = number, now
        elif number == signal.SIGINT and now - self._since > SAME_REQUEST:
            raise Interrupted(number, f"stopped at once{self.words}")
