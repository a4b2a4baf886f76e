"""One small cached base model for all script tests."""

from pathlib import Path
from typing import Any

import pytest

from circuitcut.storage.results_schema import entries_of
from circuitcut.storage.run_directory import RunDirectory

FAST = ["--task", "mnist", "--base_steps", "200", "--device", "cpu"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the whole session shares."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(cache))


@pytest.fixture(autouse=True)
def _checked_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every results.json that a script writes has the documented entries, no others."""
    write = RunDirectory.write_results

    def checked(run: RunDirectory, results: dict[str, Any]) -> None:
        expected = entries_of(results["kind"])
        assert set(results) == expected, set(results) ^ expected
        write(run, results)

    monkeypatch.setattr(RunDirectory, "write_results", checked)


@pytest.fixture
def fast(tmp_path: Path) -> list[str]:
    """Flags of a job of a second or two, with its runs in the test's own folder."""
    return [*FAST, "--run_dir", str(tmp_path / "runs")]
