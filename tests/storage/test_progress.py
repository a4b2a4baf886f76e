"""Signs of life: silent for seconds, then a line, then ever fewer."""

import logging
import time

import pytest

from circuitcut.storage import progress
from circuitcut.storage.progress import Progress, Waiting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_silence", progress._Silence())
    return now


def run(clock: list[float], label: str, n_steps: int, seconds: float) -> None:
    """A loop whose steps take so many seconds each."""
    with Progress(label, 0, n_steps, summary=False) as bar:
        for step in range(n_steps):
            clock[0] += seconds
            bar.advance(step)


def test_a_loop_of_seconds_says_nothing(clock, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "circuitcut"):
        run(clock, "short", 4, 1.0)
    assert caplog.messages == []


def test_many_short_loops_show_a_line_after_five_seconds(clock, caplog):
    with caplog.at_level(logging.INFO, "circuitcut"):
        for _ in range(12):
            run(clock, "scores", 2, 1.5)
    assert len(caplog.messages) == 2  # 36 s: at 6 and at 16.5
    assert caplog.messages[0].startswith("scores: step 2/2")


def test_lines_of_a_long_loop_come_ever_later_with_the_time_left(clock, caplog):
    with caplog.at_level(logging.INFO, "circuitcut"):
        run(clock, "long", 100, 1.0)
    steps = [message.split("step ")[1].split("/")[0] for message in caplog.messages]
    assert steps == ["5", "15", "35", "75"]
    assert caplog.messages[1].endswith("85 s left")


def test_what_was_silent_long_before_does_not_count(clock, caplog):
    with caplog.at_level(logging.INFO, "circuitcut"):
        run(clock, "first", 1, 1.0)
        clock[0] += 600
        run(clock, "second", 1, 1.0)
    assert caplog.messages == []


def test_waiting_speaks_after_a_while_and_stops(monkeypatch, caplog):
    monkeypatch.setattr(progress, "WAIT", 0.05)
    with caplog.at_level(logging.INFO, "circuitcut"):
        with Waiting("reading"):
            deadline = time.monotonic() + 20
            while not caplog.messages and time.monotonic() < deadline:
                time.sleep(0.01)
        n_lines = len(caplog.messages)
        time.sleep(0.2)
    assert caplog.messages[0].startswith("reading, ")
    assert len(caplog.messages) == n_lines


def test_waiting_is_silent_where_it_is_short(caplog):
    with caplog.at_level(logging.INFO, "circuitcut"), Waiting("reading"):
        pass
    assert caplog.messages == []
