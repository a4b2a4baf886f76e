"""The device of the tests in this folder; they are skipped where there is none.

CIRCUITCUT_TEST_DEVICE=cpu runs them on the CPU: it proves the tests, not the device.
"""

import os

# cuBLAS reads it when it starts; without it, it is not deterministic
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

DEVICE = os.environ.get("CIRCUITCUT_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: torch.cuda.is_available() is false")
    return torch.device(DEVICE)
