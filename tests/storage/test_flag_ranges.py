"""Ranges of flags: their ends, NaN and infinity, and what a text must not hold."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.flag_ranges import (
    FINITE,
    PROBABILITY,
    SEED,
    SHARE,
    SHARE_BELOW_1,
    WITHIN,
    Range,
    check_flags,
    check_number,
    check_word,
)


@dataclass(frozen=True)
class Flags:
    lr: float = flag(0.1, "rate", within=Range(0, 1, without="least"))
    free: float = flag(0.0, "any finite number")
    seeds: list[int] = flag([0], "seeds", within=SEED)
    layers: list[int] = flag([], "layers", within=Range(0, 10))
    quick: bool = flag(True, "is no number")
    name: Path | None = flag(None, "a path")


@given(st.floats())
def test_a_range_has_what_lies_between_its_ends(value: float):
    assert SHARE.has(value) == (0 <= value <= 1)
    assert SHARE_BELOW_1.has(value) == (0 <= value < 1)
    assert PROBABILITY.has(value) == (0 < value < 1)
    assert FINITE.has(value) == math.isfinite(value)


@pytest.mark.parametrize(
    ("within", "text"),
    [
        (Range(1, 10**9), "from 1 to 1,000,000,000"),
        (SHARE_BELOW_1, "at least 0 and below 1"),
        (PROBABILITY, "above 0 and below 1"),
        (Range(0, 0.5, without="least"), "above 0 and at most 0.5"),
        (FINITE, "that is finite"),
    ],
)
def test_a_range_says_what_it_has(within: Range, text: str):
    assert str(within) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "--lr must be a number above 0 and at most 1, got 0.0"),
        ({"lr": math.nan}, "--lr .* got nan"),
        ({"free": math.inf}, "--free must be a number that is finite, got inf"),
        ({"seeds": [1, 2**64]}, "--seeds must be a whole number from 0"),
        ({"seeds": []}, "--seeds needs at least one value; leave it out for 0"),
        ({"layers": [3, 3]}, "--layers must name every value once, got 3 twice"),
        ({"layers": [11]}, "--layers must be a whole number from 0 to 10, got 11"),
    ],
)
def test_wrong_numbers_and_lists_are_refused(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        check_flags(Flags(**changes))


def test_right_numbers_and_lists_pass():
    check_flags(Flags())
    check_flags(Flags(lr=1.0, seeds=[2**63 - 1, 0], layers=[0, 10], quick=False))


def test_a_whole_number_without_a_range_fits_in_64_bits():
    check_number("n", -(2**63), None)
    with pytest.raises(UserError, match="n must be a whole number"):
        check_number("n", 2**63, None)


def test_the_range_of_a_dataclass_without_flags_is_its_own_metadata():
    @dataclass(frozen=True)
    class Plain:
        rate: float = field(default=2.0, metadata={WITHIN: SHARE})

    with pytest.raises(UserError, match="--rate must be a number from 0 to 1"):
        check_flags(Plain())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--name must not be empty"),
        ("  ", "--name must not be empty"),
        ("a\0b", "--name must not hold a NUL"),
        (os.fsdecode(b"\xffx"), "--name must be UTF-8 text"),
        ("é" * 128, "at most 255 bytes in a name"),
        ("a/" * 2049, "4,096 characters in all, got 4,098 characters"),
    ],
)
def test_texts_that_no_file_name_can_be_are_refused_in_a_short_line(
    text: str, message: str
):
    with pytest.raises(UserError, match=message) as caught:
        check_word("--name", text)
    assert len(str(caught.value)) < 200
    str(caught.value).encode()


def test_free_text_may_be_empty_and_long_but_must_be_text():
    check_word("--prefix", "", free=True)
    check_word("--prefix", "x" * 10_000, free=True)
    check_word("--name", "é" * 127)
    with pytest.raises(UserError, match="NUL"):
        check_word("--prefix", "\0", free=True)
