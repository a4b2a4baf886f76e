"""Facts of every form of file, and the line of whatever is wrong in them."""

import gzip
import json
import os
from pathlib import Path

import pytest

from circuitcut.data.facts.files import read_facts
from circuitcut.data.facts.records import Fact, distinct, relations_of
from circuitcut.storage.errors import UserError

LRE = {
    "name": "country capital",
    "prompt_templates": ["The capital of {} is"],
    "prompt_templates_zs": ["{} is ruled from", "The capital of {} is"],
    "samples": [{"subject": "France", "object": "Paris"}],
}
COUNTERFACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Rome", "id": "Q1"},
        "target_true": {"str": "Paris", "id": "Q2"},
        "subject": "France",
    },
    "paraphrase_prompts": ["A storm. France is ruled from"],
    "neighborhood_prompts": ["The capital of Gaul is"],
    "generation_prompts": ["France is"],
}
OWN = {
    "Subject": "France",
    "relation": "P36",
    "object": "Paris",
    "prompts": ["The capital of {} is", "[X] is ruled from [Y] .", "France :"],
    "neighbourhood": ["The capital of Gaul is"],
    "target_new": "Rome",
    "choices": ["Paris", "Oslo"],
}
BMLAMA = (
    "Prompt\tAns\tCandidate Ans\tSubject\r\n"
    "The capital of France is <mask>.\tParis\tRome, Oslo, Paris\tFrance\r\n"
)
FRENCH = (
    "Prompt\tAns\tCandidate Ans\tSubject\r\n"
    '"La capitale de la ""France"" est <mask>."\tParis\tRome, Paris\t"la ""France"""\n'
)


def written(path: Path, content: str | dict | list) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    path.parent.mkdir(exist_ok=True)
    raw = text.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def only(data: str, data_format: str = "auto") -> Fact:
    (fact,), texts = read_facts(data, data_format)
    assert not texts
    return fact


def test_a_relation_of_lre_is_named_by_its_file_and_has_both_lists_of_templates(
    tmp_path: Path,
):
    file = written(tmp_path / "factual" / "country_capital.json", LRE)
    prompts = ("The capital of France is", "France is ruled from")
    expected = Fact("France", "country_capital", "Paris", prompts)
    for data in (file, str(tmp_path), str(tmp_path / "factual")):
        fact = only(data)
        assert fact.key == expected.key
        assert fact.prompts == expected.prompts
        assert fact.where == f"{file}, sample 1"


def test_an_object_of_counterfact_keeps_paraphrases_neighbours_and_false_object(
    tmp_path: Path,
):
    fact = only(written(tmp_path / "counterfact.json", [COUNTERFACT]))
    assert fact.key == ("France", "P36", "Paris")
    assert fact.prompts == ("The capital of France is", "A storm. France is ruled from")
    assert fact.neighbourhood == ("The capital of Gaul is",)
    assert fact.counterfactual == "Rome"


def test_our_own_rows_have_slots_or_the_subject_in_their_prompts(tmp_path: Path):
    fact = only(written(tmp_path / "own.jsonl", OWN))
    assert fact == Fact(
        "France",
        "P36",
        "Paris",
        ("The capital of France is", "France is ruled from [MASK] .", "France :"),
        neighbourhood=("The capital of Gaul is",),
        counterfactual="Rome",
        choices=("Oslo",),
        where=f"{tmp_path}/own.jsonl, line 1",
    )


def test_rows_of_one_fact_are_its_paraphrases_and_texts_stand_beside(tmp_path: Path):
    rows = (
        "subject\tobject\tprompt\tretain\n"
        "France\tParis\tThe capital of France is\tIt rained .\n"
        "France\tParis\tFrance is ruled from|In {} one sees\t\n"
        "\t\t\tIt was cold .\n"
    )
    facts, texts = read_facts(written(tmp_path / "own.tsv", rows))
    (fact,) = distinct(facts)
    assert fact.prompts == (
        *("The capital of France is", "France is ruled from", "In France one sees"),
    )
    assert fact.relation == "facts"
    assert texts == ["It rained .", "It was cold ."]


def test_a_language_of_bmlama_takes_its_relations_from_the_english_file(tmp_path: Path):
    english = written(tmp_path / "en.tsv.gz", BMLAMA)
    french = written(tmp_path / "fr.tsv.gz", FRENCH)
    relation = "The capital of [X] is [MASK]."
    assert only(english).key == ("France", relation, "Paris")
    assert only(english).choices == ("Rome", "Oslo")
    fact = only(french)
    assert fact.key == ('la "France"', relation, "Paris")
    assert fact.prompts == ('La capitale de la "France" est [MASK].',)
    (tmp_path / "en.tsv.gz").unlink()
    assert only(french).relation == "La capitale de [X] est [MASK]."
    with pytest.raises(UserError, match=r"one language's file .*fr\.tsv\.gz"):
        read_facts(str(tmp_path))


WRONG = [
    ("a.jsonl", {**OWN, "prompts": ["The capital is"]}, "line 1: .* hold its subject"),
    ("a.jsonl", {**OWN, "prompts": ["{} or {} is"]}, "line 1: .*one {} for the subj"),
    ("a.jsonl", {**OWN, "prompts": ["{} [Y] [MASK]"]}, "line 1: .*at most one .MASK"),
    ("a.jsonl", {**OWN, "prompts": []}, "line 1: a fact must have a prompt that asks"),
    ("a.jsonl", {"subject": "a", "object": "b"}, "line 1: a fact must have a prompt"),
    (
        "a.jsonl",
        {"subject": "a", "prompt": "a"},
        "line 1: a row must have a column obj",
    ),
    ("a.jsonl", {**OWN, "object": None}, "line 1: column 'object' must hold text"),
    ("a.jsonl", {**OWN, "choices": [None]}, "line 1: column 'choices' must hold text"),
    ("a.json", [OWN, {"requested_rewrite": {}}], "entry 2: .*object with prompt"),
    ("a.json", {**LRE, "prompt_templates": ["It is"]}, "a.json, sample 1: .*one {}"),
    ("a.json", {**LRE, "samples": [{"subject": "a"}]}, "a.json: entry samples"),
    ("a.json", {"prompt_templates": [], "samples": []}, "must hold a prompt with {}"),
    ("a.tsv", BMLAMA + "a\tb\tc\n", "line 3: a row must have prompt, answer"),
    ("a.tsv", BMLAMA.replace("<mask>", ""), "line 2: a prompt must have one <mask>"),
    ("a.tsv", BMLAMA.replace("\tFrance", "\tGaul"), "line 2: .*hold its subject"),
    ("a.jsonl", {"retain": "It rained ."}, "must hold facts, got none"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_what_is_wrong_is_named_with_its_line(
    name: str, content: str | dict | list, message: str, tmp_path: Path
):
    with pytest.raises(UserError, match=message):
        read_facts(written(tmp_path / name, content))


def test_an_unknown_format_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--data_format must be auto, pararel, lre"):
        read_facts(written(tmp_path / "a.jsonl", OWN), "conll")


@pytest.mark.skipif("CIRCUITCUT_DATA" not in os.environ, reason="CIRCUITCUT_DATA unset")
@pytest.mark.parametrize(
    ("name", "n_facts", "n_relations"),
    [
        ("known_1000/known_1000.json", 1209, 33),
        ("lre_relations", 11_089, 47),
        ("bmlama17/en.tsv.gz", 6792, 38),
        ("bmlama17/he.tsv.gz", 6792, 38),
        ("bmlama17/zh.tsv.gz", 6792, 38),
    ],
)
def test_published_files_have_their_numbers_of_facts(
    name: str, n_facts: int, n_relations: int
):
    facts, _ = read_facts(f"{os.environ['CIRCUITCUT_DATA']}/{name}")
    assert (len(facts), len(relations_of(facts))) == (n_facts, n_relations)
