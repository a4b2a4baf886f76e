"""Labelled and plain text from files: columns, labels, spans, cleaning, errors."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcut.data.text.cleaning import clean, clean_with_spans
from circuitcut.data.text.files import (
    labelled_texts,
    read_retained,
    read_rows,
    retained_texts,
)
from circuitcut.data.text.records import TextRecord
from circuitcut.storage.errors import UserError


def labelled(path: Path, **options: object) -> list[TextRecord]:
    settings = {
        "text_column": None,
        "label_column": None,
        "concept_values": (),
        "all_toxic": False,
    }
    rows = read_rows(str(path), "auto", None, None)
    return labelled_texts(rows, **(settings | options))


def kinds(records: list[TextRecord]) -> list[tuple[str, str]]:
    return [(record.text, record.kind) for record in records]


@given(st.text(max_size=40), st.sets(st.integers(0, 39)))
def test_cleaned_spans_are_the_cleaned_marked_characters(text: str, marked: set[int]):
    offsets = [offset for offset in marked if offset < len(text)]
    cleaned, spans = clean_with_spans(text, offsets)
    assert all(0 <= start < end <= len(cleaned) for start, end in spans)
    if not offsets:
        assert cleaned == clean(text)
        assert spans == ()


def test_entities_handles_addresses_and_blanks_are_cleaned():
    dirty = "RT @Some_One: it&#8217;s  5 &amp;lt; 6\nsee https://x.example/y?z me@x.org"
    assert clean(dirty) == "RT @user: it\u2019s 5 < 6 see me@x.org"
    assert clean("well @-@ known , 1 @,@ 000") == "well-known , 1,000"


def test_spans_follow_the_cleaned_text():
    text = "&amp; @someone is  a potato head"
    offsets = range(text.index("potato"), text.index("potato") + 6)
    cleaned, spans = clean_with_spans(text, list(offsets))
    assert cleaned == "& @user is a potato head"
    assert [cleaned[start:end] for start, end in spans] == ["potato"]


@pytest.mark.parametrize(
    ("header", "rows", "wanted"),
    [
        ("text,toxic", ["a a,1", "b b,0"], ["toxic", "neutral"]),
        ("comment_text,toxicity", ["a a,0.5", "b b,0.49"], ["toxic", "neutral"]),
        (
            "test_case,label_gold",
            ["a a,hateful", "b b,non-hateful"],
            ["toxic", "neutral"],
        ),
        (
            "count,hate_speech,offensive_language,neither,class,tweet",
            ["3,3,0,0,0,a a", "3,0,0,3,2,b b", "3,0,3,0,1,c c"],
            ["toxic", "neutral", "toxic"],
        ),
        ("label,text", ["Toxic,a a", "not toxic,b b"], ["toxic", "neutral"]),
    ],
)
def test_usual_columns_and_labels_are_understood(
    tmp_path: Path, header: str, rows: list[str], wanted: list[str]
):
    path = tmp_path / "a.csv"
    path.write_text("\n".join([header, *rows]))
    assert [record.kind for record in labelled(path)] == wanted


def test_columns_and_toxic_labels_can_be_named(tmp_path: Path):
    path = tmp_path / "a.tsv.gz"
    with gzip.open(path, "wt") as file:
        file.write("words\tmood\na a\tred\nb b\tblue\nc c\tred\n")
    options = {"text_column": "words", "label_column": "mood"}
    records = labelled(path, **options, concept_values=("red",))
    assert kinds(records) == [("a a", "toxic"), ("b b", "neutral"), ("c c", "toxic")]
    with pytest.raises(UserError, match="concept_values must occur in column 'mood'"):
        labelled(path, **options, concept_values=("green",))
    with pytest.raises(UserError, match=r"line 2: column 'mood' must say toxic or not"):
        labelled(path, **options)


def test_marked_spans_make_the_concept(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('spans,text\n"[0, 1, 2]",bad day\n[],fine day\n')
    assert labelled(path) == [TextRecord("bad day", "toxic", ((0, 3),))]
    path.write_text('spans,text\n"[0, 99]",bad day\n')
    with pytest.raises(UserError, match=r"a\.csv, line 2: column 'spans'"):
        labelled(path)


def test_texts_without_labels_are_toxic_only_beside_other_text(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("a a\nb b\na a\n")
    assert kinds(labelled(path, all_toxic=True)) == [("a a", "toxic"), ("b b", "toxic")]
    with pytest.raises(UserError, match=r"a.txt has no labels.*--retain_data"):
        labelled(path)


def test_plain_text_is_cut_into_pieces_of_documents(tmp_path: Path):
    path = tmp_path / "wiki.txt"
    long = " ".join(f"w{i}" for i in range(170))
    path.write_text(f" = One = \n\n{long}\n = = Part = = \nshort\n = Two = \nlast\n")
    records = retained_texts(read_rows(str(path), "auto", None, None), None)
    assert [len(record.text.split()) for record in records] == [80, 80, 10, 1, 1]
    documents = [record.document for record in records]
    assert len(set(documents[:4])) == 1
    assert documents[4] != documents[3]
    assert {record.kind for record in records} == {"wiki"}


def test_jsonl_rows_need_text(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"text": "a a", "toxic": 1}) + '\n{"text": 3, "toxic": 0}'
    )
    with pytest.raises(
        UserError, match=r"a\.jsonl, line 2: column 'text' must hold text"
    ):
        labelled(path)


def test_no_message_holds_a_text(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("text,toxic\nsecretword,7\n")
    with pytest.raises(UserError) as caught:
        labelled(path)
    assert "secretword" not in str(caught.value)


@pytest.mark.skipif("CIRCUITCUT_DATA" not in os.environ, reason="CIRCUITCUT_DATA unset")
@pytest.mark.parametrize(
    ("path", "n_toxic", "n_neutral"),
    [
        ("hate_speech_offensive", 20_620, 4_163),
        ("hatecheck", 2_563, 1_165),
        ("toxic_spans/tsd_trial.csv.gz", 647, 0),
    ],
)
def test_the_shared_texts_are_recognised(path: str, n_toxic: int, n_neutral: int):
    records = labelled(Path(os.environ["CIRCUITCUT_DATA"]) / path)
    found = [record.kind for record in records]
    # repeated texts are dropped, some of them only equal once they are cleaned
    assert found.count("toxic") == pytest.approx(n_toxic, rel=0.02)
    assert found.count("neutral") == pytest.approx(n_neutral, rel=0.02)


@pytest.mark.parametrize("content", ["", "\n \n", " = Title = \n"])
def test_an_empty_file_of_texts_to_retain_is_refused(tmp_path: Path, content: str):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError, match=r"--retain_data .*a\.txt holds no text"):
        read_retained(str(tmp_path / "a.txt"), None)


def test_headings_are_told_from_text_in_linear_time(tmp_path: Path):
    text = " = Title = \n= Not a title\n = = Part = = \nEnd =\n"
    (tmp_path / "a.txt").write_text(text + "= " * 200_000 + "x\n")
    texts = [record.text for record in read_retained(str(tmp_path / "a.txt"), None)]
    assert texts[:2] == ["= Not a title", "End ="]


def test_a_row_without_the_column_of_spans_is_named(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a b", "spans": [0]}\n{"text": "c"}\n')
    rows = read_rows(str(tmp_path / "a.jsonl"), "auto", None, None)
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: column 'spans' must hold"):
        labelled_texts(
            rows,
            text_column=None,
            label_column=None,
            concept_values=(),
            all_toxic=False,
        )
