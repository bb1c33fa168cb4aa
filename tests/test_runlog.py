"""What a run says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevdet_core import runlog


def test_pace_leaves_evaluations_out_and_tells_what_the_loader_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(runlog.time, "perf_counter", lambda: clock[0])
    with runlog.RunLog(tmp_path, total_steps=4, quiet=True) as log:
        for step in range(1, 5):
            with log.waiting():
                clock[0] += 0.5
            clock[0] += 1.5
            log.advance("1/1", images=6)
            if step % 2 == 0:
                log.training(step, 1.0, {"total": 1.0}, lr=1e-3, grad_norm=1.0)
                clock[0] += 100.0
                log.evaluation(step, 1.0, {"mAP": 0.5})
        assert (log.pace.images, log.pace.seconds, log.pace.waited) == (24, 8.0, 2.0)
        assert (log.pace.rate, log.pace.waiting) == (3.0, 0.25)
    lines = [line for line in runlog.read_log(tmp_path / "log.jsonl") if "loss" in line]
    assert [(line["images_per_second"], line["loader_wait"]) for line in lines] == [(3.0, 0.25), (3.0, 0.25)]


def test_a_resumed_log_keeps_every_whole_line_and_drops_those_after_its_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = ['{"step": 1, "loss": 3.0}', '{"step": 2, "lo\xff', "[1, 2]", '{"loss": 1}', '{"step": 2, "loss": 2.0}']
    path.write_bytes("\n".join([*lines, '{"step": 3, "loss": 1.0}', '{"step": 4']).encode("latin-1"))
    with runlog.RunLog(tmp_path, total_steps=4, start_step=2, quiet=True) as log:
        log.advance("1/1", images=1)
        log.training(3, 0.75, {"total": 0.5}, lr=1e-3, grad_norm=1.0)
    assert [(line["step"], line["loss"]) for line in runlog.read_log(path)] == [(1, 3.0), (2, 2.0), (3, 0.5)]
    assert len(path.read_text().splitlines()) == 3
