"""Entries of JSON files against type hints: which is wrong, and how."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import (
    Between,
    Count,
    Digest,
    check_entries,
    check_type,
    shown,
    shown_names,
)


class Inner(TypedDict):
    n: Count
    share: NotRequired[Annotated[float, Between(0, 1)]]


class Outer(TypedDict):
    kind: Literal["a", "b"]
    inner: list[Inner]
    pair: tuple[float | None, float | None]
    by_name: dict[str, Inner | None]


VALID: dict[str, Any] = {
    "kind": "a",
    "inner": [{"n": 0}, {"n": 2, "share": 0.5}],
    "pair": [1, None],
    "by_name": {"x": None, "y": {"n": 1}},
}


def test_a_valid_tree_is_accepted():
    check_type(VALID, Outer, "f.json", closed=True)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"kind": "c"}, "entry kind must be 'a' or 'b', got 'c'"),
        ({"kind": ["a"]}, "entry kind must be 'a' or 'b', got ['a']"),
        ({"inner": {}}, "entry inner must be a list, got an object with 0 entries"),
        ({"inner": [{}]}, "entry inner[0] must be an object with n, got an object"),
        ({"inner": [{"n": True}]}, "entry inner[0].n must be a whole number"),
        ({"inner": [{"n": 1.0}]}, "entry inner[0].n must be a whole number"),
        ({"inner": [{"n": -1}]}, "of at least 0, got -1"),
        ({"inner": [{"n": 2**64}]}, "must be a whole number of 64 bits"),
        ({"inner": [{"n": 1, "share": 1.5}]}, "share must be a number from 0 to 1"),
        ({"inner": [{"n": 1, "more": 1}]}, "with no entry but n, share, got 'more'"),
        ({"pair": [1]}, "entry pair must be a list of 2, got [1]"),
        ({"pair": [1, "2"]}, "entry pair[1] must be a number or null, got '2'"),
        ({"by_name": {"x": {"n": None}}}, "entry by_name.x.n must be a whole"),
        ({"by_name": {"x": 3}}, "entry by_name.x must be an object or null, got 3"),
    ],
)
def test_a_wrong_entry_is_named_at_any_depth(entries: dict[str, Any], expected: str):
    with pytest.raises(UserError) as caught:
        check_type(VALID | entries, Outer, "f.json", closed=True)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("f.json: entry ")


def test_unknown_keys_are_let_through_where_the_tree_is_open():
    check_type(VALID | {"more": 1}, Outer, "f.json")


def test_entries_that_are_missing_are_not_looked_at():
    check_entries({"a": 1}, {"a": int, "b": str}, "f.json")
    with pytest.raises(UserError, match=r"f\.json: entry b must be a text, got null"):
        check_entries({"a": 1, "b": None}, {"a": int, "b": str}, "f.json")
    with pytest.raises(UserError, match="must be a SHA-256 in hexadecimal, got 'ab'"):
        check_entries({"a": "ab"}, {"a": Digest}, "f.json")


def test_values_in_messages_are_short_and_on_one_line():
    assert shown("a\nb") == "'a\\nb'"
    assert shown(None) == "null"
    assert len(shown("x" * 1_000)) == 60
    assert shown(list(range(9))) == "a list of 9"
    assert shown_names("abcd", 2) == "a, b and 2 more"
