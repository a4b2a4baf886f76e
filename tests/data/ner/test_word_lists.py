"""Words of a list as the concept, in tagged and in plain text."""

from pathlib import Path

import pytest

from circuitcut.data.ner.files import read_tagged
from circuitcut.data.ner.plain import plain_sentences, words_of
from circuitcut.data.ner.word_lists import marked, read_word_list
from circuitcut.storage.errors import UserError

IOB = "Ann B-PER\nLee I-PER\nleft O\nNew B-LOC\nYork I-LOC\n\nAnn B-PER\nsaw O\nann O\n"


def _corpus(tmp_path: Path, text: str = IOB) -> Path:
    path = tmp_path / "corpus.conll"
    path.write_text(text)
    return path


def _marked(path: Path, entries: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    tagged = read_tagged(path, None, "auto")
    return [sentence.tags for sentence in marked(tagged, entries, "name").sentences]


def test_a_listed_word_has_the_lists_type_and_its_neighbours_keep_theirs(tmp_path):
    found = _marked(_corpus(tmp_path), {("Ann",)})
    assert found == [
        ("B-name", "B-PER", "O", "B-LOC", "I-LOC"),
        ("B-name", "O", "O"),  # upper and lower case differ
    ]


def test_of_two_entries_the_longest_is_marked_as_one_entity(tmp_path):
    found = _marked(_corpus(tmp_path), {("New",), ("New", "York"), ("saw", "Ann")})
    assert found[0] == ("B-PER", "I-PER", "O", "B-name", "I-name")
    assert found[1] == ("B-PER", "O", "O")


def test_in_io_tags_an_entry_has_an_io_tag(tmp_path):
    path = _corpus(tmp_path, "Ann I-PER\nleft O\n\nUlm I-LOC\n")
    assert _marked(path, {("Ann",)}) == [("I-name", "O"), ("I-LOC",)]


def test_without_any_of_the_words_the_list_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of the 1 entries"):
        _marked(_corpus(tmp_path), {("Bob",)})


def test_a_list_is_a_file_or_the_text_files_of_a_folder(tmp_path: Path):
    (tmp_path / "female.txt").write_text("Ann\nMary Ann \n\n")
    (tmp_path / "male.txt").write_text("Bob\n")
    (tmp_path / "README").write_text("Names of people.\n")
    one = read_word_list(tmp_path / "female.txt")
    assert one == {("Ann",), ("Mary", "Ann")}
    assert read_word_list(tmp_path) == {*one, ("Bob",)}


def test_a_missing_and_an_empty_list_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="must be an existing file"):
        read_word_list(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="holds no word"):
        read_word_list(tmp_path / "empty.txt")


def test_plain_text_is_divided_into_words_and_documents(tmp_path: Path):
    assert words_of('"Hello, Ann!" 3.5 @-@ don\'t') == [
        *('"', "Hello", ",", "Ann", '!"', "3.5", "@-@", "don't")
    ]
    path = tmp_path / "text.txt"
    path.write_text(" = One = \nAnn left .\nBob came .\n = Two = \nNo one .\n")
    sentences = list(plain_sentences(path))
    assert [document for _, _, document in sentences] == [0, 0, 1]
    assert sentences[0][0] == ["Ann", "left", "."]
    assert all(set(tags) == {"O"} for _, tags, _ in sentences)
    long = tmp_path / "long.txt"
    long.write_text("word " * 81)
    assert [len(words) for words, _, _ in plain_sentences(long)] == [80, 1]
