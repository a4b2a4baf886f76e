"""The corpus of several behaviours: repeats, later years, and the prompts as before."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from circuitcut.data.ioi.behaviours_generated import (
    CENTURIES,
    induction_text,
    years_text,
)
from circuitcut.data.ioi.generated import generate_ioi
from circuitcut.data.ioi.words import NAMES
from circuitcut.tasks.base import TaskOptions
from circuitcut.tasks.ioi import SEVERAL, IoiTask


@given(st.integers(0, 10_000))
def test_the_second_half_repeats_the_first(seed: int):
    words = induction_text(random.Random(seed)).text.split()
    half = len(words) // 2
    assert words[:half] == words[half:]
    assert len(set(words)) == half >= 4


@given(st.integers(0, 10_000))
def test_a_span_ends_in_the_same_century_and_later(seed: int):
    words = years_text(random.Random(seed)).text.rstrip(".").split()
    (century, start), (other, end) = words[6:8], words[-2:]
    assert century == other
    assert int(century) in CENTURIES
    assert int(start) < int(end) <= 99


def test_several_behaviours_among_the_same_prompts():
    plain, several = generate_ioi(0), generate_ioi(0, several=True)
    assert several == IoiTask.read(TaskOptions(data=SEVERAL))
    assert plain == IoiTask.read(TaskOptions())
    assert several.unseen_names == plain.unseen_names
    kinds = Counter(record.kind for record in several.records["base"])
    n = len(several.records["base"])
    assert (kinds["ioi"] + kinds["three_names"]) / n == 3 / 8
    assert kinds["copy"] / n == 3 / 8
    assert kinds["text"] / n == 2 / 8
    heldout = several.records["heldout"]
    assert [r for r in heldout if r.kind == "ioi"] == [
        r for r in plain.records["heldout"] if r.kind == "ioi"
    ]
    texts = [record.text for record in heldout if record.kind == "text"]
    assert any("the year" in text for text in texts)
    assert not any(set(text.split()) & set(NAMES) for text in texts)
