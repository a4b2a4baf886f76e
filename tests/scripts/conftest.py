"""One small cached base model for all script tests."""

from pathlib import Path

import pytest

FAST = ["--task", "mnist", "--base_steps", "200", "--device", "cpu"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the whole session shares."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(cache))


@pytest.fixture
def fast(tmp_path: Path) -> list[str]:
    """Flags of a job of a second or two, with its runs in the test's own folder."""
    return [*FAST, "--run_dir", str(tmp_path / "runs")]
