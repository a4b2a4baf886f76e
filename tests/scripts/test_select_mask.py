"""select_mask.py: a class and its control as runs that evaluate.py accepts."""

import json
from pathlib import Path
from typing import Any

import pytest

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.scripts import evaluate, report, select_mask
from circuitcut.storage.errors import UserError
from circuitcut.training.config import parse_config

SMALL = ["--task", "ioi", "--base_steps", "3", "--n_heldout", "8", "--device", "cpu"]


def selected(tmp_path: Path, *flags: str) -> Path:
    given = [*SMALL, *flags, "--run_dir", str(tmp_path / "runs")]
    return select_mask.main(parse_config(select_mask.SelectConfig, given))


def results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


def test_a_class_and_its_control_are_runs_that_evaluate_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--classes", "weakening", "--tau", "0.1", "--ablation", "mean"]
    run = selected(tmp_path, *flags, "--n_ablated", "9")
    assert "9 of 1,024 neurons ablated: weakening" in capsys.readouterr().out
    other = selected(tmp_path, *flags, "--n_ablated", "9", "--control", "layer")
    again = selected(tmp_path, *flags, "--n_ablated", "9")
    masks = [FrozenMask.load(path) for path in (run, other, again)]
    assert masks[0].overlap(masks[1]) == 0.0
    assert masks[0].n_ablated_at == masks[1].n_ablated_at
    assert masks[0].overlap(masks[2]) == 1.0
    assert masks[0].ablated.kind == "mean"
    found = results(run)
    assert found["selection"]["n_of_classes"] > 9
    assert sum(site["n_ablated"] for site in found["per_site"]) == 9
    config = parse_config(
        evaluate.EvaluateConfig,
        ["--mask", str(run), "--run_dir", str(tmp_path / "runs"), "--device", "cpu"],
    )
    measured = results(evaluate.main(config))
    assert measured["n_ablated"] == 9
    assert measured["task"] == "ioi"
    page = report.main(report.ReportConfig(runs=[run, other])).read_text()
    assert "of the class weakening, which has" in page
    assert "all outside it" in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "lazy"], "got 'lazy'"),
        (["--classes", "weakening", "--tau", "1.5"], "--tau must be a number above 0"),
        (["--n_ablated", "0"], "--n_ablated must be a whole number from 1"),
        (["--fraction", "1.5"], "--fraction must be a number above 0"),
        (["--n_ablated", "3", "--fraction", "0.5"], "say the same"),
    ],
)
def test_a_wrong_flag_is_refused(flags: list[str], message: str, capsys: Any):
    with pytest.raises(SystemExit) as stopped:
        parse_config(select_mask.SelectConfig, flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_selected_is_refused_before_a_run_is_made(tmp_path: Path):
    with pytest.raises(UserError, match="--classes must name the classes"):
        selected(tmp_path)
    with pytest.raises(UserError, match="no neuron of the class conditional weakening"):
        selected(tmp_path, "--classes", "conditional_weakening", "--tau", "0.9")
    assert not list((tmp_path / "runs").iterdir())
