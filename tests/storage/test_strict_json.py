"""JSON that Python's parser takes, and that no file of ours may hold."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcut.storage.reading.strict_json import MOST_DEPTH, JsonProblem, parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_whatever_has_one_meaning_is_read(value: object, ascii_only: bool):
    try:
        text = json.dumps(value, ensure_ascii=ascii_only)
        text.encode()
    except UnicodeEncodeError:
        return
    assert parse_json(text) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1: it is empty"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ('{"a":' * 150 + "1" + "}" * 150, "nested more than 100 deep"),
        ("1" * 5_000, "a number has 5,000 digits"),
        ("[1,\n NaN]", "NaN is no JSON number"),
        ("-Infinity", "-Infinity is no JSON number"),
        ("1e999", "the number 1e999 is too large"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        ('["\\ud800"]', r"a text holds \\ud800, which is half of a character"),
        ('{"\\udc00": 1}', r"a text holds \\udc00"),
        ("[1,\n2,\n", "line 3: Expecting value"),
    ],
)
def test_what_has_no_meaning_or_two_is_refused(text: str, expected: str):
    with pytest.raises(JsonProblem) as caught:
        parse_json(text)
    assert expected.replace(r"\\", "\\") in caught.value.place


def test_what_is_just_allowed_is_read():
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert json.dumps(parse_json(deep)) == deep
    assert parse_json("1" * 300) == int("1" * 300)
    assert parse_json('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
