"""Groups of like length: by hand, and against every possible grouping."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import circuitcut.tasks.evaluation as evaluation_module
import circuitcut.tasks.lengths as lengths_module
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.tasks.base import TaskOptions
from circuitcut.tasks.evaluation import Evaluation, evaluate
from circuitcut.tasks.lengths import PASS, by_length
from circuitcut.tasks.toxicity import ToxicityTask


def batch_of(lengths: list[int]) -> dict[str, torch.Tensor]:
    places = torch.arange(max(lengths))
    mask = (places < torch.tensor(lengths)[:, None]).long()
    return {"attention_mask": mask, "concept": mask.bool()}


def cost(lengths: list[int], groups: list[list[int]]) -> int:
    return sum(PASS + len(g) * max(lengths[i] for i in g) for g in groups)


def test_one_long_text_among_short_ones_runs_alone():
    first, second = by_length(batch_of([15, 12, 512, 14]))
    assert first.tolist() == [False, False, True, False]
    assert second.tolist() == [True, True, False, True]


@pytest.mark.parametrize("lengths", [[20] * 16, [20, 12, 15, 8] * 4, [7], [300, 290]])
def test_padding_that_costs_less_than_a_pass_stays(lengths: list[int]):
    (rows,) = by_length(batch_of(lengths))
    assert rows.all()


def test_images_and_texts_without_a_mask_are_one_group():
    (rows,) = by_length({"concept": torch.ones(600, dtype=torch.bool)})
    assert rows.shape == (600,)
    assert rows.all()


@given(st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_no_grouping_costs_less(lengths: list[int]):
    groups = [
        rows.nonzero().flatten().tolist() for rows in by_length(batch_of(lengths))
    ]
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    n = len(lengths)
    possible = [
        [order[a:b] for a, b in pairwise((0, *ends, n))]
        for size in range(n)
        for ends in combinations(range(1, n), size)
    ]
    assert cost(lengths, groups) == min(cost(lengths, other) for other in possible)


@pytest.fixture(scope="module")
def toxicity() -> tuple[ToxicityTask, GPT2LMHeadModel]:
    """Texts of many lengths and a random decoder."""
    corpus = ToxicityTask.read(TaskOptions())
    texts = [record.text for record in corpus.records["base"]]
    tokenizer = train_tokenizer(
        texts, "word", is_decoder=True, vocab_size=1200, max_length=64
    )
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape))
    return ToxicityTask(corpus, tokenizer, TaskOptions()), model


def check_same(found: Evaluation, whole: Evaluation) -> None:
    """Scores and counts of every example, each at its place."""
    assert found.scores == pytest.approx(whole.scores, nan_ok=True)
    assert torch.equal(found.clusters, whole.clusters)
    assert torch.equal(found.unseen, whole.unseen)
    assert len(whole.counts["toxic_nats"].unique()) > 20
    for name, values in whole.counts.items():
        torch.testing.assert_close(found.counts[name], values, rtol=1e-5, atol=1e-5)


def test_scores_and_their_order_are_those_of_whole_batches(
    toxicity: tuple[ToxicityTask, GPT2LMHeadModel], monkeypatch: pytest.MonkeyPatch
):
    task, model = toxicity
    found, n_passes = [], []
    for cost in (10**9, 1):
        monkeypatch.setattr(lengths_module, "PASS", cost)
        batches = task.evaluation_batches("heldout", size=16)
        n_passes.append(sum(len(by_length(batch)) for batch in batches))
        found.append(evaluate(task, model, "heldout", size=16))
    whole, grouped = found
    assert n_passes[1] > 2 * n_passes[0]
    check_same(grouped, whole)


def test_a_pass_has_no_more_logits_than_memory_is_meant_for(
    toxicity: tuple[ToxicityTask, GPT2LMHeadModel], monkeypatch: pytest.MonkeyPatch
):
    task, model = toxicity
    whole = evaluate(task, model, "heldout", size=64)
    seen = []
    hook = model.lm_head.register_forward_hook(lambda *args: seen.append(args[2].shape))
    most = 100 * model.config.vocab_size
    monkeypatch.setattr(evaluation_module, "_LOGITS_AT_ONCE", most)
    found = evaluate(task, model, "heldout", size=64)
    hook.remove()
    positions = [shape[:-1].numel() for shape in seen]
    assert len(positions) > 10
    # parts have as many examples, not as many positions
    assert max(positions) <= 1.5 * 100
    check_same(found, whole)
