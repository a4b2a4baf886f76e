"""Hub data sets: official parts, named tags, and one line when they cannot be had."""

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from circuitcut.data.hub import load_hub
from circuitcut.data.ner.hub import tagged_from_hub
from circuitcut.storage.errors import UserError

NAMED = Features(
    {
        "tokens": Sequence(Value("string")),
        "ner_tags": Sequence(ClassLabel(names=["O", "B-LOC", "I-LOC"])),
    }
)


def table(tokens: list, tags: list, features: Features | None = NAMED) -> Dataset:
    return Dataset.from_dict({"tokens": tokens, "ner_tags": tags}, features=features)


def test_numbered_tags_take_the_names_of_their_column_and_parts_are_official():
    train = table([["New", "York"], ["He", "left"]], [[1, 2], [0, 0]])
    test = table([["Rome"]], [[1]])
    data = tagged_from_hub({"train": train, "test": test}, None, None)
    assert [s.tags for s in data.sentences] == [
        ("B-LOC", "I-LOC"),
        ("O", "O"),
        ("B-LOC",),
    ]
    assert data.sources == ("train", "train", "heldout")


def test_written_tags_are_taken_as_they_are():
    written = table([["Rome", "fell"]], [["location", "O"]], None)
    data = tagged_from_hub({"train": written}, "tokens", "ner_tags")
    assert data.sentences[0].tags == ("location", "O")


@pytest.mark.parametrize(
    ("tokens", "tags", "columns", "message"),
    [
        (["Rome"], ["O"], ("text", None), "--text_column .* got text; it has tokens"),
        (["Rome"], ["O"], (None, "pos"), "--label_column .* got pos"),
        (["Rome", "fell"], ["O"], (None, None), "row 0 .* 2 words but 1 tags"),
        (["Rome"], [1], (None, None), "numbers without names"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tokens, tags, columns, message):
    with pytest.raises(UserError, match=message):
        tagged_from_hub({"train": table([tokens], [tags], None)}, *columns)


def test_the_name_configuration_and_revision_are_passed_on(monkeypatch):
    asked = []

    def fake(name, config, *, revision):
        asked.append((name, config, revision))
        return DatasetDict(train=table([["Rome"]], [[1]]))

    monkeypatch.setattr(datasets, "load_dataset", fake)
    parts = load_hub("hub:owner/name", "en", "abc123")
    assert asked == [("owner/name", "en", "abc123")]
    assert list(parts) == ["train"]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach the hub\nmore"),
        ValueError("Config name is missing"),
        RuntimeError("Dataset scripts are no longer supported"),
    ],
)
def test_every_failure_is_one_line_that_says_what_to_check(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        UserError, match="cannot load hub data set 'owner/name'"
    ) as told:
        load_hub("owner/name")
    assert "\n" not in str(told.value)
    assert "--hub_config" in str(told.value)


def test_offline_a_name_that_is_not_cached_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match="cannot load hub data set"):
        load_hub("owner/no-such-name")
