"""Tag schemes: what spans they spell, against `nervaluate` and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nervaluate.utils import collect_named_entities

from circuitcut.data.ner.tagged import TaggedSentence, normalised, spans, surface_forms

IOB2_TAGS = st.lists(st.sampled_from(["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]))


@given(tags=IOB2_TAGS)
def test_spans_are_those_of_nervaluate_also_when_ill_formed(tags):
    theirs = collect_named_entities(tags)
    ours = [(kind, start, stop - 1) for kind, start, stop in spans(tags)]
    assert ours == [(e["label"], e["start"], e["end"]) for e in theirs]


@given(tags=IOB2_TAGS)
def test_normalising_keeps_the_spans_and_is_idempotent(tags):
    corpus = [tags, ["B-LOC"]]
    once = normalised(corpus)
    assert spans(once[0]) == spans(tags)
    assert normalised(once) == once


@pytest.mark.parametrize(
    ("given_tags", "iob2"),
    [
        # IOB1: B- only where an entity follows another of its type
        ("I-LOC I-LOC B-LOC O I-PER", "B-LOC I-LOC B-LOC O B-PER"),
        # IOBES and BILOU
        ("S-LOC B-PER I-PER E-PER O", "B-LOC B-PER I-PER I-PER O"),
        ("U-LOC B-PER I-PER L-PER O", "B-LOC B-PER I-PER I-PER O"),
        # IOB2 with an entity that lost its start
        ("O I-LOC I-LOC B-PER", "O B-LOC I-LOC B-PER"),
    ],
)
def test_other_schemes_become_iob2(given_tags: str, iob2: str):
    assert normalised([given_tags.split()]) == [tuple(iob2.split())]


def test_io_tags_stay_as_they_are_and_runs_are_entities():
    tags = ["I-LOC", "I-LOC", "N/A", "I-PER", "I-LOC"]
    assert normalised([tags]) == [("I-LOC", "I-LOC", "O", "I-PER", "I-LOC")]
    assert spans(["location", "location", "O"]) == [("location", 0, 2)]


def test_surface_forms_are_whole_names_in_lower_case():
    sentence = TaggedSentence(
        ("In", "New", "York", "Ann"), ("O", "B-LOC", "I-LOC", "B-PER"), 0
    )
    assert surface_forms(sentence) == {"new york", "ann"}
