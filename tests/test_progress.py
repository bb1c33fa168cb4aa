"""Signs that work goes on: a bar where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bevdet_core import progress
from bevdet_core.cli import main
from bevdet_core.data.nuscenes_index import open_index
from bevdet_core.progress import Bar, status, track
from bevdet_core.runlog import RunLog


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 100 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that lies between plain lines, in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def plain(text: str) -> str:
    """What a terminal shows, with everything that it has shown before."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)


def steps(log: RunLog, count: int, clock: list[float] | None = None) -> None:
    """Steps of a training, six seconds each, with a line about each."""
    for step in range(1, count + 1):
        log.advance("1/2", images=6)
        log.training(step, step / count, {"total": 10.0 / step}, lr=1e-3, grad_norm=1.0)
        if clock is not None:
            clock[0] += 6.0


def test_a_terminal_gets_a_bar_on_the_error_stream(terminal, capsys):
    assert list(track("abc", "counting", 3)) == ["a", "b", "c"]
    told = capsys.readouterr()
    assert told.out == ""
    assert "\x1b[" in told.err
    assert re.search(r"counting .* 0/3 .*starting", plain(told.err))
    assert re.search(r"counting .* 3/3 ", plain(told.err))


def test_elsewhere_lines_come_at_times_and_the_last_in_any_case(capsys, clock):
    for _ in track(range(6), "counting", 6):
        clock[0] += 6.0
    told = capsys.readouterr()
    assert told.out == ""
    assert "\x1b" not in told.err
    assert [re.match(r"counting \d/6", line)[0] for line in told.err.splitlines()] == [
        f"counting {count}/6" for count in (1, 3, 5, 6)
    ]


def test_a_bar_that_is_closed_early_leaves_the_terminal_in_order(terminal, capsys):
    counting = track("abc", "counting", 3)
    next(counting)
    counting.close()
    assert capsys.readouterr().err.endswith("\x1b[?25h")  # the cursor is back


def test_who_asks_for_quiet_gets_it_and_so_do_processes_beside_the_main_one(terminal, capsys, monkeypatch):
    def show(quiet: bool) -> str:
        with status("counting", quiet), Bar("counting", 1, quiet=quiet) as bar:
            bar.step()
        return "".join(capsys.readouterr())

    assert "counting" in show(quiet=False)
    assert show(quiet=True) == ""
    monkeypatch.setattr(progress.processes, "index", lambda: 1)
    assert show(quiet=False) == ""


def test_a_status_is_for_terminals(capsys, monkeypatch):
    with status("counting"):
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with status("counting [1]"):
        assert "counting [1]" in plain(capsys.readouterr().err)


def test_a_training_on_a_terminal_has_no_loss_before_it_knows_one(terminal, tmp_path, capsys):
    with RunLog(tmp_path, total_steps=20) as log:
        assert "starting" in capsys.readouterr().out
        log.advance("1/2", images=6)
        log.say("a word [in brackets] " + "that is longer than the line, " * 4)
        with log.aside():
            told = plain(capsys.readouterr().out)
        assert "a word [in brackets] " + "that is longer than the line, " * 4 in told
        assert re.search(r"training .* 1/20 .*epoch 1/2", told)
        assert not re.search("nan|loss|images", told)
        steps(log, 3)
        with log.aside():
            assert re.search(r"training .* 4/20 .*epoch 1/2  loss 3\.333 .* images/s", plain(capsys.readouterr().out))
            log.console.print("an evaluation")
            assert "training" not in capsys.readouterr().out
    assert "training" in capsys.readouterr().out


def test_a_training_in_a_log_file_is_told_in_plain_lines(tmp_path, capsys, clock):
    with RunLog(tmp_path, total_steps=20) as log:
        log.say(f"run folder {tmp_path / ('x' * 100)}")
        steps(log, 4, clock)
        log.say("a word")
    told = capsys.readouterr().out
    assert "\x1b" not in told
    first, *lines = told.splitlines()
    assert first == f"run folder {tmp_path / ('x' * 100)}"
    assert [re.sub("  [^ ]* images/s.*", "", line) for line in lines] == [
        "training 1/20  epoch 1/2  loss 10.000",
        "training 3/20  epoch 1/2  loss 3.333",
        "training 4/20  epoch 1/2  loss 2.500",
        "a word",
    ]
    assert re.search(r"\d images/s  \d+:\d\d:\d\d left$", lines[1])


def test_reading_the_tables_is_told(synthetic_copy: Path, terminal, capsys):
    open_index(synthetic_copy, "v1.0-mini")
    assert "reading the tables once, for the index" in plain(capsys.readouterr().err)
    open_index(synthetic_copy, "v1.0-mini")
    assert capsys.readouterr().err == ""


def test_the_doctor_is_told_and_its_report_stays_clean(terminal, capsys):
    assert main(["doctor", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["healthy"]
    assert "trying the back ends of the operator" in plain(told.err)
