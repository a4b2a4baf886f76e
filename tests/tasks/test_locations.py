"""Locations: span scores against `nervaluate`, labels at the right pieces, batches."""

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nervaluate.evaluator import Evaluator
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from circuitcut.data.ner.corpus import NerCorpus
from circuitcut.data.ner.tagged import TaggedSentence
from circuitcut.data.sampling import shuffled
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET, NO_WORD, TaskOptions
from circuitcut.tasks.evaluation import evaluate
from circuitcut.tasks.locations import LocationsTask
from circuitcut.tasks.span_counts import SpanCounter

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["in", "saw", "left", "calmly", "Ann", "Bob", "Rome", "Pa", "Yo", "New", "Acme"]
PIECES = ["##ris", "##rk", "##er", "##n"]
VOCAB = {word: index for index, word in enumerate(SPECIAL + WORDS + PIECES)}
MIXED = [
    ("Ann saw Paris", "B-PER O B-LOC"),
    ("Bob left New York", "B-PER O B-LOC I-LOC"),
    ("Ann saw Acme", "B-PER O B-ORG"),
    ("Bob left calmly", "B-PER O O"),
    ("Ann saw Bob in", "B-PER O B-PER O"),
    ("in saw calmly", "O O O"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordPiece(VOCAB, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", VOCAB["[CLS]"]), ("[SEP]", VOCAB["[SEP]"])]
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def corpus_of(rows: list[tuple[str, str]], *, heldout: Any = None) -> NerCorpus:
    def sentences(given_rows: list[tuple[str, str]]) -> tuple[TaggedSentence, ...]:
        return tuple(
            TaggedSentence(tuple(words.split()), tuple(tags.split()), number)
            for number, (words, tags) in enumerate(given_rows)
        )

    splits = {split: sentences(rows) for split in ("base", "mask", "tune", "relearn")}
    return NerCorpus(splits | {"heldout": sentences(heldout or rows)}, ("LOC",))


def task_of(tokenizer: Any, rows=MIXED, *, heldout=None, **options: Any):
    corpus = corpus_of(rows, heldout=heldout)
    return LocationsTask(corpus, tokenizer, TaskOptions(**options))


class Answering(nn.Module):
    """Says the gold label of every word, but for rows where told otherwise."""

    def __init__(self, task: LocationsTask, said: dict[tuple[int, ...], list[str]]):
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros(()))
        self.task, self.said = task, said

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits = torch.zeros(*input_ids.shape, len(self.task.labels))
        for row, ids in enumerate(input_ids.tolist()):
            n = int(attention_mask[row].sum())
            for piece, label in enumerate(self.said[tuple(ids[:n])]):
                logits[row, piece, self.task.labels.index(label)] = 5.0
        return SimpleNamespace(logits=logits + self.dummy)


def answering(task: LocationsTask, predictions: list[list[str]]) -> Answering:
    """`predictions[i]` is what to say at the words of held-out sentence i."""
    said = {}
    for row, tags in enumerate(predictions):
        batch = next(iter(task.evaluation_batches("heldout", size=1000)))
        order = batch["cluster"].tolist().index(row)
        n = int(batch["attention_mask"][order].sum())
        labels = iter(tags)
        said[tuple(batch["input_ids"][order, :n].tolist())] = [
            next(labels) if target != NO_TARGET else "O"
            for target in batch["targets"][order, :n].tolist()
        ]
    return Answering(task, said)


TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@given(
    pairs=st.lists(
        st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1),
        min_size=1,
        max_size=5,
    )
)
def test_span_outcomes_are_those_of_nervaluate(pairs):
    gold = [[g for g, _ in sentence] for sentence in pairs]
    predicted = [[p for _, p in sentence] for sentence in pairs]
    seq = max(len(sentence) for sentence in pairs)
    counts = SpanCounter(TAGS, ["LOC", "PER"])(
        *(
            torch.tensor(
                [[*map(TAGS.index, tags), *[0] * (seq - len(tags))] for tags in side]
            )
            for side in (gold, predicted)
        ),
        torch.tensor([[i < len(tags) for i in range(seq)] for tags in gold]),
    )
    ours = {
        (outcome, kind): int(counts[outcome][:, place].sum())
        for outcome in ("tp", "fp", "fn")
        for place, kind in enumerate(("LOC", "PER"))
    }
    theirs = Evaluator(gold, predicted, tags=["LOC", "PER"], loader="list").evaluate()
    strict = theirs["overall"]["strict"]
    assert sum(ours["tp", kind] for kind in ("LOC", "PER")) == strict.correct
    assert sum(ours[o, k] for o in ("tp", "fn") for k in ("LOC", "PER")) == (
        strict.possible
    )
    assert sum(ours[o, k] for o in ("tp", "fp") for k in ("LOC", "PER")) == (
        strict.actual
    )


def test_later_pieces_of_a_word_do_not_split_its_entity():
    gold = torch.tensor([[1, NO_TARGET, 2, NO_TARGET, 0, 3]])
    given = torch.tensor([[1, 0, 2, 3, 0, 0]])  # what is said of later pieces is void
    counts = SpanCounter(TAGS, ["LOC", "PER"])(gold, given, gold != NO_TARGET)
    assert counts["tp"].tolist() == [[1, 0]]
    assert counts["fp"].tolist() == [[0, 0]]
    assert counts["fn"].tolist() == [[0, 1]]


def test_scores_worked_out_by_hand(tokenizer):
    said = [
        ["B-PER", "O", "B-ORG"],  # the location spills into ORG
        ["B-PER", "O", "B-LOC", "I-LOC"],
        ["B-PER", "O", "B-ORG"],
        ["B-PER", "O", "B-LOC"],  # a location where there is none
        ["B-PER", "O", "O", "O"],  # one person missed
        ["O", "O", "O"],
    ]
    task = task_of(tokenizer)
    scores = evaluate(task, answering(task, said), "heldout").scores
    assert scores["concept_precision"] == pytest.approx(1 / 2)
    assert scores["concept_recall"] == pytest.approx(1 / 2)
    assert scores["concept_f1"] == pytest.approx(1 / 2)
    person, organisation = 2 * 5 / (2 * 5 + 0 + 1), 2 * 1 / (2 * 1 + 1 + 0)
    assert scores["f1_PER"] == pytest.approx(person)
    assert scores["f1_ORG"] == pytest.approx(organisation)
    assert scores["retain_f1"] == pytest.approx((person + organisation) / 2)
    assert scores["retain_f1_micro"] == pytest.approx(2 * 6 / (2 * 6 + 1 + 1))
    # without the two sentences that hold a location, ORG is perfect
    clean_person = 2 * 3 / (2 * 3 + 0 + 1)
    assert scores["retain_f1_clean"] == pytest.approx((clean_person + 1) / 2)
    assert scores["token_accuracy"] == pytest.approx(17 / 20)
    assert scores["token_accuracy_clean"] == pytest.approx(11 / 13)


def test_scores_that_nothing_defines_are_nan(tokenizer):
    task = task_of(tokenizer, heldout=[("in saw calmly", "O O O")])
    scores = evaluate(task, answering(task, [["O", "O", "O"]]), "heldout").scores
    for name in ("concept_f1", "retain_f1", "retain_f1_clean", "concept_nll"):
        assert math.isnan(scores[name])
    assert scores["token_accuracy"] == 1.0


@pytest.mark.parametrize(("label_piece", "place"), [("first", 4), ("last", 6)])
def test_a_word_is_labelled_at_its_first_or_last_piece(tokenizer, label_piece, place):
    rows = [("Bob left New Yorker calmly", "B-PER O B-LOC I-LOC O"), *MIXED]
    task = task_of(tokenizer, heldout=rows, label_piece=label_piece)
    batch = next(iter(task.evaluation_batches("heldout", size=100)))
    row = batch["cluster"].tolist().index(0)
    pieces = tokenizer.convert_ids_to_tokens(batch["input_ids"][row].tolist())
    # [CLS] Bob left New Yo ##rk ##er calmly [SEP]
    assert pieces[4:7] == ["Yo", "##rk", "##er"]
    labels = ["" if t == NO_TARGET else task.labels[t] for t in batch["targets"][row]]
    assert labels[place] == "I-LOC"
    assert labels.count("") == len(labels) - 5
    assert batch["real"][row].tolist() == [False, *[True] * 7, False]


@pytest.mark.parametrize("label_piece", ["first", "last"])
@pytest.mark.parametrize("kind", ["word", "wordpiece", "bpe"])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_every_word_has_one_label_under_every_tokenizer(kind, label_piece, is_decoder):
    rows = [("In Saint-Étienne , the U.S. team 's", "O B-LOC O O B-LOC O O"), *MIXED]
    small = train_tokenizer(
        [words for words, _ in MIXED] * 3,
        kind,
        is_decoder=is_decoder,
        vocab_size=300,
        max_length=64,
    )
    task = task_of(small, heldout=rows, label_piece=label_piece)
    for batch in task.evaluation_batches("heldout", size=2):
        for document, targets in zip(batch["cluster"], batch["targets"], strict=True):
            labels = [task.labels[t] for t in targets[targets != NO_TARGET]]
            assert labels == rows[document][1].split()


@pytest.mark.parametrize("label_piece", ["first", "last"])
def test_every_piece_has_the_number_of_its_word(tokenizer, label_piece):
    rows = [("Bob left New Yorker calmly", "B-PER O B-LOC I-LOC O"), *MIXED]
    task = task_of(tokenizer, heldout=rows, label_piece=label_piece)
    batch = next(iter(task.evaluation_batches("heldout", size=100)))
    row = batch["example"].tolist().index(0)
    # [CLS] Bob left New Yo ##rk ##er calmly [SEP]
    assert batch["word"][row].tolist() == [NO_WORD, 0, 1, 2, 3, 3, 3, 4, NO_WORD]
    assert ((batch["word"] == NO_WORD) == ~batch["real"]).all()
    texts = task.words_of("heldout")
    assert texts[0][3] == "Yorker"
    assert [len(texts[e]) - 1 for e in batch["example"]] == batch["word"].amax(
        1
    ).tolist()


def test_words_beyond_the_longest_input_are_left_out(tokenizer):
    task = task_of(tokenizer, max_length=5)
    batch = next(iter(task.evaluation_batches("heldout", size=100)))
    assert batch["input_ids"].shape[1] == 5
    row = batch["cluster"].tolist().index(1)
    assert not batch["concept"][row][4:].any()


def test_weights_are_those_of_the_calibrated_recipe(tokenizer):
    task = task_of(tokenizer)
    batch = next(iter(task.evaluation_batches("heldout", size=100)))
    by_label = {
        task.labels[int(target)]: float(weight)
        for target, weight in zip(
            batch["targets"].flatten(), batch["weights"].flatten(), strict=True
        )
        if target != NO_TARGET
    }
    entities = {"B-PER": 2.0, "B-ORG": 2.0}
    assert by_label == {"O": 1.0, "B-LOC": 1.0, "I-LOC": 1.0} | entities
    assert (batch["weights"][batch["targets"] == NO_TARGET] == 0).all()


def test_a_mask_batch_of_sixteen_has_six_sentences_of_the_concept(tokenizer):
    rows = MIXED * 10
    task = task_of(tokenizer, rows)
    for step in range(3):
        batch = task.batch("mask", step, size=16, seed=0)
        assert int(batch["concept"].any(1).sum()) == 6
        assert len(batch["concept"]) == 16


def test_data_without_other_sentences_still_fill_a_batch(tokenizer):
    task = task_of(tokenizer, MIXED[:2] * 10)
    batch = task.batch("mask", 0, size=16, seed=0)
    assert len(batch["concept"]) == 16
    assert batch["concept"].any(1).all()


def test_a_larger_limit_adds_sentences_to_those_of_a_smaller_one(tokenizer):
    task = task_of(tokenizer, MIXED * 10)

    def pool(limit: int) -> set[int]:
        batches = (
            task.finetune_batch("relearn", step, size=4, seed=5, limit=limit)
            for step in range(8)
        )
        return {document for b in batches for document in b["cluster"].tolist()}

    assert len(pool(1)) == 1
    assert len(pool(4)) == 4
    assert pool(1) < pool(4) < pool(16)
    with pytest.raises(UserError, match=r"limit must lie in 1\.\.20"):
        task.finetune_batch("relearn", 0, size=4, seed=5, limit=21)


def test_unseen_sentences_are_those_whose_names_stand_in_no_other_split(tokenizer):
    heldout = [
        ("Ann saw Rome", "B-PER O B-LOC"),
        ("Bob left rome in", "O O B-LOC O"),
        ("Ann left Acme", "O O B-ORG"),
        ("in saw", "O O"),
        ("Bob left York", "O O B-LOC"),
    ]
    task = task_of(tokenizer, heldout=heldout)
    batch = next(iter(task.evaluation_batches("heldout", size=100)))
    unseen = dict(zip(batch["cluster"].tolist(), batch["unseen"].tolist(), strict=True))
    # Ann and Acme occur elsewhere; York alone is another name than New York
    assert unseen == {0: False, 1: True, 2: False, 3: True, 4: True}


@pytest.mark.parametrize("label_piece", ["first", "last"])
def test_counterfactual_words_are_ordinary_and_as_long(tokenizer, label_piece):
    task = task_of(tokenizer, MIXED * 3, label_piece=label_piece)
    batch = task.batch("mask", 0, size=16, seed=0)
    corrupted = task.counterfactual(batch)
    changed = corrupted["input_ids"] != batch["input_ids"]
    names = {VOCAB[piece] for piece in ("Pa", "##ris", "New", "Yo", "##rk")}
    ids = batch["input_ids"]
    is_name = torch.isin(ids, torch.tensor(sorted(names)))
    assert torch.equal(changed, is_name)
    ordinary = {VOCAB[word] for word in ("in", "saw", "left", "calmly")}
    assert set(corrupted["input_ids"][changed].tolist()) <= ordinary
    assert torch.equal(corrupted["input_ids"], task.counterfactual(batch)["input_ids"])
    assert torch.equal(corrupted["attention_mask"], batch["attention_mask"])


def test_every_label_of_the_concept_counts_as_its_answer(tokenizer):
    task = task_of(tokenizer)
    batch = task.batch("mask", 0, size=6, seed=0)
    classes = task.concept_classes(batch, batch["concept"])
    wanted = [task.labels.index("B-LOC"), task.labels.index("I-LOC")]
    assert classes.tolist() == [wanted] * int(batch["concept"].sum())


def test_a_tokenizer_without_offsets_is_refused(tokenizer):
    for other in (None, SimpleNamespace(is_fast=False)):
        with pytest.raises(UserError, match="needs a fast tokenizer"):
            task_of(other).batch("mask", 0, size=4, seed=0)


def test_evaluation_order_is_fixed_and_long_sentences_stand_together(tokenizer):
    task = task_of(tokenizer, MIXED * 8)
    batches = list(task.evaluation_batches("heldout", size=6))
    lengths = [b["attention_mask"].sum(1).tolist() for b in batches]
    assert all(max(found) - min(found) <= 1 for found in lengths)
    documents = sorted(d for b in batches for d in b["cluster"].tolist())
    assert documents == sorted(range(len(MIXED) * 8))
    assert shuffled(8, "evaluation", "heldout") != list(range(8))


def test_wikigold_is_read_split_and_scored_by_document():
    folder = os.environ.get("CIRCUITCUT_DATA")
    if not folder:
        pytest.skip("CIRCUITCUT_DATA is not set")
    path = Path(folder) / "wikigold" / "wikigold.conll.txt"
    corpus = LocationsTask.read(TaskOptions(data=str(path)))
    assert corpus.concept_types == ("LOC",)
    sizes = {split: len(found) for split, found in corpus.splits.items()}
    assert sizes == {
        "base": 1034,
        "mask": 611,
        "tune": 319,
        "relearn": 423,
        "heldout": 343,
    }
    assert 0 < sum(corpus.unseen("heldout")) < sizes["heldout"]
    with pytest.raises(UserError, match=r"found: LOC .*MISC .*ORG .*PER"):
        LocationsTask.read(TaskOptions(data=str(path), concept="GPE"))
