"""The indirect-object task: positions, scores by hand, counterfactuals, splits."""

import math
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitcut.data.ioi.generated import copy_text, plain_texts, prompt, three_names
from circuitcut.data.ioi.records import IoiCorpus, completed
from circuitcut.data.ioi.words import NAMES
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET, Batch, TaskOptions
from circuitcut.tasks.ioi import IoiTask
from circuitcut.tasks.rows.answers import ANSWER_WEIGHT
from circuitcut.tasks.rows.ioi import KINDS
from circuitcut.training.shares import own_share

SPLITS = ("base", "mask", "tune", "relearn", "heldout")
GROUPS = {"mask": NAMES[:40], "tune": NAMES[40:60], "relearn": NAMES[60:80]}


def small_corpus() -> IoiCorpus:
    rng = random.Random(0)
    groups = GROUPS | {"base": NAMES[:80], "heldout": NAMES[80:]}
    records = {}
    for split in SPLITS:
        rows = [prompt(rng, groups[split]) for _ in range(30)]
        rows += [three_names(rng, groups[split]), *plain_texts(rng, 12)]
        records[split] = (*rows, *(copy_text(rng, NAMES) for _ in range(40)))
    return IoiCorpus(records, frozenset(groups["heldout"]))


@pytest.fixture(scope="module")
def corpus() -> IoiCorpus:
    return small_corpus()


@pytest.fixture(scope="module", params=["word", "bpe"])
def tokenizer(request: pytest.FixtureRequest, corpus: IoiCorpus) -> Any:
    texts = [completed(r) for rows in corpus.records.values() for r in rows]
    return train_tokenizer(
        texts, request.param, is_decoder=True, vocab_size=1200, max_length=64
    )


@pytest.fixture(scope="module")
def task(corpus: IoiCorpus, tokenizer: Any) -> IoiTask:
    return IoiTask(corpus, tokenizer, TaskOptions())


class Counting(nn.Module):
    """Logit of a token: a function of how often the text has had it up to here."""

    def __init__(self, vocabulary: int, score: Any):
        super().__init__()
        self.vocabulary, self.score = vocabulary, score

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        seen = (
            nn.functional.one_hot(input_ids, self.vocabulary)
            * attention_mask[..., None]
        )
        return SimpleNamespace(logits=self.score(seen.cumsum(1).float()))


def scores(task: IoiTask, model: nn.Module, *, size: int = 16) -> dict[str, float]:
    parts = [
        task.counts(model, b) for b in task.evaluation_batches("heldout", size=size)
    ]
    return task.summarise({k: torch.cat([part[k] for part in parts]) for k in parts[0]})


def of_kind(batch: Batch, kind: str) -> Tensor:
    return batch["kind"] == KINDS.index(kind)


def test_a_uniform_model_scores_the_closed_form(task: IoiTask, tokenizer: Any):
    n = len(tokenizer)
    found = scores(task, Counting(n, torch.zeros_like))
    assert found["p_io"] == pytest.approx(1 / n)
    assert (found["accuracy"], found["logit_difference"]) == (0, 0)
    for name in ("retain_nll", "template_nll", "copy_nll"):
        assert found[name] == pytest.approx(math.log(n), rel=1e-5)


def test_preferring_names_met_once_is_right_and_names_met_twice_is_wrong(
    task: IoiTask, tokenizer: Any
):
    once = scores(task, Counting(len(tokenizer), lambda n: 3 * (n == 1).float()))
    often = scores(task, Counting(len(tokenizer), lambda n: 3 * n))
    assert (once["accuracy"], once["logit_difference"]) == (1, 3)
    assert (often["accuracy"], often["logit_difference"]) == (0, -3)


def test_an_answer_counts_as_several_tokens_in_training(task: IoiTask, tokenizer: Any):
    batch = task.finetune_batch("base", 0, size=16, seed=0)
    model = Counting(len(tokenizer), lambda times: torch.where(times > 0, 1.0, 0.0))
    logits = model(**task.inputs(batch)).logits
    where = batch["targets"] != NO_TARGET
    times = (1 + (int(ANSWER_WEIGHT) - 1) * batch["concept"].long())[where]
    expected = nn.functional.cross_entropy(
        logits[where].repeat_interleave(times, 0),
        batch["targets"][where].repeat_interleave(times),
    )
    torch.testing.assert_close(task.finetune_loss(model, batch), expected)


@pytest.mark.parametrize("n", [2, 3])
def test_processes_together_have_the_training_loss_of_one(
    n: int, task: IoiTask, tokenizer: Any
):
    batch = task.finetune_batch("base", 0, size=16, seed=0)
    model = Counting(len(tokenizer), lambda times: torch.where(times > 0, 1.0, 0.0))
    weights = task.target_weights(batch)
    parts = [own_share(batch, weights, index, n) for index in range(n)]
    together = sum(weight * task.finetune_loss(model, part) for part, weight in parts)
    torch.testing.assert_close(together / n, task.finetune_loss(model, batch))


def test_scores_do_not_depend_on_the_batch_size(task: IoiTask, tokenizer: Any):
    model = Counting(len(tokenizer), lambda n: n)
    assert scores(task, model, size=11) == pytest.approx(scores(task, model, size=100))


def test_positions_point_at_the_names(task: IoiTask, tokenizer: Any):
    for batch in task.evaluation_batches("heldout", size=7):
        for i in of_kind(batch, "ioi").nonzero()[:, 0].tolist():
            ids = batch["input_ids"][i]
            io, s1, s2, end = (
                int(batch[f"{name}_position"][i]) for name in ("io", "s1", "s2", "end")
            )
            assert ids[io] == batch["io_id"][i]
            assert ids[s1] == ids[s2] == batch["s_id"][i]
            assert s1 < s2 < end
            assert end == batch["attention_mask"][i].sum() - 1
            assert tokenizer.decode(ids[io]).strip() in NAMES[80:]
        for name in ("io", "s1", "s2", "end"):
            assert (batch[f"{name}_position"][~of_kind(batch, "ioi")] == -1).all()


def test_the_concept_is_the_answer_at_the_end_and_nothing_else(task: IoiTask):
    for batch in task.evaluation_batches("heldout", size=9):
        rows, ends = batch["concept"].nonzero(as_tuple=True)
        assert rows.tolist() == of_kind(batch, "ioi").nonzero()[:, 0].tolist()
        assert (ends == batch["end_position"][rows]).all()
        assert (batch["targets"][batch["concept"]] == batch["io_id"][rows]).all()
        if len(rows):
            rivals = task.rivals(batch, batch["concept"])
            assert (rivals[:, 0] == batch["s_id"][rows]).all()
        assert task.rivals(batch, batch["retain"]) is None


def test_retained_are_plain_texts_whole_and_prompts_without_their_names(
    task: IoiTask, tokenizer: Any
):
    names = set(task.name_ids.values())
    for batch in task.evaluation_batches("heldout", size=9):
        has_target = batch["targets"] != NO_TARGET
        is_name = torch.isin(batch["targets"], torch.tensor(sorted(names)))
        prompts, plain = of_kind(batch, "ioi"), of_kind(batch, "text")
        assert (batch["retain"][plain] == has_target[plain]).all()
        assert (batch["retain"][prompts] == (has_target & ~is_name)[prompts]).all()
        assert not batch["retain"][~prompts & ~plain].any()


def test_names_are_targets_only_when_they_are_repeated(task: IoiTask):
    names = torch.tensor(sorted(task.name_ids.values()))
    for batch in task.evaluation_batches("base", size=20):
        for ids, targets in zip(batch["input_ids"], batch["targets"], strict=True):
            for t in torch.isin(targets, names).nonzero()[:, 0].tolist():
                assert targets[t] in ids[: t + 1]
            new = [t for t, i in enumerate(ids) if i in names and i not in ids[:t]]
            assert all(targets[t - 1] == NO_TARGET for t in new)


def test_counterfactual_prompts_differ_at_the_three_names_only(task: IoiTask):
    batch = task.batch("mask", 0, size=20, seed=0)
    changed = task.counterfactual(batch)["input_ids"] != batch["input_ids"]
    prompts = of_kind(batch, "ioi")
    assert not changed[~prompts].any()
    for i in prompts.nonzero()[:, 0].tolist():
        places = [int(batch[f"{name}_position"][i]) for name in ("io", "s1", "s2")]
        assert changed[i].nonzero()[:, 0].tolist() == sorted(places)


def test_texts_alone_are_their_own_counterfactuals(task: IoiTask):
    for batch in task.evaluation_batches("tune", size=1):
        if not of_kind(batch, "ioi").any():
            assert task.counterfactual(batch)["input_ids"].equal(batch["input_ids"])


def test_prompts_without_a_counterpart_get_one_of_three_names(
    corpus: IoiCorpus, tokenizer: Any
):
    bare = {
        split: tuple(
            type(r)(r.text, r.kind, r.io, r.subject, None, r.template) for r in rows
        )
        for split, rows in corpus.records.items()
    }
    task = IoiTask(IoiCorpus(bare, corpus.unseen_names), tokenizer, TaskOptions())
    test_counterfactual_prompts_differ_at_the_three_names_only(task)
    batch = task.batch("mask", 0, size=20, seed=0)
    row = task.counterfactual(batch)["input_ids"][0]
    new = [int(row[batch[f"{name}_position"][0]]) for name in ("io", "s1", "s2")]
    assert len({*new, int(batch["io_id"][0]), int(batch["s_id"][0])}) == 5


def test_only_prompts_with_held_out_names_and_plain_texts_are_unseen(task: IoiTask):
    for split in ("mask", "heldout"):
        for batch in task.evaluation_batches(split, size=50):
            unseen = of_kind(batch, "text")
            if split == "heldout":
                unseen |= of_kind(batch, "ioi")
            assert (batch["unseen"] == unseen).all()


def test_batches_are_a_function_of_step_and_seed(task: IoiTask):
    for draw in (task.batch, task.finetune_batch):
        one, two = (draw("mask", 3, size=8, seed=1) for _ in range(2))
        other = draw("mask", 3, size=8, seed=2)
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert not torch.equal(one["cluster"], other["cluster"])


def test_mask_batches_are_half_prompts_half_plain_texts(task: IoiTask):
    batch = task.batch("mask", 0, size=12, seed=0)
    assert of_kind(batch, "ioi").sum() == of_kind(batch, "text").sum() == 6


def test_a_limit_leaves_that_many_prompts(task: IoiTask):
    drawn = [
        task.finetune_batch("relearn", s, size=2, seed=0, limit=4) for s in range(4)
    ]
    assert {int(c) for batch in drawn for c in batch["cluster"]} == {0, 1, 2, 3}
    assert all(of_kind(batch, "ioi").all() for batch in drawn)


def test_a_tokenizer_that_divides_names_is_refused(corpus: IoiCorpus):
    letters = train_tokenizer(
        ["a b c"], "bpe", is_decoder=True, vocab_size=270, max_length=64
    )
    with pytest.raises(UserError, match="tokenizer without one-token names: 0 of"):
        IoiTask(corpus, letters, TaskOptions())
    unknown = train_tokenizer(
        ["a b c"], "word", is_decoder=True, vocab_size=270, max_length=64
    )
    with pytest.raises(UserError, match="tokenizer without one-token names"):
        IoiTask(corpus, unknown, TaskOptions())


def test_prompts_with_divided_names_are_left_out(corpus: IoiCorpus):
    texts = [completed(r) for rows in corpus.records.values() for r in rows]
    known = [re.sub("|".join(NAMES[:10]), "", text) for text in texts]
    tokenizer = train_tokenizer(
        known, "word", is_decoder=True, vocab_size=1200, max_length=64
    )
    task = IoiTask(corpus, tokenizer, TaskOptions())
    left_out = sum(
        r.kind == "ioi" and bool({r.io, r.subject} & set(NAMES[:10]))
        for r in corpus.records["mask"]
    )
    assert left_out > 0
    assert task.n_examples("mask") == len(corpus.records["mask"]) - left_out


def test_prompts_are_read_from_a_file(tmp_path: Path):
    rng = random.Random(0)
    rows = [prompt(rng, NAMES[:30]) for _ in range(200)]
    path = tmp_path / "prompts.csv"
    path.write_text(
        "prompt,answer\n" + "".join(f'"{row.text}",{row.io}\n' for row in rows)
    )
    corpus = IoiTask.read(TaskOptions(data=str(path)))
    kinds = [record.kind for record in corpus.records["heldout"]]
    assert {"ioi", "text"} == set(kinds)
    assert corpus.labels is None


def test_further_text_is_retained_beside_the_prompts_and_scored_alone(tmp_path: Path):
    path = tmp_path / "wiki.txt"
    lines = [f"Page {i} tells of river {i % 7} and hill {i % 5} ." for i in range(60)]
    path.write_text("\n".join(lines))
    options = TaskOptions(retain_data=str(path))
    corpus = IoiTask.read(options)
    further = {
        split: {r.text for r in rows if r.kind == "wiki"}
        for split, rows in corpus.records.items()
    }
    assert sum(map(len, further.values())) == len(set().union(*further.values())) == 60
    assert all(further.values())
    tokenizer = train_tokenizer(
        [completed(r) for rows in corpus.records.values() for r in rows][::7] + lines,
        "word",
        is_decoder=True,
        vocab_size=2000,
        max_length=64,
    )
    task = IoiTask(corpus, tokenizer, options)
    batch = task.batch("mask", 0, size=12, seed=0)
    assert [int(of_kind(batch, kind).sum()) for kind in ("ioi", "text", "wiki")] == [
        6,
        3,
        3,
    ]
    assert batch["retain"][of_kind(batch, "wiki")].any(1).all()
    retained = task.retain_batch("tune", 0, size=10_000, seed=0)
    assert of_kind(retained, "wiki").sum() == len(further["tune"])
    found = scores(task, Counting(len(tokenizer), torch.zeros_like))
    assert found["wiki_nll"] == pytest.approx(math.log(len(tokenizer)), rel=1e-5)
    assert found["retain_nll"] == pytest.approx(found["wiki_nll"], rel=1e-5)


def test_half_of_a_few_scored_examples_are_prompts_whatever_the_texts(
    corpus: IoiCorpus, tokenizer: Any
):
    """The split has 30 prompts, 1 with three names, 12 plain texts and 40 copies."""
    task = IoiTask(corpus, tokenizer, TaskOptions())
    whole = torch.cat([b["kind"] for b in task.evaluation_batches("heldout", size=99)])
    n_of = dict(zip(KINDS, whole.bincount(minlength=len(KINDS)).tolist(), strict=True))
    for n_scored, prompts in ((20, 10), (48, 24), (10**6, n_of["ioi"])):
        task.n_heldout = n_scored
        batches = list(task.evaluation_batches("heldout", size=7))
        kinds = torch.cat([batch["kind"] for batch in batches])
        assert len(kinds) == min(n_scored, sum(n_of.values()))
        assert (kinds == KINDS.index("ioi")).sum() == prompts
        texts = (kinds == KINDS.index("text")).sum()
        others = n_scored // 2 - 1  # beside the one with three names
        assert texts == min(n_of["text"], others // 2)


def test_too_little_further_text_is_refused(tmp_path: Path):
    path = tmp_path / "wiki.txt"
    path.write_text("One line .\nAnother line .\n")
    with pytest.raises(UserError, match="fill five splits, got 2 texts"):
        IoiTask.read(TaskOptions(retain_data=str(path)))
