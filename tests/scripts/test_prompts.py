"""The task prompts end to end on a file, for both kinds of language model."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, BertConfig

from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.scripts import evaluate, faithfulness, relearn, report, train_mask
from circuitcut.training.config import parse_config, run_script

TOWNS = ("Ulm", "Bern", "Riga", "Oslo", "Pisa", "Cork", "Nice", "Bath")
SHORT = ["--n_steps", "8", "--n_random", "1", "--n_ablated", "20", "--device", "cpu"]


def prompts_file(folder: Path, *, paired: bool) -> Path:
    rows = [
        {
            "prompt": f"The {thing} of Mr {name} is kept in",
            "answer": TOWNS[n % 8],
            "rivals": "|".join(TOWNS[:4] if n % 8 < 4 else TOWNS[4:]),
            "group": name,
            "retain": f"The {thing} is old and has number {n} .",
        }
        for n, name in enumerate(f"{a}{b}" for a in "BDFGKL" for b in ("am", "en", "o"))
        for thing in ("boat", "car", "bell")
    ]
    if paired:
        names = [row["group"] for row in rows]
        for row, other in zip(rows, names[3:] + names[:3], strict=True):
            row["counterfactual"] = row["prompt"].replace(row["group"], other)
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def flags_for(folder: Path, model: str, *, paired: bool) -> list[str]:
    path = prompts_file(folder, paired=paired)
    runs = str(folder / "runs")
    flags = ["--task", "prompts", "--model", model, "--data", str(path)]
    return [*flags, "--run_dir", runs, "--base_steps", "120", *SHORT]


def trained(flags: list[str]) -> Path:
    return train_mask.main(parse_config(train_mask.TrainMaskConfig, flags))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-decoder", "tiny-encoder"])
def test_a_file_of_prompts_is_cut_relearnt_measured_and_reported(
    model: str, tmp_path: Path
):
    run = trained(flags_for(tmp_path, model, paired=False))
    found = results(run)
    uncut = found["scores"]["uncut"]
    assert uncut["accuracy"] > 0.8
    assert {"logit_difference", "top1", "p_answer", "retain_nll"} <= uncut.keys()
    assert found["concept_metric"]["chance"] == pytest.approx(1 / 4)
    where = ["--run_dir", str(tmp_path / "runs"), "--device", "cpu"]
    flags = [*where, "--n_steps", "4", "--limits", "4", "--seeds", "0"]
    flags += ["--n_evaluations", "2", "--batch_size", "8"]
    again = relearn.main(parse_config(relearn.RelearnConfig, flags))
    first = {row["condition"]: row for row in results(again)["rows"] if not row["step"]}
    cut = found["scores"]["cut"]["accuracy"]
    assert first["cut"]["scores"]["accuracy"] == pytest.approx(cut)
    assert first["uncut"]["scores"]["accuracy"] == pytest.approx(uncut["accuracy"])
    flags = ["--mask", str(run), *where]
    measured = results(evaluate.main(parse_config(evaluate.EvaluateConfig, flags)))
    assert measured["scores"]["cut"]["accuracy"] == pytest.approx(cut)
    page = report.main(parse_config(report.ReportConfig, where[:2])).read_text()
    assert "accuracy on the prompts" in page


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-decoder", "tiny-encoder"])
def test_pairs_are_the_ablation_of_circuits_where_every_row_has_one(
    model: str, tmp_path: Path
):
    flags = flags_for(tmp_path, model, paired=True)
    edges = ["--units", "edges", "--direction", "isolate", "--attribution", "eap"]
    run = trained([*flags, *edges])
    assert results(run)["ablation"] == "counterfactual"
    flags = ["--mask", str(run), "--fractions", "0.1", "1.0", "--methods", "eap"]
    flags += ["--run_dir", str(tmp_path / "runs"), "--device", "cpu"]
    config = parse_config(faithfulness.FaithfulnessConfig, flags)
    assert results(faithfulness.main(config))["ablation"] == "counterfactual"
    unpaired = flags_for(tmp_path, model, paired=False)
    assert results(trained([*unpaired, *edges]))["ablation"] == "mean"


def refused(
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    with pytest.raises(SystemExit) as stopped:
        run_script(train_mask.main, train_mask.TrainMaskConfig)
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Traceback" not in message
    return message


def test_wrong_prompts_are_refused_with_their_row_before_any_training(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    before = set(cache.rglob("*"))
    flags = flags_for(tmp_path, "tiny-decoder", paired=False)
    message = refused([*flags, "--ablation", "counterfactual"], monkeypatch, capsys)
    assert "prompts.jsonl, line 1, line 2," in message
    path = prompts_file(tmp_path, paired=True)
    lines = path.read_text().splitlines()
    lines[7] = lines[7].replace("The car of Mr Dam", "The Dam")
    path.write_text("\n".join(lines))
    message = refused(flags, monkeypatch, capsys)
    assert "prompts.jsonl, line 8: " in message
    assert "got 9 and 6" in message
    path.write_text("")
    assert "at least one row" in refused(flags, monkeypatch, capsys)
    path.write_text('{"prompt": "A b c"}\n')
    assert "line 1: a row must have a column answer" in refused(
        flags, monkeypatch, capsys
    )
    path.write_text('{"prompt": "A b c", "answer": "d"}\n')
    assert "1 prompts in 1 groups" in refused(flags, monkeypatch, capsys)
    assert set(cache.rglob("*")) == before


def test_an_encoder_without_a_language_model_head_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = tmp_path / "bert"
    config = BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    train_tokenizer(
        ["a b c"], "word", is_decoder=False, vocab_size=40, max_length=32
    ).save_pretrained(folder)
    flags = ["--task", "prompts", "--model", str(folder), "--device", "cpu"]
    message = refused(flags, monkeypatch, capsys)
    assert "no head of a masked language model" in message


@pytest.mark.slow
def test_further_text_of_the_user_is_scored_beside_the_names(tmp_path: Path):
    path = tmp_path / "wiki.txt"
    path.write_text("\n".join(f"Page {i} tells of hill {i % 5} ." for i in range(60)))
    flags = ["--task", "ioi", "--retain_data", str(path), "--base_steps", "20", *SHORT]
    flags += ["--run_dir", str(tmp_path / "runs"), "--attribution", "none"]
    run = trained(flags)
    assert all(
        math.isfinite(results(run)["scores"][name]["wiki_nll"])
        for name in ("uncut", "cut")
    )
    where = ["--run_dir", str(tmp_path / "runs"), "--device", "cpu"]
    measured = results(
        evaluate.main(
            parse_config(evaluate.EvaluateConfig, ["--mask", str(run), *where])
        )
    )
    cut = results(run)["scores"]["cut"]["wiki_nll"]
    assert measured["scores"]["cut"]["wiki_nll"] == pytest.approx(cut)


@pytest.mark.slow
@pytest.mark.skipif("CIRCUITCUT_DATA" not in os.environ, reason="CIRCUITCUT_DATA unset")
def test_known_facts_are_a_task_without_any_code(tmp_path: Path):
    data = Path(os.environ["CIRCUITCUT_DATA"])
    flags = ["--task", "prompts", "--data", str(data / "known_1000/known_1000.json")]
    flags += ["--retain_data", str(data / "wikitext2/test.txt.gz"), *SHORT]
    flags += ["--run_dir", str(tmp_path), "--base_steps", "10", "--max_length", "48"]
    found = results(trained([*flags, "--attribution", "none"]))
    assert 0.05 < found["concept_metric"]["chance"] < 0.2
    assert math.isfinite(found["scores"]["cut"]["retain_nll"])
