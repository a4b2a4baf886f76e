"""Prompts from tables: columns, inferred names, held-out names, malformed rows."""

import json
import os
from pathlib import Path

import pytest

from circuitcut.data.ioi.files import prompt_records, split_prompts
from circuitcut.data.ioi.generated import generate_ioi
from circuitcut.data.ioi.records import IoiRecord
from circuitcut.data.tables import TableRow, read_tables
from circuitcut.storage.errors import UserError

PROMPT = "Then, Ann and Bob met. Bob gave a book to"


def read(path: Path, **columns: str) -> list[IoiRecord]:
    rows = read_tables(path, "auto")
    return prompt_records(rows, columns.get("prompt"), columns.get("answer"))


def test_prompt_and_answer_are_read_from_json_jsonl_and_csv(tmp_path: Path):
    entry = {"prompt": PROMPT, "answer": " Ann"}
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    (tmp_path / "b.jsonl").write_text(json.dumps(entry) + "\n\n")
    (tmp_path / "c.csv").write_text(f'prompt,answer\n"{PROMPT}",Ann\n')
    wanted = [IoiRecord(PROMPT, "ioi", "Ann", "Bob")]
    for name in ("a.json", "b.jsonl", "c.csv"):
        assert read(tmp_path / name) == wanted
    assert read(tmp_path) == wanted


def test_clean_and_corrupted_pairs_give_both_names(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    other = "Then, Bob and Ann met. Bob gave a book to"
    corrupted = PROMPT.replace("Bob gave", "Cid gave")
    path.write_text(f'clean,corrupted\n"{PROMPT}","{corrupted}"\n"{other}",""\n')
    first, second = read(path)
    assert (first.io, first.subject, first.corrupted) == ("Ann", "Bob", corrupted)
    assert (second.io, second.subject, second.corrupted) == ("Ann", "Bob", None)


def test_rows_of_the_hub_name_the_answer_by_its_index():
    values = {
        "prompt": PROMPT,
        "choices": ["Bob", "Ann"],
        "answerKey": 1,
        "metadata": {"subject": "Bob", "indirect_object": "Ann"},
        "abc_counterfactual": {"prompt": "Then, Cid and Dan met. Eve gave a book to"},
    }
    (record,) = prompt_records([TableRow("hub", values)], None, None)
    assert (record.io, record.subject) == ("Ann", "Bob")
    assert record.corrupted == "Then, Cid and Dan met. Eve gave a book to"


def test_columns_can_be_named(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text(f'question,name\n"{PROMPT}",Ann\n')
    assert read(path, prompt="question", answer="name")[0].io == "Ann"
    with pytest.raises(UserError, match=r"line 2.*prompt or clean"):
        read(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('"Ann and Bob met. Bob went to",Cid', "answer must occur exactly once"),
        ('"Ann and Bob met. Cid went to",Ann', "other name must occur twice"),
        ('"",Ann', "column 'prompt' must hold text"),
        ('"Ann and Bob"', "2 fields, got 1"),
    ],
)
def test_a_malformed_row_is_told_with_file_and_line(
    tmp_path: Path, row: str, message: str
):
    path = tmp_path / "a.csv"
    path.write_text(f'prompt,answer\n"{PROMPT}",Ann\n{row}\n')
    with pytest.raises(UserError, match=rf"a\.csv, line 3.*{message}"):
        read(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"prompt": 1,]', "a.json, line 1: malformed JSON"),
        ("a.json", '{"prompt": 1}', "list of objects"),
        ("a.jsonl", '{"prompt": "x"}\n{', "a.jsonl, line 2: malformed JSON"),
        ("a.csv", 'prompt,answer\n"x', "a.csv, line 2: malformed table"),
        ("a.csv", "prompt,answer\n", "at least one row"),
        ("a.xml", "x", "data_format"),
    ],
)
def test_a_malformed_file_is_told_by_name(
    tmp_path: Path, name: str, text: str, message: str
):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_missing_truncated_and_empty_places_are_told(tmp_path: Path):
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(UserError, match="got none"):
        read(tmp_path)
    (tmp_path / "a.csv.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UserError, match="truncated or not gzip"):
        read(tmp_path / "a.csv.gz")
    (tmp_path / "b.csv").write_bytes(b"prompt\n\xff")
    with pytest.raises(UserError, match=r"b\.csv, line 2: text must be UTF-8"):
        read(tmp_path / "b.csv")


def test_held_out_names_occur_in_no_other_prompts():
    prompts = [r for r in generate_ioi(0).records["relearn"] if r.kind == "ioi"]
    corpus = split_prompts(prompts, seed=0)
    assert len(corpus.unseen_names) >= 4
    texts: list[str] = []
    for split in ("mask", "tune", "relearn", "heldout"):
        rows = [r for r in corpus.records[split] if r.kind == "ioi"]
        texts += [r.text for r in rows]
        if split != "heldout":
            assert (
                not {n for r in rows for n in (r.io, r.subject)} & corpus.unseen_names
            )
    assert sorted(texts) == sorted(r.text for r in prompts)


def test_too_few_prompts_are_refused():
    with pytest.raises(UserError, match="too few"):
        split_prompts([IoiRecord(PROMPT, "ioi", "Ann", "Bob")], seed=0)


@pytest.mark.skipif("CIRCUITCUT_DATA" not in os.environ, reason="CIRCUITCUT_DATA unset")
def test_the_shared_prompts_are_read_whole():
    folder = Path(os.environ["CIRCUITCUT_DATA"]) / "ioi"
    prompts = read(folder / "ioi_prompts.json")
    pairs = read(folder / "ioi_pairs.csv")
    assert (len(prompts), len({r.io for r in prompts})) == (841, 50)
    assert len({r.text for r in pairs}) == len(pairs)
    assert all(r.corrupted for r in pairs)
    corpus = split_prompts(prompts, seed=0)
    unseen = [
        r for r in corpus.records["heldout"] if {r.io, r.subject} <= corpus.unseen_names
    ]
    assert len(unseen) >= 20


def test_columns_of_one_name_are_refused_and_those_without_a_name_are_not(
    tmp_path: Path,
):
    row = "Then Mary and John met and John saw,Mary"
    (tmp_path / "a.csv").write_text(f"prompt,answer,,\n{row},,\n")
    assert read(tmp_path / "a.csv")[0].io == "Mary"
    (tmp_path / "b.csv").write_text(f"prompt,answer,answer\n{row},Ann\n")
    with pytest.raises(UserError, match="columns must differ, got 'answer' twice"):
        read(tmp_path / "b.csv")
