"""CI's comparison of README's numbers with the demo's, on results made up here."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
_spec = importlib.util.spec_from_file_location(
    "readme_numbers", ROOT / ".ci/readme_numbers.py"
)
assert _spec is not None
assert _spec.loader is not None
check = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check)


def _write_demo(runs: Path, **changed: float) -> None:
    """Two finished runs with README's numbers, some of them changed."""
    numbers = check.stated(README) | changed
    summary = [
        {"condition": condition, "limit": limit, "step": step, "concept": concept}
        for condition, limit, step, concept in (
            ("cut", int(numbers["examples"]), 12, 0.1),
            ("cut", int(numbers["examples"]), 40, numbers["relearned"]),
            ("uncut", int(numbers["examples"]), 40, 0.99),
            ("cut", None, 40, 0.97),
        )
    ]
    mask = {
        "n_ablated": numbers["ablated"],
        "n_units": numbers["units"],
        "scores": {
            side: {"concept_f1": numbers[side], "retain_f1": numbers[f"rest_{side}"]}
            for side in ("uncut", "cut")
        },
    }
    relearning = {"mask": "runs/a", "summary": summary}
    for name, kind, results in (
        ("a", "train_mask", mask),
        ("b", "relearn", relearning),
    ):
        _write(runs / name / "config.json", {"kind": kind})
        _write(runs / name / "results.json", results)


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def test_the_demo_has_readme_s_numbers(tmp_path: Path):
    _write_demo(tmp_path)
    assert check.main(ROOT / "README.md", tmp_path) == 0


@pytest.mark.parametrize("name", check.TOLERANCES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_that_parts_from_readme_fails(
    name: str, sign: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tolerance = check.TOLERANCES[name]
    number = check.stated(README)[name]
    _write_demo(tmp_path, **{name: number + sign * 0.9 * tolerance})
    assert check.main(ROOT / "README.md", tmp_path) == 0
    further = 1.1 * tolerance + 0.001 if tolerance else 1
    _write_demo(tmp_path, **{name: number + sign * further})
    assert check.main(ROOT / "README.md", tmp_path) == 1
    assert f"error: {name}: README" in capsys.readouterr().err


def test_a_score_that_is_not_a_number_fails(tmp_path: Path):
    _write_demo(tmp_path, cut=float("nan"))
    assert check.main(ROOT / "README.md", tmp_path) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("| F1 .981 →", "| F1 .971 →", "table and figure part in uncut"),
        ("units | F1", "units | the F1", "another form"),
        ("brings it back to", "restores", "another form"),
    ],
)
def test_a_readme_that_contradicts_itself_fails(
    old: str, new: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert README.count(old) == 1
    _write_demo(tmp_path)
    (tmp_path / "README.md").write_text(README.replace(old, new), encoding="utf-8")
    assert check.main(tmp_path / "README.md", tmp_path) == 1
    assert said in capsys.readouterr().err


def test_without_a_finished_demo_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert check.main(ROOT / "README.md", tmp_path) == 1
    assert "no finished train_mask run" in capsys.readouterr().err
