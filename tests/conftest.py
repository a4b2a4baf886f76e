"""Every test runs on one thread, without a network, and the same way each time."""

import os

import pytest
import torch
from hypothesis import settings

from tests import first_calls

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)
# a loaded machine must not fail a test, nor must luck
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

first_calls.install()  # before any module of the project is imported


def pytest_runtest_setup(item: pytest.Item) -> None:
    first_calls.forget()


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take most of their time and are tested alone."""
    monkeypatch.setattr("circuitcut.reports.html.draw_all", lambda run: {})
