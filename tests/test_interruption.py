"""Signals that ask a run to stop: noted while it works, answered at the end of the stretch."""

from __future__ import annotations

import signal

import pytest

from bevdet_core import interruption
from bevdet_core.interruption import Interrupted, StopSignals


@pytest.fixture(autouse=True)
def without_harm():
    """A signal that is not noted fails its test, and does not end all of them."""
    before = {n: signal.signal(n, lambda *_: pytest.fail("not noted")) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def work(*numbers: int) -> int:
    """A stretch in which these signals come; gives the one that was noted."""
    with StopSignals() as stop:
        for number in numbers:
            signal.raise_signal(number)
        return stop.received


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_nobody_answered_ends_the_stretch(number, status):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; --resume goes on from the last check") as end:
        work(number)
    assert end.value.exit_code == status
    assert signal.getsignal(number) is before
    assert work() == 0


def test_a_second_ctrl_c_ends_the_run_where_it_stands(monkeypatch):
    with pytest.raises(Interrupted, match="stopped by SIGINT; "):  # a launcher has passed on what the terminal sent
        work(signal.SIGINT, signal.SIGINT)
    monkeypatch.setattr(interruption, "SAME_REQUEST", -1.0)  # seconds: now everything is another request
    with pytest.raises(Interrupted, match="stopped at once; --resume goes on from the last checkpoint") as end:
        work(signal.SIGTERM, signal.SIGINT)
    assert end.value.exit_code == 130
