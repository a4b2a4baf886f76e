"""TensorBoard and metrics.jsonl say the same, also after an interruption."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.tracking import Tracker


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, kind="test", task="t", model="m", config={})


def _events(run: RunDirectory) -> EventAccumulator:
    events = EventAccumulator(str(run.path))
    events.Reload()
    return events


def test_both_records_hold_the_same_scalars(run: RunDirectory):
    with Tracker(run) as tracker:
        for step in range(3):
            tracker.scalars(step, {"loss": 0.5**step, "ablated/expected": 3.0})
    assert [entry["loss"] for entry in run.metrics()] == [1.0, 0.5, 0.25]
    shown = _events(run).Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [
        (0, 1),
        (1, 0.5),
        (2, 0.25),
    ]


def test_a_resumed_run_shows_each_step_once(run: RunDirectory):
    with Tracker(run) as tracker:
        for step in range(5):
            tracker.scalars(step, {"loss": 1.0})
    with Tracker(run, resume_step=3) as tracker:
        for step in range(3, 6):
            tracker.scalars(step, {"loss": 2.0})
    expected = [(step, 1.0 if step < 3 else 2.0) for step in range(6)]
    assert [(entry["step"], entry["loss"]) for entry in run.metrics()] == expected
    shown = _events(run).Scalars("loss")
    assert [(event.step, event.value) for event in shown] == expected


def test_images_histograms_and_hparams_are_written(run: RunDirectory):
    with Tracker(run) as tracker:
        tracker.histogram(1, "gates", torch.tensor([0.0, 1.0, 1.0]))
        tracker.image(1, "kept", torch.zeros(4, 5, 3))
        tracker.hparams({"lr": 0.1, "units": ["heads"], "k": None}, {"f1": 0.25})
    events = _events(run)
    histogram = events.Histograms("gates")[0].histogram_value
    assert (histogram.num, histogram.sum) == (3, 2)
    image = events.Images("kept")[0]
    assert (image.width, image.height) == (5, 4)
    assert events.Scalars("f1")[0].value == 0.25
    assert not [path for path in run.path.iterdir() if path.is_dir()]
