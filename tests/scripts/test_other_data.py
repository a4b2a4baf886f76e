"""Data that have changed since a mask was made are refused, unless asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitcut.data.digits.digits import DigitImages
from circuitcut.experiments import load
from circuitcut.scripts import evaluate, faithfulness, relearn
from circuitcut.storage.atomic import read_json
from circuitcut.storage.errors import UserError
from circuitcut.training.config import parse_config
from tests.scripts.conftest import FAST
from tests.scripts.test_resume import MASK, RELEARN, trained

SCRIPTS: dict[str, tuple[Any, type, list[str]]] = {
    "evaluate": (evaluate, evaluate.EvaluateConfig, []),
    "relearn": (relearn, relearn.RelearnConfig, RELEARN),
    "faithfulness": (faithfulness, faithfulness.FaithfulnessConfig, []),
}
Start = Callable[..., Path]


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of masks."""
    parent = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUITCUT_CACHE", str(cache))
        isolate = ["--direction", "isolate", "--run_dir", str(parent)]
        return trained([*FAST, *MASK, *isolate])


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are others than when the mask was made; so says their hash alone."""
    monkeypatch.setattr(DigitImages, "fingerprint", lambda self: "f" * 64)


def started(name: str, run: Path, parent: Path, *flags: str) -> dict[str, Any]:
    script, config, usual = SCRIPTS[name]
    where = ["--mask", str(run), "--run_dir", str(parent), "--base", "always"]
    path = script.main(parse_config(config, [*where, *usual, *flags]))
    return read_json(path / "results.json")


@pytest.mark.parametrize("name", SCRIPTS)
def test_changed_data_are_refused_before_any_model_is_made(
    name: str,
    run: Path,
    tmp_path: Path,
    changed: None,
    monkeypatch: pytest.MonkeyPatch,
):
    def model_of(*_: Any) -> Any:
        raise AssertionError("a model is made")

    monkeypatch.setattr(load, "_model", model_of)
    with pytest.raises(UserError, match=r"data have changed .* ffffffff now\)"):
        started(name, run, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--allow_other_data"], ["--split_seed", "1"]])
def test_other_data_that_are_asked_for_are_told_in_results(
    flags: list[str], run: Path, tmp_path: Path, changed: None
):
    """The hash of the data is a part of the base model's: other weights, same shape."""
    accepted = [*flags, "--allow_other_weights"]
    for name in ("evaluate", "relearn"):
        found = started(name, run, tmp_path, *accepted)
        assert "the mask was made on other data" in found["warning"]


def test_the_same_data_need_no_word(run: Path, tmp_path: Path):
    found = started("evaluate", run, tmp_path)
    assert "other data" not in (found["warning"] or "")
