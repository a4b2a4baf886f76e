"""select_mask.py: a class and its control as runs that evaluate.py accepts."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.saving import save_model
from circuitcut.scripts import evaluate, relearn, report, select_mask
from circuitcut.storage.errors import UserError
from circuitcut.training.config import parse_config
from tests.models.tiny import tiny_loaded

SMALL = ["--task", "ioi", "--base_steps", "3", "--n_heldout", "8", "--device", "cpu"]


def selected(tmp_path: Path, *flags: str) -> Path:
    given = [*SMALL, *flags, "--run_dir", str(tmp_path / "runs")]
    return select_mask.main(parse_config(select_mask.SelectConfig, given))


def results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
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
        (["--take", "most_frequent"], "needs --n_ablated"),
        (["--ablation", "cap"], "ablation cap needs --theta"),
        (["--ablation", "fixed", "--theta", "nan"], "--theta must be"),
        (["--theta", "1"], "--theta belongs to ablation fixed, cap, scale"),
        (["--when", "gate"], "--when must be one of all, gate+"),
        (["--at_positions", "-1"], "--at_positions must be a whole number from 0"),
        (["--max_length", "16", "--at_positions", "3", "16"], "below the 16 of a text"),
        (["--ablation", "counterfactual", "--when", "gate+"], "cannot be given with"),
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


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny gated model with a tokenizer, as `save_model` writes it."""
    folder = tmp_path_factory.mktemp("llama")
    save_model(tiny_loaded("llama", "causal_lm"), folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Prompts of a task that is data alone."""
    places, words = ("Paris", "Rome"), ("Mary", "John", "Ann", "said", "went", "and")
    rows = [
        {
            "prompt": f"{one} {other} {third} to",
            "answer": places[number % 2],
            "rivals": places[1 - number % 2],
            "group": str(number),
            "retain": f"{third} {one} and {other} said Ann went .",
        }
        for number, (one, other, third) in enumerate(product(words, words, words[:3]))
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_rule_on_gated_neurons_is_evaluated_and_relearned(
    llama: Path, prompts: Path, tmp_path: Path
):
    """Task and data are those of the run; a control by frequency has its counts."""
    flags = ["--task", "prompts", "--data", str(prompts), "--model", str(llama)]
    flags += ["--device", "cpu", "--run_dir", str(tmp_path / "runs")]
    flags += ["--classes", "orthogonal_output", "--n_ablated", "12", "--n_heldout", "8"]
    flags += ["--tau", "0.15"]

    def made(*more: str) -> Path:
        given = parse_config(select_mask.SelectConfig, [*flags, *more])
        return select_mask.main(given)

    run = made("--ablation", "mean", "--when", "gate-/post+", "--take", "most_frequent")
    mask = FrozenMask.load(run)
    assert mask.ablated.rule is not None
    assert (mask.ablated.rule.condition, mask.n_ablated) == ("gate-/post+", 12)
    assert results(run)["ablation"] == "mean"
    least = made("--take", "least_frequent")
    on = [results(path)["selection"]["on"]["ablated"] for path in (run, least)]
    assert on[0] > on[1]
    own = ["--run_dir", str(tmp_path / "runs"), "--device", "cpu", "--mask", str(run)]
    measured = results(evaluate.main(parse_config(evaluate.EvaluateConfig, own)))
    assert measured["task"] == "prompts"
    assert measured["scores"]["cut"] != measured["scores"]["uncut"]
    relearned = parse_config(
        relearn.RelearnConfig,
        [
            *(*own, "--n_steps", "2", "--n_evaluations", "1", "--seeds", "0"),
            *("--limits", "all", "--batch_size", "4", "--probe", "false"),
            *("--redistribute", "false"),
        ],
    )
    found = results(relearn.main(relearned))
    assert (found["task"], found["n_ablated"]) == ("prompts", 12)
    ends = {(row["condition"], row["step"]) for row in found["rows"]}
    assert {("cut", 0), ("cut", 2), ("uncut", 2), ("random", 2)} <= ends
    fresh = parse_config(relearn.RelearnConfig, [*own, "--fresh_mask", "true"])
    with pytest.raises(UserError, match="--fresh_mask needs a train_mask run"):
        relearn.main(fresh)
    once = parse_config(relearn.RelearnConfig, [*own, "--holdings", "one_shot"])
    with pytest.raises(UserError, match="use --holdings lasting"):
        relearn.main(once)


def test_controls_by_frequency_and_gates_that_are_not_there_are_refused(
    llama: Path, prompts: Path, tmp_path: Path
):
    flags = ["--task", "prompts", "--data", str(prompts), "--device", "cpu"]
    flags += ["--run_dir", str(tmp_path / "runs"), "--n_heldout", "8"]
    gated = parse_config(
        select_mask.SelectConfig,
        [
            *(*flags, "--model", str(llama), "--classes", "orthogonal_output"),
            *("--tau", "0.15", "--n_ablated", "15"),
            *("--control", "frequency", "--tolerance", "0"),
        ],
    )
    with pytest.raises(UserError, match="--tolerance 0; raise it"):
        select_mask.main(gated)
    plain = ["--classes", "weakening", "--tau", "0.1", "--when", "gate-"]
    with pytest.raises(UserError, match="gate- needs gated neurons"):
        selected(tmp_path, *plain)
