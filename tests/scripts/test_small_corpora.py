"""Corpora with hardly an example: one line says how many are needed, before training.

Below the number that is asked for a corpus is refused; with it the run goes through.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from circuitcut.scripts import evaluate, train_mask
from circuitcut.scripts.train_mask import TrainMaskConfig
from circuitcut.storage.results_schema import SCHEMA_VERSION
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_config
from tests.scripts.test_bad_input import refused

QUICK = ["--base_steps", "2", "--n_steps", "2", "--n_random", "0", "--device", "cpu"]
QUICK += ["--attribution", "none", "--n_ablated", "5"]
CITIES = ("Paris", "London", "Rome", "Oslo", "Bonn", "Lima")
CITIES += ("Cairo", "Delhi", "Quito", "Tunis", "Minsk", "Sofia")
NAMES = ("Mary", "John", "Tom", "Anna", "Peter", "Lucy")
NAMES += ("Mark", "Jane", "Paul", "Rose", "Adam", "Kate")


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def tagged(n_concept: int, n_others: int) -> str:
    concept = [f"in O\n{city(i)} B-LOC\n. O\n\n" for i in range(n_concept)]
    others = [f"Bob{i} B-PER\nsmiles O\n. O\n\n" for i in range(n_others)]
    return "".join([*concept, *others])


def city(number: int) -> str:
    return CITIES[number % len(CITIES)] + "a" * (number // len(CITIES))


def object_prompts(n_concept: int, n_others: int) -> str:
    del n_others
    pairs = [(NAMES[i % 12], NAMES[(i + 1 + i // 12) % 12]) for i in range(n_concept)]
    return lines(
        [
            {"prompt": f"When {a} and {b} met, {b} gave a drink to", "answer": a}
            for a, b in pairs
        ]
    )


def fact_prompts(n_concept: int, n_others: int) -> str:
    del n_others
    return lines(
        [
            {"prompt": f"The capital of land{i} is", "answer": city(i)}
            for i in range(n_concept)
        ]
    )


def labelled(n_concept: int, n_others: int) -> str:
    """Texts that share no word, up to 12 of a kind; above that they begin alike."""
    you = "you " if n_concept > 12 else ""
    toxic = [{"text": f"{you}idiot{i}x", "label": 1} for i in range(n_concept)]
    kind = [{"text": f"{you}friend{i}x", "label": 0} for i in range(n_others)]
    return lines([*toxic, *kind])


WRITERS = {
    "locations": (tagged, "conll", []),
    "ioi": (object_prompts, "jsonl", []),
    "prompts": (fact_prompts, "jsonl", []),
    "toxicity": (labelled, "jsonl", ["--concept_values", "1", "--n_prompts", "4"]),
}


def flags_for(
    task: str, n_concept: int, n_others: int, folder: Path, *more: str
) -> list[str]:
    write, suffix, flags = WRITERS[task]
    data = folder / f"data.{suffix}"
    data.write_text(write(n_concept, n_others))
    run_dir = ["--run_dir", str(folder / "runs")]
    return ["--task", task, "--data", str(data), *flags, *QUICK, *run_dir, *more]


@pytest.mark.parametrize(
    ("task", "n_concept", "n_others", "said"),
    [
        ("locations", 0, 0, "holds no sentence"),
        ("locations", 1, 0, "at least 10 sentences"),
        ("locations", 2, 0, "at least 10 sentences"),
        ("locations", 3, 0, "at least 10 sentences"),
        ("locations", 0, 30, "no entity type looks like a location"),
        ("locations", 1, 30, "of the 1 in the data; give more (about 10)"),
        ("locations", 3, 30, "of the 3 in the data; give more (about 10)"),
        ("ioi", 0, 0, "at least one row"),
        ("ioi", 1, 0, "give at least 10"),
        ("ioi", 2, 0, "give at least 10"),
        ("ioi", 3, 0, "give at least 10"),
        ("prompts", 0, 0, "at least one row"),
        ("prompts", 1, 0, "give at least 10 prompts in 4 groups"),
        ("prompts", 3, 0, "give at least 10 prompts in 4 groups"),
        ("prompts", 9, 0, "at least 10 prompts must have an answer that is a single"),
        ("toxicity", 0, 0, "at least one row"),
        ("toxicity", 0, 30, "--concept_values must occur in column 'label'"),
        ("toxicity", 1, 30, "give at least 6 of each"),
        ("toxicity", 30, 3, "give at least 6 of each"),
        ("toxicity", 3, 3, "give at least 6 of each"),
        ("toxicity", 6, 6, "must share a word"),
        ("toxicity", 12, 12, "give more texts, at least 20 toxic and 20 others"),
    ],
)
def test_a_corpus_that_is_too_small_is_refused_with_the_number_it_needs(
    task: str,
    n_concept: int,
    n_others: int,
    said: str,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    before = set(cache.rglob("*"))
    flags = flags_for(task, n_concept, n_others, tmp_path)
    message = refused(train_mask, TrainMaskConfig, flags, monkeypatch, capsys)
    assert said in message
    assert set(cache.rglob("*")) == before  # no base model was trained


@pytest.mark.parametrize(
    ("task", "n_concept", "n_others"),
    [("locations", 10, 0), ("prompts", 10, 0), ("toxicity", 20, 20)],
)
def test_a_corpus_of_the_number_that_is_asked_for_suffices(
    task: str, n_concept: int, n_others: int, tmp_path: Path
):
    flags = flags_for(task, n_concept, n_others, tmp_path)
    run = train_mask.main(parse_config(TrainMaskConfig, flags))
    results = RunDirectory.open(run).results
    assert results["schema_version"] == SCHEMA_VERSION
    assert results["n_ablated"] == 5


@pytest.mark.parametrize("content", ["", "\n\n", "   \n"])
def test_text_to_retain_must_hold_a_text(
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    empty = tmp_path / "empty.txt"
    empty.write_text(content)
    flags = flags_for("prompts", 12, 0, tmp_path, "--retain_data", str(empty))
    message = refused(train_mask, TrainMaskConfig, flags, monkeypatch, capsys)
    assert f"{empty} holds no text" in message


def test_scored_examples_without_the_concept_are_refused_before_training(
    fast: list[str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    before = set(cache.rglob("*"))
    flags = [*fast, "--base_steps", "6", "--n_heldout", "1"]
    message = refused(train_mask, TrainMaskConfig, flags, monkeypatch, capsys)
    assert "--n_heldout 1 leaves no example with the concept" in message
    assert set(cache.rglob("*")) == before


def test_a_run_whose_concept_is_a_list_of_words_is_evaluated_and_repeated(
    tmp_path: Path,
):
    (tmp_path / "cities.txt").write_text("\n".join(city(i) for i in range(40)))
    (tmp_path / "tagged.conll").write_text(tagged(60, 60))
    flags = ["--task", "words", "--data", str(tmp_path / "tagged.conll"), *QUICK]
    flags += ["--concept_words", str(tmp_path / "cities.txt")]
    where = ["--run_dir", str(tmp_path / "runs")]
    run = train_mask.main(parse_config(TrainMaskConfig, [*flags, *where]))
    again = train_mask.main(parse_config(TrainMaskConfig, ["--config", str(run)]))
    given = ["--mask", str(run), "--device", "cpu", *where]
    measured = evaluate.main(parse_config(evaluate.EvaluateConfig, given))
    cut = [
        RunDirectory.open(path).results["scores"]["cut"]["concept_nll"]
        for path in (run, again, measured)
    ]
    assert cut[1] == cut[0]
    assert cut[2] == pytest.approx(cut[0])
