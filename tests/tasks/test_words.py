"""Words as a decoder predicts them: which positions, which pieces, which scores."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitcut.attribution.words.states import WordSource, word_states
from circuitcut.models.architectures import sites_of
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET, TaskOptions
from circuitcut.tasks.words import WordsTask
from tests.models.tiny import tiny_model

SENTENCES = [
    "Ann left Berlin .",
    "we saw Rome and Oslo",
    "the garden was green",
    "Bob likes tea",
] * 10
PLACES = {"Berlin", "Rome", "Oslo"}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TaskOptions:
    path = tmp_path_factory.mktemp("words") / "corpus.conll"
    lines = [
        "".join(f"{w} {'B-LOC' if w in PLACES else 'O'}\n" for w in s.split())
        for s in SENTENCES
    ]
    path.write_text("\n".join(lines))
    return TaskOptions(data=str(path), max_length=32)


def task_of(options: TaskOptions, kind: str = "word") -> WordsTask:
    corpus = WordsTask.read(options)
    tokenizer = train_tokenizer(
        corpus.texts(), kind, is_decoder=True, vocab_size=300, max_length=32
    )
    return WordsTask(corpus, tokenizer, options)


def shown(task: WordsTask, ids: Tensor) -> list[str]:
    return [task._tokenizer.decode(i).strip() for i in ids.tolist()]


def test_the_concept_is_predicted_before_its_words_and_read_at_them(options):
    task = task_of(options)
    n_seen = 0
    for batch in task.evaluation_batches("heldout", size=3):
        for row in range(len(batch["input_ids"])):
            ids, targets = batch["input_ids"][row], batch["targets"][row]
            predicted = set(shown(task, targets[batch["concept"][row]]))
            read = set(shown(task, ids[batch["word_concept"][row]]))
            assert predicted == read <= PLACES
            n_seen += len(read)
            others = shown(task, targets[batch["retain"][row]])
            assert not PLACES & set(others)
            has_target = targets[:-1] != NO_TARGET
            assert torch.equal(targets[:-1][has_target], ids[1:][has_target])
            words = batch["word"][row][batch["word_piece"][row]].tolist()
            assert words == list(range(len(words)))
    assert n_seen > 0


def test_every_piece_of_a_concepts_word_is_a_target_of_the_concept(options):
    task = task_of(options, "bpe")
    batch = next(iter(task.evaluation_batches("base", size=200)))
    for ids, targets, concept in zip(
        batch["input_ids"], batch["targets"], batch["concept"], strict=True
    ):
        text = task._tokenizer.decode(targets[concept])
        sentence = task._tokenizer.decode(ids, skip_special_tokens=True)
        assert text.split() == [word for word in sentence.split() if word in PLACES]


class Fixed(nn.Module):
    """The same probabilities of the next token after every token."""

    def __init__(self, probabilities: Tensor):
        super().__init__()
        self.logits = nn.Parameter(probabilities.log())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def test_scores_are_nats_and_hits_per_token_of_each_side(options):
    task = task_of(options)
    n = len(task._tokenizer)
    rome = task._tokenizer.convert_tokens_to_ids("Rome")
    probabilities = torch.full((n,), 0.5 / (n - 1))
    probabilities[rome] = 0.5
    totals: dict[str, list[Tensor]] = {}
    n_of: dict[str, int] = {"Rome": 0, "place": 0}
    for batch in task.evaluation_batches("base", size=4):
        for name, values in task.counts(Fixed(probabilities), batch).items():
            totals.setdefault(name, []).append(values)
        said = shown(task, batch["targets"][batch["concept"]])
        n_of["Rome"] += said.count("Rome")
        n_of["place"] += len(said)
    scores = task.summarise({name: torch.cat(parts) for name, parts in totals.items()})
    other = -math.log(0.5 / (n - 1))
    share = n_of["Rome"] / n_of["place"]
    assert 0 < share < 1
    expected = share * math.log(2) + (1 - share) * other
    assert scores["concept_nll"] == pytest.approx(expected, rel=1e-5)
    assert scores["concept_accuracy"] == pytest.approx(share)
    assert scores["retain_nll"] == pytest.approx(other, rel=1e-5)
    assert scores["retain_accuracy"] == 0.0
    assert task.concept_metric.chance == pytest.approx(math.log(n))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_state_of_a_word_is_labelled_by_that_word_and_not_by_the_next(
    kind: str, options: TaskOptions
):
    task = task_of(options)
    model = tiny_model(kind, "causal_lm")
    sites = sites_of(model, ["hidden"])
    texts = task.words_of("mask")
    n_concept = 0
    for words, states in word_states(WordSource(task, "mask"), model, sites):
        assert states.shape == (len(words.labels), sum(s.n_units for s in sites))
        for example, number, is_concept in zip(
            words.examples.tolist(),
            words.numbers.tolist(),
            words.is_concept.tolist(),
            strict=True,
        ):
            assert is_concept == (texts[example][number] in PLACES)
            n_concept += is_concept
    assert n_concept == sum(word in PLACES for text in texts for word in text)


def test_a_list_of_words_is_the_concept_of_plain_text(tmp_path: Path):
    data, listed = tmp_path / "text.txt", tmp_path / "places.txt"
    data.write_text("\n".join(SENTENCES))
    listed.write_text("\n".join(PLACES))
    options = TaskOptions(
        data=str(data), data_format="text", concept_words=listed, max_length=32
    )
    task = task_of(options)
    assert task.concept == "places"
    assert task.concept_metric.label == "loss on places words"
    batch = task.batch("mask", 0, size=8, seed=0)
    assert set(shown(task, batch["targets"][batch["concept"]])) <= PLACES
    both = TaskOptions(data=str(data), concept="LOC", concept_words=listed)
    with pytest.raises(UserError, match="both name the concept"):
        WordsTask.read(both)
    of_run = replace(options, concept="places")  # as a run of such a list keeps it
    same = [WordsTask.read(o).fingerprint() for o in (options, of_run)]
    assert same[0] == same[1]
    listed.write_text("\n".join({word for line in SENTENCES for word in line.split()}))
    with pytest.raises(UserError, match="none is left to retain"):
        WordsTask.read(options)
