"""The toxicity task: positions, scores by hand, sampling with planted models."""

import math
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from circuitcut.data.text.records import TEXT_KINDS, TextCorpus, TextRecord
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET, TaskOptions
from circuitcut.tasks.toxicity import ToxicityTask
from circuitcut.tasks.toxicity_classifier import classifier_scores, fit_classifier
from circuitcut.tasks.toxicity_sampling import (
    TOP_P,
    nucleus_choice,
    sample_continuations,
)

SPLITS = ("base", "mask", "tune", "relearn", "heldout")


def small_corpus() -> TextCorpus:
    """Toxic texts say `bad` and neutral ones `good`; every other word is shared."""
    records = {}
    for split in SPLITS:
        rows = []
        for i in range(12):
            tail = " ".join(f"w{(i * j) % 7}" for j in range(1, 4 + i % 5))
            rows.append(TextRecord(f"you {split} bad bad {tail}", "toxic"))
            rows.append(TextRecord(f"you {split} good good {tail}", "neutral"))
            rows.append(TextRecord(f"the {split} town {tail}", "wiki"))
        records[split] = tuple(rows)
    return TextCorpus(records)


@pytest.fixture(scope="module")
def corpus() -> TextCorpus:
    return small_corpus()


@pytest.fixture(scope="module")
def tokenizer(corpus: TextCorpus) -> Any:
    texts = [record.text for rows in corpus.records.values() for record in rows]
    return train_tokenizer(
        texts, "word", is_decoder=True, vocab_size=200, max_length=64
    )


@pytest.fixture(scope="module")
def task(corpus: TextCorpus, tokenizer: Any) -> ToxicityTask:
    return ToxicityTask(corpus, tokenizer, TaskOptions())


class Writing(nn.Module):
    """Always sure of the same token, as sure as `logit` makes it."""

    def __init__(self, vocabulary: int, token: int, logit: float = 50.0):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.bias.data[token] = logit

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.bias.expand(*input_ids.shape, -1))


class Bigrams(nn.Module):
    """Random logits that depend on the last token only."""

    def __init__(self, vocabulary: int):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(
            2 * torch.randn(vocabulary, vocabulary, generator=rng)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def scores(task: ToxicityTask, model: nn.Module, size: int = 16) -> dict[str, float]:
    parts = [
        task.counts(model, b) for b in task.evaluation_batches("heldout", size=size)
    ]
    return task.summarise({k: torch.cat([part[k] for part in parts]) for k in parts[0]})


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_sampled_frequencies_are_the_renormalised_nucleus(seed: int):
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(1, 12, generator=rng)
    n = 4_000
    noise = (torch.arange(n) + 0.5) / n  # every quantile once: exact up to 1 / n
    drawn = nucleus_choice(logits.expand(n, -1), noise)
    found = torch.bincount(drawn, minlength=12) / n
    probs, order = logits[0].softmax(-1).sort(descending=True)
    n_kept = int((probs.cumsum(0) - probs < TOP_P).sum())
    wanted = torch.zeros(12)
    wanted[order[:n_kept]] = probs[:n_kept] / probs[:n_kept].sum()
    torch.testing.assert_close(found, wanted, atol=2 / n, rtol=0)


def test_a_uniform_model_scores_the_logarithm_of_the_vocabulary(
    task: ToxicityTask, tokenizer: Any
):
    found = scores(task, Writing(len(tokenizer), 0, logit=0.0))
    for name in ("toxic_nll", "neutral_nll", "wiki_nll", "retain_nll"):
        assert found[name] == pytest.approx(math.log(len(tokenizer)))


def test_scores_do_not_depend_on_the_batch_size(task: ToxicityTask, tokenizer: Any):
    model = Bigrams(len(tokenizer))
    assert scores(task, model, 5) == pytest.approx(scores(task, model, 100))


def test_toxic_tokens_are_the_concept_and_all_others_are_retained(task: ToxicityTask):
    for batch in task.evaluation_batches("heldout", size=10):
        has_next = batch["attention_mask"].roll(-1, dims=1).bool()
        has_next[:, -1] = False
        toxic = (batch["kind"] == TEXT_KINDS.index("toxic"))[:, None]
        assert torch.equal(batch["concept"], has_next & toxic)
        assert torch.equal(batch["retain"], has_next & ~toxic)


def test_the_end_of_a_text_is_trained_but_not_scored(
    task: ToxicityTask, tokenizer: Any
):
    batch = task.finetune_batch("base", 0, size=8, seed=0)
    is_end = batch["targets"] == tokenizer.eos_token_id
    assert is_end.sum() == 8
    assert not (is_end & (batch["concept"] | batch["retain"])).any()


def test_long_texts_are_cut_and_then_do_not_end(corpus: TextCorpus, tokenizer: Any):
    task = ToxicityTask(corpus, tokenizer, TaskOptions(max_length=5))
    batch = next(task.evaluation_batches("heldout", size=36))
    assert batch["input_ids"].shape[1] == 5
    assert not (batch["targets"] == tokenizer.eos_token_id).any()
    assert (batch["targets"] != NO_TARGET).sum() == 36 * 5


def test_marked_spans_alone_are_the_concept(tokenizer: Any):
    text = "you mask bad bad w0"
    record = TextRecord(text, "toxic", ((9, 12),))
    other = TextRecord("you mask good", "neutral")
    corpus = TextCorpus(dict.fromkeys(SPLITS, (record, other)))
    batch = next(
        ToxicityTask(corpus, tokenizer, TaskOptions()).evaluation_batches(
            "mask", size=2
        )
    )
    words = tokenizer.convert_ids_to_tokens(batch["targets"][batch["concept"]].tolist())
    assert words == ["bad"]
    assert batch["concept"][0].nonzero()[:, 0].tolist() == [2]
    assert not batch["retain"][0].any()


@pytest.mark.parametrize(("size", "counts"), [(8, [3, 4, 1]), (17, [6, 8, 3])])
def test_mask_batches_hold_the_kinds_in_their_shares(
    task: ToxicityTask, size: int, counts: list[int]
):
    batch = task.batch("mask", 0, size=size, seed=0)
    assert torch.bincount(batch["kind"]).tolist() == counts


def test_batches_are_a_function_of_step_and_seed(task: ToxicityTask):
    for draw in (task.batch, task.finetune_batch):
        one, two = (draw("mask", 3, size=8, seed=1) for _ in range(2))
        other = draw("mask", 3, size=8, seed=2)
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert not torch.equal(one["cluster"], other["cluster"])


def test_a_limit_leaves_that_many_toxic_texts(task: ToxicityTask):
    drawn = [
        task.finetune_batch("relearn", s, size=2, seed=0, limit=4) for s in range(4)
    ]
    assert len({int(c) for batch in drawn for c in batch["cluster"]}) == 4
    assert all((batch["kind"] == 0).all() for batch in drawn)


def test_the_classifier_finds_the_planted_word():
    toxic, other = ["so bad w1", "bad bad"] * 5, ["so good w1", "good"] * 5
    scorer = fit_classifier(toxic, other)
    assert scorer(["bad w1", "good w1"]).tolist() == [True, False]
    assert classifier_scores(scorer, ["bad", "good", "bad"], ["good"]) == {
        "classifier_accuracy": 3 / 4,
        "classifier_balanced_accuracy": pytest.approx((2 / 3 + 1) / 2),
    }


def test_a_model_that_writes_toxic_words_is_told_from_one_that_does_not(
    task: ToxicityTask, tokenizer: Any
):
    n = len(tokenizer)
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in ("bad", "good")}
    for word, share in (("bad", 1.0), ("good", 0.0)):
        found = task.sampled_scores(Writing(n, ids[word]), nullcontext, seed=0)
        assert found["toxic_share"] == share
        assert found["continuation_perplexity"] == pytest.approx(1.0)
        assert found["classifier_accuracy"] == 1.0


def test_so_many_prompts_are_sampled_half_of_them_toxic(
    corpus: TextCorpus, tokenizer: Any
):
    task = ToxicityTask(corpus, tokenizer, TaskOptions(n_prompts=5))
    model = Writing(len(tokenizer), tokenizer.convert_tokens_to_ids("good"))
    assert task.sampled_scores(model, nullcontext, seed=0)["n_prompts"] == 5
    first = {tokenizer.decode(prompt[:4]) for prompt in task._prompts()[:3]}
    assert all("bad" in text for text in first)


def test_the_cut_writes_and_the_uncut_model_judges_fluency(
    task: ToxicityTask, tokenizer: Any
):
    model = Writing(len(tokenizer), tokenizer.convert_tokens_to_ids("good"), 0.0)
    bad = tokenizer.convert_tokens_to_ids("bad")

    @contextmanager
    def cut():
        model.bias.data[bad] = 50.0
        yield
        model.bias.data[bad] = 0.0

    found = task.sampled_scores(model, cut, seed=0)
    assert found["toxic_share"] == 1.0
    assert found["continuation_perplexity"] == pytest.approx(len(tokenizer), rel=1e-4)
    again = task.sampled_scores(model, cut, seed=0)
    assert again == found


def test_what_follows_a_prompt_does_not_depend_on_its_batch(tokenizer: Any):
    model = Bigrams(len(tokenizer))
    prompts = [[7, 8], [9, 10], [7, 8, 9], [11]]
    settings = {"end_id": tokenizer.eos_token_id, "banned_ids": [0, 1], "seed": 3}
    together = sample_continuations(model, prompts, **settings)
    assert [row.prompt for row in together] == prompts
    alone = sample_continuations(model, prompts[:1], **settings)
    assert alone[0] == together[0]
    for row in together:
        assert 1 <= len(row.new) <= 20
        assert not {0, 1, tokenizer.eos_token_id} & set(row.new)


def test_detoxify_is_asked_for_by_name(
    corpus: TextCorpus, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    task = ToxicityTask(corpus, tokenizer, TaskOptions(toxicity_scorer="detoxify"))
    model = Writing(len(tokenizer), tokenizer.convert_tokens_to_ids("good"))
    monkeypatch.setitem(sys.modules, "detoxify", None)
    with pytest.raises(UserError, match="needs the package detoxify"):
        task.sampled_scores(model, nullcontext, seed=0)

    class Detoxify:
        def __init__(self, name: str):
            assert name == "original"

        def predict(self, texts: list[str]) -> dict[str, list[float]]:
            return {"toxicity": [float("good" in text) for text in texts]}

    monkeypatch.setitem(sys.modules, "detoxify", SimpleNamespace(Detoxify=Detoxify))
    assert task.sampled_scores(model, nullcontext, seed=0)["toxic_share"] == 1.0
    assert isinstance(task._scorer(["good"]), np.ndarray)


def test_further_text_joins_every_split_of_the_built_in_texts(tmp_path: Path):
    path = tmp_path / "wiki.txt"
    path.write_text("\n".join(f"Page {i} tells of hill {i % 5} ." for i in range(60)))
    corpus = ToxicityTask.read(TaskOptions(retain_data=str(path)))
    built_in = ToxicityTask.read(TaskOptions())
    added = [
        record.text
        for split, records in corpus.records.items()
        for record in records[len(built_in.records[split]) :]
    ]
    assert len(added) == len(set(added)) == 60
    assert all(
        len(records) > len(built_in.records[split])
        for split, records in corpus.records.items()
    )
