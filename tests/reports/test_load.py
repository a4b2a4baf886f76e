"""Reading runs: what is missing or unfinished is said in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitcut.reports.html import write_report
from circuitcut.reports.load import KIND_NAMES, load_run
from circuitcut.storage.errors import UserError
from circuitcut.storage.results_schema import ENTRIES, entries_of, needed_for_report
from tests.reports.conftest import (
    curve_results,
    faithfulness_results,
    import_results,
    mask_results,
    relearn_results,
    stability_results,
)
from tests.reports.known import knowledge_results
from tests.reports.staged import stages_results
from tests.reports.weighed import effect_results, select_results, weight_results

RESULTS: dict[str, Callable[[], dict[str, Any]]] = {
    "train_mask": mask_results,
    "relearn": relearn_results,
    "evaluate": lambda: curve_results("evaluate"),
    "attribute": lambda: curve_results("attribute"),
    "faithfulness": faithfulness_results,
    "import_mask": import_results,
    "stability": stability_results,
    "relearn_stages": stages_results,
    "select_mask": select_results,
    "knowledge": knowledge_results,
    "weight_classes": weight_results,
    "class_effects": effect_results,
}


@pytest.mark.parametrize("kind", sorted(ENTRIES))
def test_a_finished_run_of_every_kind_is_read(kind: str, write_run: Any):
    run = load_run(write_run(RESULTS[kind]()))
    assert run.kind == kind
    assert run.results == RESULTS[kind]()
    assert run.config["seed"] == 3
    assert run.title == f"{KIND_NAMES[kind]}: task locations, model minilm"
    assert len(run.metrics) == 20


def test_an_unfinished_run_is_refused_with_how_to_continue(write_run: Any):
    path = write_run(mask_results(), finished=False)
    with pytest.raises(UserError, match=rf"has not finished .* --resume {path}"):
        load_run(path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not a run directory"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="not a run directory"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", sorted(ENTRIES))
def test_results_that_lack_a_key_name_it(kind: str, write_run: Any):
    for key in needed_for_report(kind, version=1) - {"kind"}:
        results = RESULTS[kind]()
        del results[key]
        with pytest.raises(UserError, match=f"lacks {key}"):
            load_run(write_run(results))


def test_results_of_an_unknown_kind_are_refused(write_run: Any):
    with pytest.raises(UserError, match=r"of a kind from .* got 'train_base'"):
        load_run(write_run({**mask_results(), "kind": "train_base"}))


def test_a_run_of_version_2_must_have_every_entry(write_run: Any):
    results = mask_results() | dict.fromkeys(entries_of("train_mask"))
    whole = {**results, **mask_results(), "schema_version": 2}
    load_run(write_run(whole))
    del whole["published_circuit"]
    with pytest.raises(UserError, match="lacks published_circuit"):
        load_run(write_run(whole))


def test_a_version_of_the_future_is_refused(write_run: Any):
    with pytest.raises(UserError, match="schema version 3"):
        load_run(write_run({**mask_results(), "schema_version": 3}))


def test_damaged_results_name_file_and_line(write_run: Any):
    path = write_run(mask_results())
    (path / "results.json").write_text('{"kind": "train_mask",\n "task"')
    with pytest.raises(UserError, match=r"results\.json is not JSON \(line 2"):
        load_run(path)
    (path / "results.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="must hold a JSON object"):
        load_run(path)


def test_one_bad_run_among_good_ones_stops_the_report_before_it_is_written(
    write_run: Any, tmp_path: Path
):
    good, bad = write_run(mask_results()), write_run(relearn_results(), finished=False)
    with pytest.raises(UserError, match="has not finished"):
        write_report([good, bad], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    assert not (good / "figures").exists()


def test_the_first_runs_of_version_2_are_read_without_its_later_entries(write_run: Any):
    results = mask_results() | dict.fromkeys(entries_of("train_mask"))
    whole = {**results, **mask_results(), "schema_version": 2}
    for later in ("heads", "warning"):
        del whole[later]
    assert load_run(write_run(whole)).results == whole


@pytest.mark.parametrize(
    ("kind", "entries", "expected"),
    [
        (
            "train_mask",
            {"per_site": {}},
            "entry per_site must be a list, got an object",
        ),
        ("train_mask", {"n_units": True}, "entry n_units must be a whole number"),
        ("train_mask", {"n_units": 0}, "entry n_units .* of at least 1, got 0"),
        (
            "train_mask",
            {"scores": {"cut": {"f1": "0.5"}}},
            r"scores.cut.f1 must be a nu",
        ),
        (
            "train_mask",
            {"scores": {"mine": []}},
            "scores: entry mine must be an object",
        ),
        ("train_mask", {"intervals": {"cut": {"f1": [1]}}}, "must be a list of 2, got"),
        ("train_mask", {"concept_metric": None}, "entry concept_metric must be an obj"),
        (
            "train_mask",
            {"curve": [[]]},
            r"entry curve\[0\] must be an object, got \[\]",
        ),
        ("import_mask", {"circuit": {"kept": 1}}, "circuit must be an object with"),
        ("relearn", {"summary": [None]}, r"entry summary\[0\] must be an object"),
        ("stability", {"pairs": 3}, "entry pairs must be a list, got 3"),
        ("faithfulness", {"units": "edges"}, "entry units must be a list, got 'edges'"),
        ("evaluate", {"kind": ["evaluate"]}, "entry kind must be a text"),
    ],
)
def test_an_entry_of_a_wrong_type_is_named(
    kind: str, entries: dict[str, Any], expected: str, write_run: Any
):
    path = write_run(RESULTS[kind]())
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(results | entries))
    with pytest.raises(UserError, match=rf"results\.json.*{expected}"):
        load_run(path)


@pytest.mark.parametrize(
    "entries", [{"summary": []}, {"recovery": [], "rows": [], "summary": []}]
)
def test_entries_that_contradict_each_other_are_said_to(
    entries: dict[str, Any], write_run: Any, tmp_path: Path
):
    path = write_run(relearn_results() | entries)
    with pytest.raises(
        UserError, match=r"results\.json cannot be shown: entries contr"
    ):
        write_report([path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"step": 1, "loss": "low"}', "line 1: entry loss must be a number or null"),
        (b'{"loss": 1.0}', "line 1: entry step must be a whole number"),
        (b"[1]", r"line 1: must be an object, got \[1\]"),
        (b'{"step": 1, "loss": \xff}', "line 1: text must be UTF-8"),
        (b'{"step": 1, "loss": NaN}', "line 1 is not JSON: NaN is no JSON number"),
    ],
)
def test_a_wrong_line_of_metrics_is_named(line: bytes, expected: str, write_run: Any):
    path = write_run(mask_results())
    (path / "metrics.jsonl").write_bytes(line + b"\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl, {expected}"):
        load_run(path)
