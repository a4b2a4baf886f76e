"""The cache of base models: what is one model and what is another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitcut.experiments.base_model import with_base_model
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.load import load

CONFIG = TaskConfig(task="mnist", device="cpu", base_steps=2)


def _trained_in(config: TaskConfig, **options: Any) -> str:
    folder: str = with_base_model(load(config), **options).base["folder"]
    return folder


def test_the_concept_by_name_is_the_one_that_the_task_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path))
    folder = _trained_in(CONFIG)
    assert _trained_in(replace(CONFIG, concept="3")) == folder
    assert _trained_in(replace(CONFIG, concept="4")) != folder
