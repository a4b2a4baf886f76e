"""Generation and multiple choice of facts, by hand and against brute force."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitcut.data.facts.records import Fact
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.tasks.base import TaskOptions
from circuitcut.tasks.facts.asked import AskedPrompt, asked_facts
from circuitcut.tasks.facts.rows import CONCEPT
from circuitcut.tasks.facts.spoken import (
    Question,
    chosen,
    log_probabilities,
    produced,
    wrong_objects,
)
from circuitcut.tasks.facts.task import FactsTask
from circuitcut.tasks.rows.continuing import continued
from tests.tasks.facts.rote import Rote
from tests.tasks.test_contract import Guesser

TEXT = "The town of Peru India is New Delhi Lima Limaville a fine ."


def test_greedy_decoding_goes_on_with_the_best_token_up_to_the_end():
    lines = {(2, 5): 7, (2, 5, 7): 8, (2, 5, 7, 8): 3, (2, 6, 6): 9}
    model = Rote(lines, n_tokens=10, otherwise=4)
    prompts = [[2, 5], [2, 6, 6]]
    found = continued(model, prompts, n_tokens=3, end_id=3)
    assert found == [[7, 8], [9, 4, 4]]
    assert continued(model, prompts[:1], n_tokens=3, end_id=None) == [[7, 8, 3]]
    assert continued(model, prompts[:1], n_tokens=1, end_id=3) == [[7]]


def asked(facts: list[Fact], masked: bool = False) -> tuple[Any, list[AskedPrompt]]:
    tokenizer = train_tokenizer(
        [TEXT], "word", is_decoder=not masked, vocab_size=99, max_length=32
    )
    return tokenizer, list(asked_facts(facts, tokenizer, masked=masked).prompts)


def test_an_object_counts_as_produced_if_all_its_words_are_written_in_time():
    facts = [Fact("India", "town", "New Delhi", ("The town of India is",))]
    facts += [Fact("Peru", "town", "Lima", ("The town of Peru is",))]
    tokenizer, prompts = asked(facts)
    words = {
        word: tokenizer.encode(word, add_special_tokens=False)[0]
        for word in TEXT.split()
    }
    lines: dict[tuple[int, ...], int] = {}

    def say(prompt: AskedPrompt, *said: str) -> None:
        ids = prompt.input_ids
        for word in said:
            lines[ids] = words[word]
            ids = (*ids, words[word])

    say(prompts[0], "a", "fine", "New", "Delhi")
    say(prompts[1], "Limaville", "is", ".")
    model = Rote(lines, len(tokenizer), otherwise=words["."])
    names = ["new delhi", "Lima"]  # case is no matter; a longer word is another one
    assert produced(model, prompts, names, tokenizer) == [True, False]
    assert produced(model, prompts, names, tokenizer, n_tokens=3) == [False, False]


@pytest.mark.parametrize("masked", [False, True])
def test_whole_objects_are_compared_by_the_sum_over_their_tokens(masked: bool):
    text = "The town of Peru is [MASK] ." if masked else "The town of Peru is"
    names = ("Lima", "New Delhi", "fine")
    tokenizer, prompts = asked(
        [Fact("Peru", "town", n, (text,)) for n in names], masked
    )
    n = len(tokenizer)
    model = Guesser(n, n).double().requires_grad_(False)
    by_hand = []
    for prompt in prompts:
        ids = torch.tensor([prompt.whole_ids])
        log_p = model(ids).logits[0].log_softmax(-1)
        by_hand.append(
            sum(
                float(log_p[place, token])
                for place, token in zip(
                    prompt.positions, prompt.answer_ids, strict=True
                )
            )
        )
    found = log_probabilities(model, prompts, tokenizer.pad_token_id)
    assert found.tolist() == pytest.approx(by_hand)
    best = max(range(3), key=lambda i: by_hand[i])
    for right in range(3):
        wrong = tuple(p for i, p in enumerate(prompts) if i != right)
        question = Question(prompts[right], wrong)
        assert question.chance == 1 / 3
        assert chosen(model, [question], tokenizer.pad_token_id) == [right == best]
    # of equal ones none is chosen
    same = Question(prompts[0], (prompts[0],))
    assert chosen(model, [same], tokenizer.pad_token_id) == [False]


def test_wrong_objects_are_those_of_the_data_or_drawn_ones_that_are_not_true():
    facts = [Fact(f"Land{i}", "town", f"Town{i}", ("x",)) for i in range(6)]
    facts += [
        Fact("Land0", "town", "Town1", ("x",)),
        Fact("A", "colour", "red", ("x",)),
    ]
    drawn = wrong_objects(facts[0], facts, "seed")
    assert drawn == wrong_objects(facts[0], facts, "seed")
    assert len({*drawn}) == 3
    assert {*drawn} <= {"Town2", "Town3", "Town4", "Town5"}
    named = Fact("Land0", "town", "Town0", ("x",), choices=("Town1", "Oslo", "Oslo"))
    assert wrong_objects(named, [*facts, named], "seed") == ["Oslo"]
    assert wrong_objects(facts[-1], facts, "seed") == []


def test_a_task_scores_both_at_its_held_out_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path / "cache"))
    towns = ("Oslo", "Rome", "Bern")
    rows: list[dict[str, Any]] = [
        {
            "subject": f"Land{i}",
            "relation": "town",
            "object": towns[i % 3],
            "prompts": ["The town of {} is"],
            "choices": "|".join(t for t in towns if t != towns[i % 3]),
            "neighbourhood": [f"The town of Isle{i} is"],
        }
        for i in range(20)
    ]
    rows += [{"retain": f"Text number N{i} ."} for i in range(20)]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = TaskOptions(data=str(path))
    corpus = FactsTask.read(options)
    tokenizer = train_tokenizer(
        corpus.texts(), "word", is_decoder=True, vocab_size=999, max_length=64
    )
    task = FactsTask(corpus, tokenizer, options)
    oslo = tokenizer.encode("Oslo", add_special_tokens=False)[0]
    (batch,) = task.evaluation_batches("heldout", size=999)
    of_concept = batch["kind"] == CONCEPT
    n = int(of_concept.sum())
    n_oslo = int((batch["targets"][batch["concept"]] == oslo).sum())
    assert 0 < n_oslo < n
    # a model that says Oslo of every land is right where it is
    model = Rote({}, len(tokenizer), otherwise=oslo)
    scores = task.sampled_scores(model, nullcontext, seed=0)
    assert scores == {
        "generated": n_oslo / n,
        "near_generated": pytest.approx(scores["near_generated"]),
        "choice_accuracy": n_oslo / n,
        "choice_chance": pytest.approx(1 / 3),
    }
    # each neighbour stands in the split of its fact
    assert scores["near_generated"] == n_oslo / n
