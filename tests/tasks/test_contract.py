"""What every task promises, whatever it is about: run over the `TASKS` dict."""

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import (
    NO_TARGET,
    Batch,
    Corpus,
    Task,
    TaskOptions,
    can_have_pairs,
)
from circuitcut.tasks.evaluation import evaluate
from circuitcut.tasks.registry import TASKS
from circuitcut.tasks.settings.registry import DEFAULTS

CUT_SPLITS = ("mask", "tune", "relearn", "heldout")
PER_EXAMPLE = ("cluster", "unseen")
PER_POSITION = ("targets", "concept", "retain", "weights", "real")
OPTIONS = TaskOptions(max_length=64)

MASKED = " of an encoder"
ENTRIES = sorted(TASKS) + [
    f"{name}{MASKED}" for name, task in TASKS.items() if task.head == "language_model"
]
"""Language models of both kinds do the same task on other rows."""

each_task = pytest.mark.parametrize("name", ENTRIES)
each_source = pytest.mark.parametrize(
    "draw", ["batch", "finetune_batch", "retain_batch"]
)


class Guesser(nn.Module):
    """Random logits that depend on one position alone."""

    def __init__(self, n_inputs: int, n_classes: int):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(torch.randn(n_inputs, 8, generator=rng))
        self.outer = nn.Parameter(torch.randn(8, n_classes, generator=rng))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> Any:
        inner = self.inner[input_ids] if pixels is None else pixels @ self.inner
        return SimpleNamespace(logits=inner @ self.outer)


@dataclass(frozen=True)
class Subject:
    corpus: Corpus
    task: Task
    again: Task
    """The same task made anew."""
    model: nn.Module


@cache
def subject(name: str) -> Subject:
    task_class = TASKS[name.removesuffix(MASKED)]
    options = replace(OPTIONS, masked_lm=name.endswith(MASKED))
    corpus = task_class.read(options)
    tokenizer = None
    if texts := every_text(corpus):
        of_decoders = ("causal_lm", "language_model")
        is_decoder = task_class.head in of_decoders and not options.masked_lm
        tokenizer = train_tokenizer(
            texts, "word", is_decoder=is_decoder, vocab_size=20_000, max_length=64
        )
    task = task_class(corpus, tokenizer, options)
    batch = task.batch("tune", 0, size=8, seed=0)
    n_inputs = batch["pixels"].shape[1] if tokenizer is None else len(tokenizer)
    n_classes = len(corpus.labels) if corpus.labels else n_inputs
    return Subject(
        corpus,
        task,
        task_class(corpus, tokenizer, options),
        Guesser(n_inputs, n_classes),
    )


def every_text(corpus: Any) -> list[str]:
    """Texts of all splits, so that no word is unknown and inputs tell examples apart.

    Of `base`, which takes no part here, only the beginning.
    """
    records = getattr(corpus, "records", None) or getattr(corpus, "splits", {})
    if not records:
        return corpus.texts()
    found = [r for split in CUT_SPLITS for r in records.get(split, ())]
    if found and hasattr(found[0], "words"):
        return corpus.texts()[:1000] + [" ".join(record.words) for record in found]
    return corpus.texts()[:1000] + [record.text for record in found]


def same(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one
    )


def inputs_of(batch: Batch) -> list[tuple]:
    """The model's input of every example, padding left out."""
    if "pixels" in batch:
        return [tuple(row.tolist()) for row in batch["pixels"]]
    kept = batch["attention_mask"].bool()
    rows = zip(batch["input_ids"], kept, strict=True)
    return [tuple(ids[keep].tolist()) for ids, keep in rows]


def holds_concept(batch: Batch) -> Tensor:
    return batch["concept"].reshape(len(batch["cluster"]), -1).any(1)


@each_source
@each_task
def test_a_batch_depends_on_split_step_and_seed_alone(name: str, draw: str):
    first = getattr(subject(name).task, draw)
    later = getattr(subject(name).again, draw)
    later("relearn", 3, size=8, seed=2)
    batch = first("relearn", 7, size=8, seed=1)
    assert same(batch, later("relearn", 7, size=8, seed=1))
    assert not same(batch, first("relearn", 8, size=8, seed=1))
    assert not same(batch, first("relearn", 7, size=8, seed=2))
    assert not same(batch, first("mask", 7, size=8, seed=1))


@each_task
def test_an_epoch_of_retain_batches_is_every_example_without_the_concept(name: str):
    task = subject(name).task
    expected, found = set(), []
    for batch in task.evaluation_batches("tune", size=64):
        kept = ~holds_concept(batch)
        rows = inputs_of(batch)
        expected |= {row for row, keep in zip(rows, kept, strict=True) if keep}
    while len(found) < task.n_examples("tune") and not expected <= set(found):
        step = len(found) // 8
        batch = task.retain_batch("tune", step, size=8, seed=0)
        assert not holds_concept(batch).any()
        found += inputs_of(batch)
    assert set(found) == expected


@each_source
@each_task
def test_batches_have_the_promised_keys_shapes_and_types(name: str, draw: str):
    batch = getattr(subject(name).task, draw)("mask", 0, size=8, seed=0)
    is_image = "pixels" in batch
    shape = batch["targets"].shape
    assert shape[0] == 8
    assert len(shape) == (1 if is_image else 2)
    assert {batch[key].shape for key in PER_POSITION} == {shape}
    assert {batch[key].shape for key in PER_EXAMPLE} == {shape[:1]}
    if not is_image:
        assert batch["input_ids"].shape == batch["attention_mask"].shape == shape
    for key in ("concept", "retain", "real", "unseen"):
        assert batch[key].dtype == torch.bool
    assert batch["targets"].dtype == batch["cluster"].dtype == torch.long
    assert batch["weights"].dtype == torch.float32


@each_source
@each_task
def test_concept_and_retain_are_disjoint_and_stand_only_at_targets(name, draw):
    for split in CUT_SPLITS:
        batch = getattr(subject(name).task, draw)(split, 1, size=16, seed=0)
        counted = batch["concept"] | batch["retain"]
        assert not (batch["concept"] & batch["retain"]).any()
        assert (batch["targets"][counted] != NO_TARGET).all()
        assert (batch["weights"][counted] > 0).all()
        if "attention_mask" in batch:
            assert not (batch["real"] & (batch["attention_mask"] == 0)).any()


@each_task
def test_a_mask_batch_holds_both_behaviours(name: str):
    for step in range(3):
        batch = subject(name).task.batch("mask", step, size=16, seed=0)
        assert batch["concept"].any()
        assert batch["retain"].any()


@each_task
def test_every_example_is_evaluated_once(name: str):
    task = subject(name).task
    for split in CUT_SPLITS:
        batches = list(task.evaluation_batches(split, size=50))
        assert sum(len(b["cluster"]) for b in batches) == task.n_examples(split)
        again = task.evaluation_batches(split, size=50)
        assert all(same(*pair) for pair in zip(batches, again, strict=True))


@each_task
def test_scores_do_not_depend_on_the_batch_size(name: str):
    task, model = subject(name).task, subject(name).model
    small = evaluate(task, model, "tune", size=7)
    large = evaluate(task, model, "tune", size=64)
    assert small.n_examples == large.n_examples == task.n_examples("tune")
    assert small.scores == pytest.approx(large.scores, rel=1e-5, nan_ok=True)
    assert small.unseen_scores == pytest.approx(
        large.unseen_scores, rel=1e-5, nan_ok=True
    )


@each_task
def test_counts_are_one_number_an_example_and_scores_hold_both_metrics(name: str):
    task, model = subject(name).task, subject(name).model
    batch = task.batch("tune", 0, size=8, seed=0)
    counts = task.counts(model, batch)
    assert {value.shape for value in counts.values()} == {(8,)}
    scores = task.summarise({key: value.sum() for key, value in counts.items()})
    assert all(isinstance(score, float) for score in scores.values())
    for metric in (task.concept_metric, task.retain_metric):
        assert metric.name in scores


@each_task
def test_the_cut_splits_share_no_example_of_the_concept(name: str):
    seen: dict[tuple, str] = {}
    for split in CUT_SPLITS:
        for batch in subject(name).task.evaluation_batches(split, size=64):
            rows = zip(inputs_of(batch), holds_concept(batch), strict=True)
            for row in (row for row, holds in rows if holds):
                assert seen.setdefault(row, split) == split


@each_task
def test_built_in_held_out_examples_of_the_concept_have_new_entities(name: str):
    for batch in subject(name).task.evaluation_batches("heldout", size=64):
        assert batch["unseen"][holds_concept(batch)].all()


@each_task
def test_predictions_name_the_target_among_the_answers_of_the_concept(name: str):
    task, model = subject(name).task, subject(name).model
    batch = task.batch("mask", 0, size=8, seed=0)
    outputs = task.outputs(model, batch)
    for where, found in (("concept", outputs.concept), ("retain", outputs.retain)):
        n = int(batch[where].sum())
        assert len(found.logits) == len(found.targets) == len(found.weights) == n
        assert torch.equal(found.targets, batch["targets"][batch[where]])
        assert found.concept_classes.shape[0] == n
        assert found.rivals is None or found.rivals.shape[0] == n
    answers = outputs.concept.concept_classes
    assert (answers == outputs.concept.targets[:, None]).any(1).all()


@each_task
def test_a_limit_above_the_examples_of_the_concept_is_refused(name: str):
    with pytest.raises(UserError, match="limit must lie in 1"):
        subject(name).task.finetune_batch("relearn", 0, size=2, seed=0, limit=10**6)


@each_task
def test_a_limit_keeps_to_few_examples_that_all_hold_the_concept(name: str):
    task = subject(name).task
    for limit in (1, 4):
        pool = set()
        for step in range(4):
            batch = task.finetune_batch("relearn", step, size=8, seed=3, limit=limit)
            assert holds_concept(batch).all()
            pool |= set(inputs_of(batch))
        assert len(pool) == limit


@each_task
def test_counterfactual_inputs_keep_the_shape_and_leave_special_tokens(name: str):
    task = subject(name).task
    batch = task.batch("mask", 0, size=8, seed=0)
    if type(task).counterfactual is Task.counterfactual:
        with pytest.raises(UserError, match="no paired counterfactual"):
            task.counterfactual(batch)
        return
    corrupted = task.counterfactual(batch)
    assert corrupted["input_ids"].shape == batch["input_ids"].shape
    changed = corrupted["input_ids"] != batch["input_ids"]
    assert changed.any()
    assert not changed[~batch["real"]].any()


@each_task
def test_the_same_options_read_the_same_data(name: str):
    again = TASKS[name.removesuffix(MASKED)].read(OPTIONS)
    assert again.fingerprint() == subject(name).corpus.fingerprint()


def test_the_defaults_known_before_torch_are_those_of_the_tasks():
    assert {name: task.defaults for name, task in TASKS.items()} == DEFAULTS
    for name, task in TASKS.items():
        assert DEFAULTS[name].has_pairs == can_have_pairs(task), name
