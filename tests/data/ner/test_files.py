"""Files of tagged text: every form is read, every mistake told with its line."""

import gzip
import os
from pathlib import Path

import pytest

from circuitcut.data.ner.corpus import choose_concept, split_corpus
from circuitcut.data.ner.files import TaggedFiles, read_tagged
from circuitcut.data.ner.tagged import spans
from circuitcut.storage.errors import UserError


def written(folder: Path, text: str, name: str = "data.conll") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, labels: Path | None = None) -> TaggedFiles:
    return read_tagged(path, labels, "auto")


def words_and_tags(data: TaggedFiles) -> list[tuple[str, str]]:
    return [(" ".join(s.words), " ".join(s.tags)) for s in data.sentences]


@pytest.mark.parametrize("separator", [" ", "\t", "   "])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_any_delimiter_and_line_end_reads_the_same(tmp_path, separator, line_end):
    lines = ["Paris NNP B-loc", "sleeps VBZ O", "", "Ann NNP B-per", ""]
    text = line_end.join(line.replace(" ", separator) for line in lines)
    data = read(written(tmp_path, text))
    assert words_and_tags(data) == [("Paris sleeps", "B-loc O"), ("Ann", "B-per")]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_json_reads_as_columns_do_and_tells_where_it_is_wrong(tmp_path, name):
    rows = [
        '{"words": ["Paris", "sleeps"], "tags": ["B-loc", "O"]}',
        '{"words": ["Ann"], "tags": ["B-per"]}',
        '{"words": ["Ann"], "tags": ["B-per", "O"]}',
    ]

    def joined(rows: list[str]) -> str:
        return f"[{','.join(rows)}]" if name.endswith("json") else "\n".join(rows)

    data = read(written(tmp_path, joined(rows[:2]), name))
    assert words_and_tags(data) == [("Paris sleeps", "B-loc O"), ("Ann", "B-per")]
    with pytest.raises(UserError, match=r"(line|entry) 3: expected 1 tags"):
        read(written(tmp_path, joined(rows), name))
    with pytest.raises(UserError, match=r"(line|entry) 1: --label_column .* words"):
        read(written(tmp_path, joined(['{"words": ["Ann"]}']), name))


def test_document_marks_before_or_after_a_document_make_the_same_groups(tmp_path):
    before = "-DOCSTART- O\n\nA O\n\nB O\n\n-DOCSTART- O\n\nC O\n"
    after = "A O\n\nB O\n\n-DOCSTART- O\n\nC O\n\n-DOCSTART- O\n"
    for number, text in enumerate((before, after)):
        data = read(written(tmp_path, text, f"{number}.conll"))
        assert data.groups == (0, 0, 1)
        assert [s.document for s in data.sentences] == [0, 0, 1]


def test_without_document_marks_every_sentence_is_a_document(tmp_path):
    data = read(written(tmp_path, "A O\n\nB O\n"))
    assert data.groups == (0, 0)
    assert len({s.document for s in data.sentences}) == 2


def test_the_files_of_a_folder_are_groups_and_their_names_official_parts(tmp_path):
    for name in ("dev", "test", "train"):
        written(tmp_path, "A O\n\nB O\n", f"{name}.txt")
    written(tmp_path, "Read me first", "README.txt")
    data = read(tmp_path)
    assert data.groups == (0, 0, 1, 1, 2, 2)
    assert data.sources == ("tune", "tune", "heldout", "heldout", "train", "train")


def test_gzipped_files_comments_and_invisible_words_are_read(tmp_path):
    path = tmp_path / "data.tsv.gz"
    path.write_bytes(gzip.compress(b"# id 1\nParis\tB-LOC\n\tO\n \nis\tO\n"))
    assert words_and_tags(read(path)) == [("Paris", "B-LOC"), ("is", "O")]


def test_token_and_label_lines_pair_up(tmp_path):
    tokens = written(tmp_path, "He left Rome\nShe slept\n", "tokens.txt")
    labels = written(tmp_path, "N/A N/A X:location\nN/A N/A\n", "labels.txt")
    data = read(tokens, labels)
    assert words_and_tags(data)[0] == ("He left Rome", "O O X:location")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Paris B-LOC\nsleeps\n", r"data\.conll:2: expected 2 columns"),
        ("Paris NNP B-LOC\n\nin B-LOC\n", r"data\.conll:3: expected 3 columns"),
        ("Paris\n", r"data\.conll:1: expected 2 columns"),
        ("\n\n", "holds no sentence"),
    ],
)
def test_malformed_lines_are_told_by_file_and_number(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, text))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("N/A\nN/A N/A\n", "labels.txt:1: expected 2 labels.*got 1"),
        ("N/A N/A\n", "has 2 lines but .*labels.txt has 1"),
    ],
)
def test_labels_that_do_not_pair_up_are_told_by_line(tmp_path, labels, message):
    tokens = written(tmp_path, "He left\nShe slept\n", "tokens.txt")
    with pytest.raises(UserError, match=message):
        read(tokens, written(tmp_path, labels, "labels.txt"))


def test_missing_paths_wrong_formats_and_other_encodings_are_refused(tmp_path):
    with pytest.raises(UserError, match="existing file or folder"):
        read(tmp_path / "none.conll")
    with pytest.raises(UserError, match="no file ending in"):
        read(tmp_path)
    path = tmp_path / "latin.conll"
    path.write_bytes("A O\n\nKöln B-LOC\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.conll, line 3: text must be UTF-8"):
        read(path)
    with pytest.raises(UserError, match="data_format must be"):
        read_tagged(path, None, "xml")
    with pytest.raises(UserError, match="needs --labels_file"):
        read_tagged(path, None, "parallel")
    truncated = tmp_path / "cut.conll.gz"
    truncated.write_bytes(gzip.compress(b"A O\n" * 100)[:20])
    with pytest.raises(UserError, match="truncated or not gzip"):
        read(truncated)


@pytest.mark.parametrize(
    ("types", "asked", "chosen"),
    [
        (("LOC", "PER"), None, ("LOC",)),
        (("person", "location"), None, ("location",)),
        (("ORG", "GPE"), None, ("GPE",)),
        (("SEM:named_entity:location",), None, ("SEM:named_entity:location",)),
        (("LOC", "PER"), "per", ("PER",)),
        (("LOC", "PER"), "B-LOC", ("LOC",)),
        (("LOC", "GPE", "PER"), "loc, gpe", ("LOC", "GPE")),
    ],
)
def test_the_concept_is_found_under_its_usual_names(types, asked, chosen):
    assert choose_concept(dict.fromkeys(types, 3), asked) == chosen


@pytest.mark.parametrize("asked", ["LOC", None, ""])
def test_a_concept_that_is_not_there_is_refused_with_the_types_found(asked):
    with pytest.raises(UserError, match=r"ORG \(2 sentences\), PER \(3 sentences\)"):
        choose_concept({"PER": 3, "ORG": 2}, asked)


def test_a_split_without_the_concept_is_refused(tmp_path):
    text = "Rome B-LOC\n\n" + "Ann B-PER\n\n" * 30
    data = read(written(tmp_path, text))
    with pytest.raises(UserError, match="holds no entity of type LOC"):
        split_corpus(data.sentences, data.groups, data.sources, concept=None, seed=0)


def shared_data(name: str) -> Path:
    folder = os.environ.get("CIRCUITCUT_DATA")
    if not folder:
        pytest.skip("CIRCUITCUT_DATA is not set")
    return Path(folder) / name


def test_wikigold_has_the_published_counts_and_the_calibrated_split():
    data = read(shared_data("wikigold") / "wikigold.conll.txt")
    corpus = split_corpus(
        data.sentences, data.groups, data.sources, concept=None, seed=0
    )
    assert (len(data.sentences), len(set(data.groups))) == (1696, 145)
    found = [kind for s in data.sentences for kind, _, _ in spans(s.tags)]
    assert found.count("LOC") == 1014
    words = {
        split: sum(s.tags.count("I-LOC") for s in sentences)
        for split, sentences in corpus.splits.items()
    }
    assert (words["tune"], words["heldout"], words["base"]) == (143, 320, 984)
    assert corpus.labels == ["O", "I-LOC", "I-MISC", "I-ORG", "I-PER"]


def test_the_twitter_corpus_is_split_by_section():
    data = read(shared_data("broad_twitter_corpus"))
    assert len(set(data.groups)) == 6
    found = [kind for s in data.sentences for kind, _, _ in spans(s.tags)]
    assert found.count("LOC") == 2822


def test_the_token_and_label_pair_has_the_published_counts():
    folder = shared_data("bert_conceptnet_location")
    data = read(folder / "location_tokens.txt", folder / "location_labels.txt")
    tags = [tag for s in data.sentences for tag in s.tags]
    assert len(data.sentences) == 2500
    assert tags.count("SEM:named_entity:location") == 3302


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_files_of_other_systems_give_the_same_sentences(tmp_path: Path, end: str):
    text = "Paris B-LOC\nis O\n\nAnn B-PER\nran O\n"
    (tmp_path / "a.conll").write_bytes(text.encode())
    (tmp_path / "b.conll").write_bytes(text.replace("\n", end).encode())
    here, there = (read(tmp_path / name).sentences for name in ("a.conll", "b.conll"))
    assert [s.words for s in there] == [("Paris", "is"), ("Ann", "ran")]
    assert there == here
