"""A user's mistake gives one clear line, exit code 2 and nothing written."""

import sys
from pathlib import Path
from typing import Any

import pytest

from circuitcut.experiments import load
from circuitcut.models.saving import save_model
from circuitcut.scripts import evaluate, faithfulness, relearn, report, train_mask
from circuitcut.scripts.attribute import AttributeConfig
from circuitcut.training.config import run_script
from tests.models.tiny import tiny_loaded

MASK = train_mask.TrainMaskConfig


def refused(
    module: object,
    config: type,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The message of a call that must exit with status 2."""
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    with pytest.raises(SystemExit) as stopped:
        run_script(module.main, config)
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    return message.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--task", "nonsense"], "locations"),
        (["--model", "no/such/folder/here"], "no/such/folder/here"),
        (["--model", "tiny-decoder"], "tiny-decoder"),
        (["--units", "nerves"], "neurons"),
        (["--gate", "bernoulli"], "hard_concrete"),
        (["--layers", "99"], "99"),
        (["--no_such_flag"], "no_such_flag"),
        (["--lr", "fast"], "lr"),
        (["--lr", "nan"], "lr"),
        (["--n_steps", "0"], "n_steps"),
        (["--n_ablated", "1000000"], "1000000"),
        (["--round_every", "-1"], "round_every"),
        (["--price_start", "1"], "price_start"),
        (["--retain_objective", "none", "--retain_weight", "2"], "retain_weight"),
        (["--per_position"], "ablation mean"),
        (["--penalty", "lagrangian"], "target_ablated"),
        (["--concept_objective", "kl"], "isolate"),
        (["--ablation", "counterfactual"], "counterfactual"),
        (["--device", "abacus"], "abacus"),
        (["--data", "no_such_folder"], "no_such_folder"),
        (["--attribution", "guess"], "gradient_margin"),
        (["--superset", "no_such_run"], "no_such_run"),
        (["--resume", "no_such_run"], "no_such_run"),
        (["--labels_file", "labels.txt"], "--task locations"),
        (
            ["--retain_data", "more.txt"],
            "--retain_data belongs to --task ioi or greater_than",
        ),
        (["--text_column", "text"], "--data"),
        (["--data", "x", "--hub_config", "en"], "hub:"),
        (["--direction", "isolate", "--concept_objective", "ascent"], "kl"),
        (["--ablation", "mean", "--per_position"], "sequence"),
    ],
)
def test_wrong_flags_of_train_mask_are_refused(
    flags: list[str],
    said: str,
    fast: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    message = refused(train_mask, MASK, [*fast, *flags], monkeypatch, capsys)
    assert said in message
    assert not list((tmp_path / "runs").glob("*/mask.safetensors"))


@pytest.mark.parametrize(
    ("script", "config", "flag"),
    [(train_mask, MASK, "--superset"), (evaluate, evaluate.EvaluateConfig, "--mask")],
)
def test_a_mask_is_read_before_the_model(
    script: Any,
    config: Any,
    flag: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def model_of(*_: Any) -> Any:
        raise AssertionError("the model is loaded first")

    monkeypatch.setattr(load, "_model", model_of)
    (tmp_path / "mask.json").write_text("{}")
    message = refused(script, config, [flag, str(tmp_path)], monkeypatch, capsys)
    assert "mask.json" in message


def test_a_malformed_line_is_named_with_its_number(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    data = tmp_path / "bad.conll"
    data.write_text("Paris B-LOC\nis O\nlarge\n\n")
    flags = ["--task", "locations", "--data", str(data)]
    message = refused(train_mask, MASK, flags, monkeypatch, capsys)
    assert "bad.conll" in message
    assert "3" in message


def test_a_concept_that_the_data_do_not_have_is_refused_with_those_they_have(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    data = tmp_path / "good.conll"
    data.write_text("Paris B-LOC\nis O\nlarge O\n\n" * 40)
    flags = ["--task", "locations", "--data", str(data), "--concept", "PER"]
    message = refused(train_mask, MASK, flags, monkeypatch, capsys)
    assert "PER" in message
    assert "LOC" in message


def test_an_unwritable_run_folder_is_refused_before_training(
    fast: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    file = tmp_path / "a_file"
    file.write_text("")
    flags = [*fast, "--run_dir", str(file)]
    message = refused(train_mask, MASK, flags, monkeypatch, capsys)
    assert f"--run_dir must be a folder, got the file {file}" in message
    flags = ["--run_dir", str(file)]
    message = refused(report, report.ReportConfig, flags, monkeypatch, capsys)
    assert f"--run_dir must be a folder, got the file {file}" in message


@pytest.mark.parametrize(
    "flags",
    [
        ["--layers", "7"],
        ["--curve_sizes", "8", "999999"],
        ["--n_ablated", "999999"],
        ["--units", "neurons", "--k_max", "99"],
    ],
)
def test_flags_that_do_not_fit_the_model_are_refused_before_it_is_trained(
    flags: list[str],
    fast: list[str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    before = set(cache.rglob("*"))
    untrained = ["--base_steps", "7", *flags]
    refused(train_mask, MASK, [*fast, *untrained], monkeypatch, capsys)
    assert set(cache.rglob("*")) == before


def test_a_name_in_use_is_refused_before_training_and_its_run_stays(
    fast: list[str],
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    used = tmp_path / "runs" / "mine"
    used.mkdir(parents=True)
    (used / "results.json").write_text("{}")
    before = set(cache.rglob("*"))
    flags = [*fast, "--base_steps", "7", "--name", "mine"]
    assert "mine" in refused(train_mask, MASK, flags, monkeypatch, capsys)
    assert set(cache.rglob("*")) == before
    assert [path.name for path in used.iterdir()] == ["results.json"]


def test_scripts_without_a_run_say_what_to_do_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    where = ["--run_dir", str(tmp_path)]
    message = refused(relearn, relearn.RelearnConfig, where, monkeypatch, capsys)
    assert "train_mask" in message
    message = refused(report, report.ReportConfig, where, monkeypatch, capsys)
    assert "train_mask" in message


@pytest.mark.parametrize("kind", [None, "train_mask", "relearn"])
def test_what_is_no_mask_is_refused_before_any_model_is_made(
    kind: str | None,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = tmp_path / "run"
    if kind is not None:
        run.mkdir()
        (run / "config.json").write_text(f'{{"kind": "{kind}"}}')
        (run / "environment.json").write_text("{}")
    before = set(cache.rglob("*"))
    said = "--resume" if kind == "train_mask" else "--mask must be a train_mask run"
    flags = ["--mask", str(run), "--run_dir", str(tmp_path / "runs")]
    for module, config in (
        (evaluate, evaluate.EvaluateConfig),
        (relearn, relearn.RelearnConfig),
    ):
        message = refused(module, config, flags, monkeypatch, capsys)
        assert said in message
        assert str(run) in message
    assert set(cache.rglob("*")) == before


def test_a_run_of_another_script_is_not_resumed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "config.json").write_text('{"kind": "relearn", "holdings": []}')
    flags = ["--resume", str(tmp_path)]
    message = refused(train_mask, MASK, flags, monkeypatch, capsys)
    assert "relearn run" in message
    assert len(message) < 300


def test_texts_longer_than_the_table_of_positions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_model(tiny_loaded("gpt2", "causal_lm"), tmp_path / "gpt2")
    flags = ["--task", "words", "--model", str(tmp_path / "gpt2"), "--device", "cpu"]
    message = refused(train_mask, MASK, flags, monkeypatch, capsys)
    assert "--max_length must be at most 64, the positions of the model" in message


def test_evaluate_and_attribute_check_their_flags(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    config = evaluate.EvaluateConfig
    message = refused(evaluate, config, ["--split", "all"], monkeypatch, capsys)
    assert "heldout" in message
    message = refused(evaluate, config, ["--sizes", "3"], monkeypatch, capsys)
    assert "--mask" in message
    flags = ["--mask", "x", "--methods", "none_such"]
    message = refused(evaluate, config, flags, monkeypatch, capsys)
    assert "probeless" in message
    flags = ["--methods", "none_such"]
    message = refused(evaluate, AttributeConfig, flags, monkeypatch, capsys)
    assert "probeless" in message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--task", "toxicity", "--n_prompts", "1"],
            "--n_prompts must be a whole number from 2",
        ),
        (["--task", "ioi", "--n_prompts", "9"], "belongs to --task toxicity"),
        (
            ["--attribution_batches", "0"],
            "--attribution_batches must be a whole number from 1",
        ),
    ],
)
def test_wrong_numbers_of_prompts_and_batches(
    flags: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    flags = [*flags, "--run_dir", str(tmp_path / "runs")]
    assert said in refused(train_mask, MASK, flags, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fractions", "0.5"], "two or more"),
        (["--fractions", "0.5", "0.1"], "rise"),
        (["--fractions", "0.5", "1.5"], "above 0 and at most 1, got 1.5"),
        (["--split", "test"], "--split must be one of"),
        (["--methods", "guess"], "--methods must be among"),
        (["--task", "ioi", "--methods", "probeless"], "cannot rank edges"),
        (["--units", "heads", "--methods", "eap"], "ranks edges alone"),
        (["--n_random", "-1"], "a whole number from 0"),
        (["--units", "heads", "--count", "mib"], "is about masks on all edges alone"),
        (["--mask", "nowhere"], "missing folder nowhere"),
        (["--mask", "x", "--units", "edges"], "leave them out"),
    ],
)
def test_wrong_flags_of_faithfulness(
    flags: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    runs = tmp_path / "runs"
    flags = [*flags, "--run_dir", str(runs)]
    config = faithfulness.FaithfulnessConfig
    assert said in refused(faithfulness, config, flags, monkeypatch, capsys)
    assert not runs.exists() or not list(runs.iterdir())
