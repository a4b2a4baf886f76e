"""Prompts from tables: columns, rivals, texts to retain, and rows with a fault."""

import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from circuitcut.data import hub
from circuitcut.data.prompts.files import MOST_RIVALS, prompt_records
from circuitcut.data.prompts.records import PromptRecord, completed, places
from circuitcut.data.tables import read_hub_table, read_tables
from circuitcut.data.text.records import TextRecord
from circuitcut.storage.errors import UserError

PROMPT = "The capital of France is"


def read(path: Path, *columns: str | None) -> list[PromptRecord]:
    return prompt_records(read_tables(path, "auto"), *(columns or (None, None)))[0]


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_csv_tsv_json_and_jsonl_give_the_same_prompts(tmp_path: Path):
    row = {"prompt": PROMPT, "answer": " Paris", "rivals": ["Rome", "Oslo"]}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "c.csv").write_text(f'prompt,answer,rivals\n{PROMPT},Paris,"Rome|Oslo"')
    (tmp_path / "d.tsv").write_text(
        f"prompt\tanswer\trivals\n{PROMPT}\tParis\tRome, Oslo"
    )
    (tmp_path / "e.csv").write_text(
        f'Prompt,Ans,Candidate Ans\n{PROMPT},Paris,"[""Paris"", ""Rome"", ""Oslo""]"'
    )
    for path in sorted(tmp_path.iterdir()):
        (record,) = read(path)
        assert (record.text, record.answer) == (PROMPT, "Paris"), path
        assert record.rivals == ("Rome", "Oslo"), path
        assert record.named
        assert completed(record) == f"{PROMPT} Paris"


def test_a_hub_table_with_choices_gives_answer_and_rivals(
    monkeypatch: pytest.MonkeyPatch,
):
    table = Dataset.from_dict(
        {"prompt": [PROMPT], "choices": [["Rome", "Paris"]], "answerKey": [1]}
    )
    monkeypatch.setattr("circuitcut.data.tables.load_hub", lambda *_: {"train": table})
    rows = read_hub_table(f"{hub.HUB_PREFIX}some/prompts", None, None)
    ((record,), _) = prompt_records(rows, None, None)
    assert (record.answer, record.rivals) == ("Paris", ("Rome",))
    assert record.where == "hub:some/prompts, train row 0"


def test_the_first_usual_name_counts_and_flags_come_before_it(tmp_path: Path):
    path = written(
        tmp_path,
        {"Clean-Prompt": PROMPT, "target": "Paris", "q": "The river is", "a": "Seine"},
    )
    assert [(r.text, r.answer) for r in read(path)] == [(PROMPT, "Paris")]
    assert [(r.text, r.answer) for r in read(path, "q", "a")] == [
        ("The river is", "Seine")
    ]


def test_columns_without_a_meaning_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = written(tmp_path, {"prompt": PROMPT, "answer": "Paris", "rivlas": "Rome"})
    with caplog.at_level(logging.INFO):
        read(path)
    assert "a.jsonl: columns that are not read: rivlas" in caplog.text


def test_rivals_come_from_the_relation_and_without_one_from_all_rows(tmp_path: Path):
    rows = [
        {"prompt": f"{a} lies in", "answer": b, "relation": c}
        for a, b, c in (
            ("Paris", "France", "in"),
            ("Oslo", "Norway", "in"),
            ("Lyon", "France", "in"),
            ("Tea", "cups", "drink"),
        )
    ]
    paris, oslo, lyon, tea = read(written(tmp_path, *rows))
    assert paris.rivals == lyon.rivals == ("Norway",)
    assert oslo.rivals == ("France",)
    assert paris.named
    assert (set(tea.rivals), tea.named) == ({"France", "Norway"}, False)


def test_rivals_of_other_rows_are_limited_and_always_the_same(tmp_path: Path):
    rows = [{"prompt": f"Say {i} :", "answer": f"w{i}"} for i in range(150)]
    path = written(tmp_path, *rows)
    first, again = read(path), read(path)
    assert first == again
    for record in first:
        assert len(set(record.rivals)) == MOST_RIVALS
        assert record.answer not in record.rivals
        assert not record.named


def test_masks_are_spelt_one_way_and_an_answer_may_continue_a_word(tmp_path: Path):
    masked, joined = read(
        written(
            tmp_path,
            {"prompt": "<mask> is in France.", "answer": "Paris"},
            {"prompt": "from 1732 to 17", "answer": "##45"},
        )
    )
    assert masked.text == "[MASK] is in France."
    assert completed(masked) == "Paris is in France."
    assert completed(joined) == "from 1732 to 1745"


def test_retained_texts_stand_beside_prompts_or_in_rows_of_their_own(tmp_path: Path):
    path = written(
        tmp_path,
        {"prompt": PROMPT, "answer": "Paris", "retain": "It is warm."},
        {"prompt": "Rome is in", "answer": "Italy", "retain": "It is warm."},
        {"retain": "It is cold."},
    )
    prompts, texts = prompt_records(read_tables(path, "auto"), None, None)
    assert len(prompts) == 2
    assert texts == [
        TextRecord(text, "wiki", unseen=True) for text in ("It is warm.", "It is cold.")
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": PROMPT}, "a row must have a column answer or target, got prompt"),
        ({"answer": "Paris"}, "a row must have a column prompt or clean"),
        ({"prompt": "", "answer": "Paris"}, "column 'prompt' must hold text, got ''"),
        (
            {"prompt": PROMPT, "answer": None},
            "column 'answer' must hold text, got null",
        ),
        ({"prompt": PROMPT, "answer": ["a"]}, "column 'answer' must hold text"),
        ({"prompt": "A dog is a", "answer": "cat"}, "'cat', and 'pet' in .*line 1"),
        (
            {"prompt": PROMPT, "answer": "Paris", "rivals": ["Paris"]},
            "column 'rivals' must hold a wrong answer, got only 'Paris'",
        ),
        (
            {"prompt": PROMPT, "answer": "Paris", "rivals": "[1,"},
            "column 'rivals' must hold texts",
        ),
        (
            {"prompt": "[MASK] is <mask>", "answer": "Paris"},
            r"at most one \[MASK\], got 2",
        ),
        ({"prompt": "[MASK]", "answer": "Paris"}, r"more than a \[MASK\]"),
        (
            {"prompt": PROMPT, "answer": "Paris", "corrupted": "[MASK] is big"},
            "must both have a",
        ),
        (
            {"prompt": PROMPT, "answer": "Paris", "corrupted": 3},
            "column 'corrupted' must hold text",
        ),
        ({"prompt": "in 17[MASK]", "answer": "##45"}, "must follow its prompt"),
    ],
)
def test_a_row_with_a_fault_is_told_with_its_line(
    tmp_path: Path, row: dict[str, Any], message: str
):
    path = written(tmp_path, {"prompt": "A dog is a", "answer": "pet"}, row)
    with pytest.raises(UserError, match=rf"a\.jsonl, line 2: .*{message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_column_that_a_flag_names_must_be_there(tmp_path: Path):
    path = written(tmp_path, {"prompt": PROMPT, "answer": "Paris"})
    for columns, flag in ((("q", None), "--text_column"), ((None, "a"), "--label_col")):
        with pytest.raises(UserError, match=f"line 1: {flag}.* must be a column"):
            read(path, *columns)


def test_the_same_row_twice_is_one_prompt(tmp_path: Path):
    row = {"prompt": PROMPT, "answer": "Paris"}
    assert len(read(written(tmp_path, row, row))) == 1


def test_places_are_told_in_the_order_of_the_file():
    records = [
        PromptRecord("", where=f"a.csv, line {i}") for i in (12, 9, 100, 3, 4, 5)
    ]
    assert (
        places(records) == "a.csv, line 3, line 4, line 5, line 9, line 12 and 1 more"
    )


@pytest.mark.skipif("CIRCUITCUT_DATA" not in os.environ, reason="CIRCUITCUT_DATA unset")
def test_the_published_files_are_read_whole(tmp_path: Path):
    folder = Path(os.environ["CIRCUITCUT_DATA"])
    prompts = read(folder / "ioi" / "ioi_prompts.json")
    assert (len(prompts), len({p.answer for p in prompts})) == (841, 50)
    pairs = read(folder / "ioi" / "ioi_pairs.csv")
    assert len(pairs) == 499
    assert all(p.counterfactual and len(p.rivals) == 1 for p in pairs)
    assert all(p.text.count(p.answer) == 1 < p.text.count(p.rivals[0]) for p in pairs)
    known = read(folder / "known_1000" / "known_1000.json")
    assert len(known) == 1208  # one of 1,209 is there twice
    assert len({record.group for record in known}) == 1195
    assert sum(record.named for record in known) == 1207  # one relation has one row
    with gzip.open(folder / "bmlama17" / "en.tsv.gz", "rt", newline="") as file:
        lines = file.read().splitlines()[:100]
    (tmp_path / "en.tsv").write_text("\n".join(lines))
    assert all(len(r.rivals) >= 3 for r in read(tmp_path / "en.tsv"))
