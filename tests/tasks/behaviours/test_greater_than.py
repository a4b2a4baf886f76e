"""Spans of years: how they are written, and the published scores by hand."""

from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuitcut.data.behaviours.years import YearSpan, generate_years
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import TaskOptions
from circuitcut.tasks.behaviours.greater_than import GreaterThanTask
from circuitcut.tasks.rows.prompts import PROMPT
from tests.tasks.test_prompts import Fixed

SPAN = YearSpan("war", 17, 32, end=57, wrong_end=11)


def with_pieces(pattern: str) -> Any:
    """A tokenizer whose words are cut by a pattern, with every piece it needs."""
    corpus = generate_years(0)
    texts = [
        r.text
        for records in corpus.in_form("two_digits").records.values()
        for r in records
    ]
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(pattern), "isolated"),
        ]
    )
    pieces = {piece for text in texts for piece, _ in cut.pre_tokenize_str(text)}
    pieces |= {f"{n:02d}" for n in range(100)} | {str(n) for n in range(10)}
    vocab = {"[UNK]": 0, "[PAD]": 1} | {p: i for i, p in enumerate(sorted(pieces), 2)}
    tokenizer = Tokenizer(models.WordLevel(vocab, "[UNK]"))
    tokenizer.pre_tokenizer = cut
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    )


def words() -> Any:
    texts = generate_years(0).texts()
    return train_tokenizer(
        texts, "word", is_decoder=True, vocab_size=4096, max_length=64
    )


def task_with(tokenizer: Any) -> GreaterThanTask:
    options = TaskOptions()
    return GreaterThanTask(GreaterThanTask.read(options), tokenizer, options)


def test_a_span_is_written_in_three_ways():
    joined, digit, apart = (
        SPAN.record(form) for form in ("two_digits", "last_digit", "apart")
    )
    assert joined.text == "The war lasted from the year 1732 to the year 17"
    assert (joined.answer, joined.rivals, joined.continues) == ("57", ("11",), True)
    assert joined.counterfactual == "The war lasted from the year 1701 to the year 17"
    assert digit.text == "The war lasted from the year 1732 to the year 173"
    assert digit.counterfactual == "The war lasted from the year 1730 to the year 173"
    assert int(digit.answer) > 2 >= int(digit.rivals[0])
    assert apart.text == "The war lasted from the year 17 32 to the year 17"
    assert not apart.continues
    # no digit is above 9, and a start at 0 is its own counterfactual
    for start, can in ((39, False), (30, False), (31, True), (38, True)):
        assert YearSpan("war", 17, start, 50, 1).can_be_asked("last_digit") == can


@pytest.mark.parametrize("form", ["two_digits", "last_digit", "apart"])
def test_right_ends_are_above_the_start_and_wrong_ones_are_not(form: Any):
    for spans in generate_years(0).spans.values():
        for span in spans:
            if span.can_be_asked(form):
                assert span.wrong(form) <= span.threshold(form) < span.right(form)
                assert span.right(form) < (10 if form == "last_digit" else 100)


def test_no_start_is_in_two_splits():
    starts = [
        {(span.century, span.start) for span in spans}
        for spans in generate_years(0).spans.values()
    ]
    assert sum(map(len, starts)) == len(set.union(*starts))


@pytest.mark.parametrize(
    ("pattern", "ending"),
    [(r"\d\d", "the year 17"), (r"\d", "the year 173"), ("", "the year 17")],
)
def test_the_tokenizer_decides_how_a_year_is_written(pattern: str, ending: str):
    task = task_with(with_pieces(pattern) if pattern else words())
    batch = task.batch("mask", 0, size=16, seed=0)
    row = (batch["kind"] == PROMPT).nonzero()[0, 0]
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    text = task._tokenizer.decode(ids).replace("[BOS]", "").strip()
    if pattern:
        text = text.replace(" ", "")
        ending = ending.replace(" ", "")
    n_digits = len(ending) - len(ending.rstrip("0123456789"))
    assert text[:-n_digits].endswith(ending[:-n_digits])
    assert text[-n_digits:].isdigit()
    assert task.no_pairs is None


def test_the_published_scores_by_hand():
    task = task_with(words())
    ids = {
        year: task._tokenizer.encode(f"{year:02d}", add_special_tokens=False)[0]
        for year in range(2, 100)
    }
    p = torch.full((len(task._tokenizer),), 1e-30)
    p[[ids[20], ids[50], ids[51], ids[90]]] = torch.tensor([0.1, 0.4, 0.2, 0.3])
    model = Fixed(p.log()).requires_grad_(False)
    batch = next(iter(task.evaluation_batches("heldout", size=64)))
    prompts = batch["kind"] == PROMPT
    counts = task.counts(model, batch)
    by_year = {20: 0.1, 50: 0.4, 51: 0.2, 90: 0.3}
    for row in prompts.nonzero()[:, 0].tolist():
        start = int(batch["threshold"][row])
        difference = sum(v if year > start else -v for year, v in by_year.items())
        sharpness = by_year.get(start + 1, 0) - by_year.get(start - 1, 0)
        assert counts["probability_difference"][row] == pytest.approx(
            difference, abs=1e-5
        )
        assert counts["cutoff_sharpness"][row] == pytest.approx(sharpness, abs=1e-5)
    scores = task.summarise({name: value.sum() for name, value in counts.items()})
    shares = counts["probability_difference"][prompts]
    assert scores["probability_difference"] == pytest.approx(float(shares.mean()))
    assert task.concept_metric.chance == 0.0


def test_a_tokenizer_without_years_and_data_of_the_user_are_refused():
    tokenizer = train_tokenizer(
        ["no year here"], "word", is_decoder=True, vocab_size=99, max_length=64
    )
    with pytest.raises(UserError, match="last two digits of a year"):
        task_with(tokenizer)
    with pytest.raises(UserError, match="--task prompts"):
        GreaterThanTask.read(TaskOptions(data="my.csv"))
