"""The task facts end to end on a file, and wrong files and concepts refused by line."""

import json
from pathlib import Path

import pytest

from circuitcut.scripts import evaluate, relearn, report
from circuitcut.training.config import parse_config
from tests.scripts.test_prompts import SHORT, refused, results, trained

TOWNS = ("Ulm", "Bern", "Riga", "Oslo")
HUES = ("red", "blue", "green")
TEMPLATES = ("The town of {} is", "The people of {} live in", "{} is ruled from")


def facts_file(folder: Path) -> Path:
    lands = [f"{a}{b}" for a in "BDFGKL" for b in ("am", "en", "ov", "ur")]
    things = [f"{a}{b}" for a in "BDFGKL" for b in ("ix", "az")]
    rows = [
        *(
            {
                "subject": land,
                "relation": "town",
                "object": TOWNS[n % 4],
                "prompts": list(TEMPLATES),
                "neighbourhood": [f"The town of {lands[n - 4]} is"],
            }
            for n, land in enumerate(lands)
        ),
        *(
            {
                "subject": thing,
                "relation": "hue",
                "object": HUES[n % 3],
                "prompts": ["The hue of {} is", "{} is painted"],
            }
            for n, thing in enumerate(things)
        ),
        *({"retain": f"The boat number {n} is old and small ."} for n in range(30)),
    ]
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags_for(folder: Path, model: str) -> list[str]:
    flags = ["--task", "facts", "--model", model, "--data", str(facts_file(folder))]
    flags += ["--concept", "town", "--run_dir", str(folder / "runs")]
    return [*flags, "--base_steps", "150", *SHORT]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-decoder", "tiny-encoder"])
def test_facts_of_a_file_are_cut_relearnt_measured_and_reported(
    model: str, tmp_path: Path
):
    run = trained(flags_for(tmp_path, model))
    found = results(run)
    uncut = found["scores"]["uncut"]
    assert uncut["accuracy"] > 0.9
    assert {"top1", "log_p", "other_accuracy", "near_accuracy"} <= uncut.keys()
    known = json.loads((run / "known.json").read_text())
    assert known["concept"] == "town"
    assert known["facts"] == 24
    assert known["share_known"] > 0.8
    assert known["chance"] == found["concept_metric"]["chance"]
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
    assert "accuracy on facts of town" in page
    assert "accuracy on other facts" in page


@pytest.mark.parametrize(
    ("line", "flags", "message"),
    [
        (
            '{"subject": "a", "object": "b", "prompts": "is"}',
            [],
            "line 67: a prompt mu",
        ),
        ('{"subject": "a", "object": "b"}', [], "line 67: a fact must have a prompt"),
        ("", ["--concept", "river"], "relations and their facts: town (24), hue (12)"),
        (
            "",
            ["--concept", "subject:Mars"],
            "must be followed by a subject of the data",
        ),
        ("", ["--concept", "hue", "--split_by", "object"], "needs 4 groups"),
        ("", ["--concept_values", "x"], "belongs to --task toxicity"),
        ("", ["--n_facts", "0"], "--n_facts must be a whole number from 4"),
    ],
)
def test_wrong_facts_are_refused_before_a_model_is_loaded(
    line: str,
    flags: list[str],
    message: str,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    before = set(cache.rglob("*"))
    given = flags_for(tmp_path, "tiny-decoder")
    if "--concept" in flags:
        given = [word for word in given if word not in ("--concept", "town")]
    if line:
        with (tmp_path / "facts.jsonl").open("a") as file:
            file.write(f"{line}\n")
    assert message in refused([*given, *flags], monkeypatch, capsys)
    assert set(cache.rglob("*")) == before


def test_a_model_that_knows_nothing_of_the_relation_is_refused_with_what_it_knows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path / "cache"))
    flags = flags_for(tmp_path, "tiny-decoder")
    flags[flags.index("150")] = "1"
    message = refused(flags, monkeypatch, capsys)
    assert "the model must know facts of town with at least 4 prompts" in message
    assert "of 24 facts" in message
    assert "facts.jsonl, line 1" in message
    assert not (tmp_path / "runs").exists()
