"""Top words, saliency and similarity by hand, and counts at every level."""

import pytest
import torch

from circuitcut.attribution.words.states import WordSource, hidden_sites, word_states
from circuitcut.relearning.stages.comparing import (
    by_level,
    compared_similarity,
    n_concept_words,
    polysemantic,
    saliency_of,
    shares_by_level,
    similarity,
    without_letters,
)
from circuitcut.relearning.stages.reading import read_units, top_words_of
from circuitcut.relearning.stages.summary import (
    level_values,
    overlaps,
    top,
)
from circuitcut.relearning.stages.vocabulary import NONE, Vocabulary
from circuitcut.storage.errors import UserError


def test_top_words_are_the_five_highest_shares_of_the_maximum_above_a_tenth():
    means = torch.tensor([[2.0, 0.0], [1.0, 4.0], [0.2, 0.0], [0.21, 4.0]])
    words, scores = top_words_of(means, torch.tensor([False, False]))
    assert words.tolist() == [[0, 1, 3, NONE], [1, 3, NONE, NONE]]
    assert scores[0].tolist() == pytest.approx([1.0, 0.5, 0.105, 0.0])
    constant, none = top_words_of(means, torch.tensor([True, False]))
    assert constant[0].tolist() == [NONE] * 4
    assert none[0].tolist() == [0.0] * 4


def test_a_reading_is_that_of_all_states_collected(task, encoder):
    vocabulary = Vocabulary.of(WordSource(task, "mask"), encoder.tokenizer)
    sites = hidden_sites(encoder.model)
    reading = read_units(WordSource(task, "mask"), encoder.model, sites, vocabulary)
    pairs = list(word_states(WordSource(task, "mask"), encoder.model, sites))
    states = torch.cat([states for _, states in pairs]).double()
    places = torch.cat([vocabulary.places(words) for words, _ in pairs])
    concept = torch.cat([words.is_concept for words, _ in pairs])
    difference = states[concept].mean(0) - states[~concept].mean(0)
    assert torch.allclose(reading.score, difference.abs())
    z = ((states - states.mean(0)) / states.std(0, correction=0)).abs()
    n_types = len(vocabulary.words)
    means = torch.stack([z[places == i].mean(0) for i in range(n_types)])
    words, _ = top_words_of(means, reading.is_constant)
    assert (words == reading.top_words).double().mean() > 0.99  # ties of rounding
    assert not reading.is_constant.any()
    texts = task.words_of("mask")
    spoken = [word for text in texts for word in text]
    for place, word in enumerate(vocabulary.words):
        assert vocabulary.counts[place] == spoken.count(word) >= 2


def test_words_that_are_the_concept_at_least_half_of_the_time(task, encoder):
    vocabulary = Vocabulary.of(WordSource(task, "mask"), encoder.tokenizer)
    places = vocabulary.is_concept.nonzero().flatten().tolist()
    named = [vocabulary.words[place] for place in places]
    tagged = {
        word
        for sentence in task.corpus.splits["mask"]
        for word, tag in zip(sentence.words, sentence.tags, strict=True)
        if tag.endswith("LOC")
    }
    assert named
    assert set(named) <= tagged


def test_saliency_is_the_published_one_among_the_units_left():
    score = torch.arange(600.0)
    values = saliency_of(score, torch.zeros(600, dtype=torch.bool))
    assert values[500:].tolist() == [1.0] * 100  # the highest hundred
    assert values[0] == pytest.approx(0.0)
    out = torch.zeros(600, dtype=torch.bool)
    out[[599, 0]] = True
    values = saliency_of(score, out)
    assert values[out].isnan().all()
    assert values[499:599].tolist() == [1.0] * 100
    unnamed = torch.zeros(600, dtype=torch.bool)
    unnamed[598] = True
    assert saliency_of(score, out, unnamed)[598].isnan()


def test_similarity_is_one_for_identical_lists_and_excluded_where_compared():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [torch.nan] * 2])
    one = torch.tensor([[0, 1], [0, NONE], [0, 1], [NONE, NONE], [3, NONE], [0, 3]])
    other = torch.tensor([[0, 1], [1, NONE], [1, 0], [0, 1], [0, NONE], [0, NONE]])
    found = similarity(one, other, vectors)
    assert found[:3].tolist() == [1.0, 0.0, pytest.approx(1.0)]
    assert found[3:5].isnan().all()  # no words, and no vector
    assert found[5] == pytest.approx(1.0)  # the word without a vector is left out
    compared = compared_similarity(one, other, vectors)
    assert compared.isnan().tolist() == [True, False, True, True, True, False]
    half = similarity(torch.tensor([[0, NONE]]), torch.tensor([[2, NONE]]), vectors)
    assert half.item() == pytest.approx(0.5**0.5)


def test_polysemantic_units_have_words_of_both_sides():
    is_concept = torch.tensor([True, False, True])
    words = torch.tensor([[0, 1], [0, 2], [1, NONE], [NONE, NONE], [0, NONE]])
    assert n_concept_words(words, is_concept).tolist() == [1, 2, 0, 0, 1]
    assert polysemantic(words, is_concept).tolist() == [True] + [False] * 4
    letters = without_letters(
        torch.tensor([[0, NONE], [0, 1], [NONE] * 2]), ["1.", "a"]
    )
    assert letters.tolist() == [True, False, False]


def test_levels_count_their_own_units_from_the_embedding_level_on():
    values = torch.tensor([1.0, 3.0, torch.nan, 5.0, 7.0, 9.0])
    assert by_level(values, [2, 1, 3]) == [
        {"level": 0, "n": 2, "mean": 2.0},
        {"level": 1, "n": 0, "mean": None},
        {"level": 2, "n": 3, "mean": 7.0},
    ]
    chosen = torch.tensor([True, False, False, True, True, True])
    assert [row["share"] for row in shares_by_level(chosen, [2, 1, 3])] == [
        0.25,
        0.0,
        0.75,
    ]


def test_measures_of_a_stage_leave_constant_units_out():
    tensors = {
        "score": torch.tensor([0.0, 4.0, 3.0, 1.0]),
        "effect": torch.tensor([0.0, 2.0, 1.0, 3.0]),
        "constant": torch.tensor([True, False, False, False]),
        "saliency": torch.tensor([torch.nan, 1.0, 0.6, 0.1]),
        "top_words": torch.tensor([[NONE, NONE], [0, 1], [1, NONE], [0, NONE]]),
        "similarity": torch.tensor([torch.nan, 0.5, torch.nan, 0.1]),
        "fresh_score": torch.tensor([-9.0, 0.0, 1.0, 2.0]),
    }
    low, high = level_values(tensors, [2, 2], torch.tensor([True, False]), 1)
    assert (low["n_left_out"], high["n_left_out"]) == (1, 0)
    assert (low["salient_share"], high["salient_share"]) == (0.5, 0.5)
    assert (low["saliency"], low["effect"]) == (1.0, 2.0)
    assert (low["similarity"], high["similarity"]) == (0.5, pytest.approx(0.1))
    assert (low["polysemantic"], high["polysemantic"]) == (1.0, 0.0)
    assert (low["concept_units"], high["concept_units"]) == (1.0, 0.5)
    assert (low["fresh_share"], high["fresh_share"]) == (0.0, 1.0)
    pruned = torch.tensor([True, False, False, True])
    row = overlaps(tensors, tensors, pruned)
    assert row["n_compared"] == 2
    assert (row["with_base"], row["with_pruned"]) == (1.0, 0.0)
    assert row["fresh_with_pruned"] == pytest.approx(1 / 3)


def test_the_top_of_equal_scores_is_the_first():
    assert top(torch.zeros(4), 2).tolist() == [True, True, False, False]


def test_a_concept_without_a_word_that_occurs_twice_is_refused(task, encoder):
    class Once(type(task)):
        def evaluation_batches(self, split, *, size):
            batch = next(super().evaluation_batches(split, size=24))
            batch["concept"] = batch["concept"] & False
            yield batch

    empty = Once(task.corpus, encoder.tokenizer, task._options)
    with pytest.raises(UserError, match="no word of the concept"):
        Vocabulary.of(WordSource(empty, "mask"), encoder.tokenizer)
