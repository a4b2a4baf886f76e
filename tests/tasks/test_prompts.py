"""The task prompts: tokens and positions, scores by hand, both kinds of model."""

import json
import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AddedToken

from circuitcut.data.prompts.generated import generate_facts
from circuitcut.data.prompts.records import PromptsCorpus, completed
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET, TaskOptions
from circuitcut.tasks.evaluation import evaluate
from circuitcut.tasks.prompts import PromptsTask
from circuitcut.tasks.rows.answers import ANSWER_WEIGHT
from circuitcut.tasks.rows.prompts import MASKED_SHARE, PROMPT, TEXT
from circuitcut.training.objectives import uniform_target

CITIES = ("Paris", "Rome", "Oslo", "Bern", "Riga", "Kyiv")
SPLITS = ("base", "mask", "tune", "relearn", "heldout")
both = pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])


def rows_of_file(n: int = 60, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Clerk {i} went to", "answer": CITIES[i % 6], **more}
        for i in range(n)
    ]


def task_on(
    folder: Path,
    rows: list[dict[str, Any]],
    masked: bool = False,
    *,
    kind: str = "word",
    vocabulary: str = "",
    **options: Any,
) -> PromptsTask:
    """The task on a file of rows, with a tokenizer that knows every word of it."""
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"data": str(path), "max_length": 24, "masked_lm": masked, **options}
    corpus = PromptsTask.read(TaskOptions(**options))
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    tokenizer = train_tokenizer(
        [vocabulary] if vocabulary else [*texts, "to ."],
        kind,
        is_decoder=not masked,
        vocab_size=2000,
        max_length=64,
    )
    return PromptsTask(corpus, tokenizer, TaskOptions(**options))


def built_in(masked: bool) -> PromptsTask:
    corpus = generate_facts(0)
    tokenizer = train_tokenizer(
        [*corpus.texts(), "to ."],
        "word",
        is_decoder=not masked,
        vocab_size=4096,
        max_length=64,
    )
    return PromptsTask(corpus, tokenizer, TaskOptions(masked_lm=masked))


class Fixed(nn.Module):
    """The same logits at every position."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        del attention_mask
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def test_a_decoder_answers_at_the_last_token_and_an_encoder_at_its_mask(
    tmp_path: Path,
):
    rows = [
        {"prompt": f"Clerk {i} likes [MASK] .", "answer": CITIES[i % 6]}
        for i in range(60)
    ]
    for masked in (False, True):
        task = task_on(tmp_path, rows, masked)
        tokenizer = task._tokenizer
        batch = task.batch("mask", 0, size=4, seed=0)
        assert torch.equal(batch["concept"].sum(1), (batch["kind"] == PROMPT).long())
        for number in (batch["kind"] == PROMPT).nonzero()[:, 0].tolist():
            ids = batch["input_ids"][number][batch["attention_mask"][number].bool()]
            position = int(batch["position"][number])
            assert bool(batch["concept"][number, position])
            answer = int(batch["answer_id"][number])
            assert batch["targets"][number, position] == answer
            assert tokenizer.decode([answer]) in CITIES
            text = tokenizer.decode(ids, skip_special_tokens=False)
            if masked:
                assert ids[position] == tokenizer.mask_token_id
                assert "likes [MASK]" in text
                others = batch["targets"][number] != NO_TARGET
                assert others.sum() == 1
            else:
                assert position == len(ids) - 1
                assert text.endswith("likes")


@both
def test_a_prompt_without_a_mask_has_the_answer_at_its_end(
    tmp_path: Path, masked: bool
):
    task = task_on(tmp_path, rows_of_file(), masked)
    batch = task.batch("mask", 0, size=64, seed=0)
    row = int((batch["kind"] == PROMPT).nonzero()[0])
    end = "to [MASK]. [SEP]" if masked else "to"
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    assert task._tokenizer.decode(ids).replace(" .", ".").endswith(end)


@both
def test_scores_of_fixed_logits_by_hand(tmp_path: Path, masked: bool):
    """Paris 3, Rome 2, Oslo 1, all other tokens 0, except one of 5 that is no rival."""
    rows = rows_of_file(rivals=list(CITIES[:3])) + [
        {"retain": f"A {i} b"} for i in range(40)
    ]
    rows = [row for row in rows if row.get("answer") in (*CITIES[:3], None)]
    task = task_on(tmp_path, rows, masked)
    ids = task._tokenizer.get_vocab()
    logits = torch.zeros(len(ids))
    for name, value in (("Paris", 3.0), ("Rome", 2.0), ("Oslo", 1.0), ("went", 5.0)):
        logits[ids[name]] = value
    found = evaluate(task, Fixed(logits), "heldout").scores
    answers = [r.answer for r in task._prompts["heldout"]]
    n = len(answers)
    wanted = {"Paris": 1.0, "Rome": -1.0, "Oslo": -2.0}
    assert found["accuracy"] == pytest.approx(answers.count("Paris") / n)
    assert found["logit_difference"] == pytest.approx(
        sum(wanted[a] for a in answers) / n
    )
    assert found["top1"] == 0
    p = [float(logits.softmax(0)[ids[a]]) for a in answers]
    assert found["p_answer"] == pytest.approx(sum(p) / n, rel=1e-5)
    assert task.concept_metric.chance == pytest.approx(1 / 3)
    if not masked:
        assert found["template_nll"] > 0


def test_without_rivals_the_answer_has_to_beat_every_token(tmp_path: Path):
    task = task_on(tmp_path, rows_of_file())
    ids = task._tokenizer.get_vocab()
    logits = torch.zeros(len(ids))
    logits[ids["Paris"]], logits[ids["went"]] = 1.0, 2.0
    found = evaluate(task, Fixed(logits), "heldout").scores
    assert found["accuracy"] == found["top1"] == 0
    logits[ids["went"]] = 0.0
    found = evaluate(task, Fixed(logits), "heldout").scores
    answers = [r.answer for r in task._prompts["heldout"]]
    assert found["accuracy"] == pytest.approx(answers.count("Paris") / len(answers))
    assert found["accuracy"] == found["top1"]
    assert task.concept_metric.chance == pytest.approx(1 / len(ids))


def test_repeated_rivals_leave_the_uniform_objective_zero_at_equal_logits(
    tmp_path: Path,
):
    rows = rows_of_file()
    for i, row in enumerate(rows):
        row["rivals"] = list(CITIES[: 2 + i % 3])
    rows = [row for row in rows if row["rivals"] != [row["answer"]]]
    task = task_on(tmp_path, rows)
    batch = task.batch("mask", 0, size=16, seed=0)
    ids = task._tokenizer.get_vocab()
    logits = torch.zeros(len(ids))
    logits[[ids[c] for c in CITIES]] = 4.0
    concept = task.outputs(Fixed(logits), batch).concept
    assert concept.rivals is not None
    assert len({len(set(row.tolist())) for row in concept.rivals}) > 1
    loss = uniform_target(
        concept.logits, concept.concept_classes, concept.rivals, concept.weights
    )
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)


@both
def test_retained_texts_are_scored_at_every_token_or_at_masked_ones(
    tmp_path: Path, masked: bool
):
    texts = [f"w{i} x y z a b c d e f g h i j k l m n o p" for i in range(60)]
    rows = rows_of_file() + [{"retain": text} for text in texts]
    task = task_on(tmp_path, rows, masked)
    batch = task.retain_batch("mask", 0, size=8, seed=0)
    assert (batch["kind"] == TEXT).all()
    real = batch["real"].sum(1)
    n = batch["retain"].sum(1)
    if masked:
        assert torch.equal(n, (MASKED_SHARE * real.float()).round().long())
        where = batch["retain"]
        assert (batch["input_ids"][where] == task._tokenizer.mask_token_id).all()
        assert (batch["targets"][where] != task._tokenizer.mask_token_id).all()
    else:
        assert torch.equal(n, real)  # <bos> predicts the first, the last predicts none
    again = task_on(tmp_path, rows, masked).retain_batch("mask", 0, size=8, seed=0)
    assert torch.equal(batch["input_ids"], again["input_ids"])
    size = len(task._tokenizer)
    found = evaluate(task, Fixed(torch.zeros(size)), "heldout").scores
    assert found["retain_nll"] == pytest.approx(math.log(size), rel=1e-5)


@both
def test_without_texts_the_prompts_other_tokens_are_retained(
    tmp_path: Path, masked: bool, caplog: pytest.LogCaptureFixture
):
    task = task_on(tmp_path, rows_of_file(), masked)
    assert "no text to retain is given" in caplog.text
    batch = task.batch("mask", 0, size=16, seed=0)
    assert batch["retain"].any()
    answers = {task._tokenizer.get_vocab()[city] for city in CITIES}
    assert not answers & set(batch["targets"][batch["retain"]].tolist())
    size = len(task._tokenizer)
    found = evaluate(task, Fixed(torch.zeros(size)), "heldout").scores
    assert found["retain_nll"] == pytest.approx(math.log(size), rel=1e-5)


@both
def test_built_in_pairs_differ_at_the_country_alone(masked: bool):
    task = built_in(masked)
    assert task.no_pairs is None
    batch = task.batch("mask", 0, size=16, seed=0)
    changed = task.counterfactual(batch)["input_ids"] != batch["input_ids"]
    assert torch.equal(changed.sum(1), (batch["kind"] == PROMPT).long())
    assert not changed[~batch["real"]].any()


def test_an_answer_counts_as_several_tokens_in_training():
    task = built_in(False)
    batch = task.finetune_batch("base", 0, size=32, seed=0)
    model = Fixed(torch.randn(len(task._tokenizer)))
    logits = model(**task.inputs(batch)).logits
    where = batch["targets"] != NO_TARGET
    times = (1 + (int(ANSWER_WEIGHT) - 1) * batch["concept"].long())[where]
    expected = nn.functional.cross_entropy(
        logits[where].repeat_interleave(times, 0),
        batch["targets"][where].repeat_interleave(times),
    )
    torch.testing.assert_close(task.finetune_loss(model, batch), expected)


@both
def test_answers_of_several_or_unknown_tokens_are_left_out_with_their_rows(
    tmp_path: Path, masked: bool, caplog: pytest.LogCaptureFixture
):
    rows = rows_of_file()
    rows[4]["answer"], rows[8]["answer"] = "New Town", "Zug"
    known = " ".join(r["prompt"] for r in rows) + " New Town to . " + " ".join(CITIES)
    with caplog.at_level(logging.WARNING):
        task = task_on(tmp_path, rows, masked, vocabulary=known)
    assert "2 of 60 prompts are left out" in caplog.text
    assert "not a single token: " in caplog.text
    assert "a.jsonl, line 5" in caplog.text
    assert "does not know: " in caplog.text
    assert "a.jsonl, line 9" in caplog.text
    assert sum(len(task._prompts[split]) for split in SPLITS[1:]) == 58


def test_a_tokenizer_without_one_token_answers_is_refused_with_the_rows(
    tmp_path: Path,
):
    with pytest.raises(
        UserError, match=r"got 0 of 60 prompts; .*a.jsonl, line 1, line 2,"
    ):
        task_on(tmp_path, rows_of_file(), kind="bpe", vocabulary="a b c")


@both
def test_a_counterfactual_of_another_length_is_told_with_row_and_lengths(
    tmp_path: Path, masked: bool
):
    rows = rows_of_file()
    for row in rows:
        row["counterfactual"] = row["prompt"].replace("Clerk", "Baker")
    rows[6]["counterfactual"] = "Baker went to"
    lengths = "8 and 7" if masked else "5 and 4"
    with pytest.raises(UserError, match=rf"a\.jsonl, line 7: .* got {lengths};"):
        task_on(tmp_path, rows, masked)


def test_a_counterfactual_mask_at_another_token_is_told(tmp_path: Path):
    rows = [
        {"prompt": f"Clerk {i} likes [MASK] a lot", "answer": CITIES[i % 6]}
        for i in range(60)
    ]
    rows[3]["counterfactual"] = "Clerk 3 a lot likes [MASK]"
    with pytest.raises(UserError, match=r"line 4: .*the mask at the same one, got 8"):
        task_on(tmp_path, rows, True)


def test_pairs_that_a_tokenizer_divides_otherwise_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rows = rows_of_file()
    for row in rows:
        row["prompt"] = f"Now {row['prompt']}"
        row["counterfactual"] = row["prompt"].replace("Clerk", "Baker")
    rows[2]["counterfactual"] = rows[2]["prompt"].replace("Clerk", "Xylographer")
    numbers = map(str, range(60))
    known = " ".join(["Now", *CITIES, "Clerk Baker went to", *numbers] * 9)
    task = task_on(tmp_path, rows, kind="bpe", vocabulary=known)
    assert "another number of tokens: " in caplog.text
    assert "line 3)" in caplog.text
    assert task.no_pairs is None


def test_rows_without_a_pair_are_told_when_pairs_are_asked_for(tmp_path: Path):
    rows = rows_of_file()
    rows[0]["counterfactual"] = "Baker 0 went to"
    task = task_on(tmp_path, rows)
    assert task.no_pairs is not None
    assert "no counterfactual prompt: " in task.no_pairs
    assert "line 2, line 3" in task.no_pairs
    with pytest.raises(
        UserError, match="line 2, line 3, line 4, line 5, line 6 and 54"
    ):
        task.counterfactual(task.batch("mask", 0, size=4, seed=0))


def test_a_decoder_leaves_out_prompts_that_go_on_behind_the_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rows = rows_of_file()
    rows[5]["prompt"] = "[MASK] is where clerk 5 went"
    task = task_on(tmp_path, rows)
    assert "go on behind the answer" in caplog.text
    assert "line 6)" in caplog.text
    assert len(task._prompts["base"]) == 59


def test_long_prompts_are_left_out_with_the_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rows = rows_of_file()
    rows[5]["prompt"] = "went to " * 30
    task_on(tmp_path, rows)
    assert "longer than --max_length 24 tokens: " in caplog.text


def test_groups_are_the_clusters_of_the_bootstrap():
    task = built_in(False)
    clusters: dict[int, set[str]] = {}
    for batch in task.evaluation_batches("heldout", size=1000):
        prompts = task._prompts["heldout"]
        for prompt, cluster in zip(prompts, batch["cluster"].tolist(), strict=False):
            clusters.setdefault(cluster, set()).add(prompt.group)
        assert len(set(batch["cluster"].tolist())) == len(clusters) + int(
            (batch["kind"] == TEXT).sum()
        )
    assert all(len(groups) == 1 for groups in clusters.values())


def test_the_tokenizer_of_a_masked_model_must_have_a_mask():
    corpus = generate_facts(0)
    tokenizer = train_tokenizer(
        corpus.texts(), "word", is_decoder=True, vocab_size=4096, max_length=64
    )
    with pytest.raises(UserError, match="must have a mask token"):
        PromptsTask(corpus, tokenizer, TaskOptions(masked_lm=True))


def test_further_text_joins_the_texts_of_every_split(tmp_path: Path):
    path = tmp_path / "more.txt"
    path.write_text("\n".join(f"Page {i} tells of hill {i % 5} ." for i in range(60)))
    corpus = PromptsTask.read(TaskOptions(retain_data=str(path)))
    added = {
        split: {r.text for r in rows if r.text.startswith("Page")}
        for split, rows in corpus.records.items()
    }
    assert all(added.values())
    assert sum(map(len, added.values())) == len(set().union(*added.values())) == 60


def test_many_texts_do_not_crowd_out_a_few_prompts(tmp_path: Path):
    path = tmp_path / "more.txt"
    path.write_text("\n".join(f"Page {i} tells of hill {i % 5} ." for i in range(900)))
    rows = [{"prompt": f"Clerk {i} likes", "answer": CITIES[i % 6]} for i in range(60)]
    task = task_on(tmp_path, rows, retain_data=str(path))
    every = [b["concept"].any(1) for b in task.evaluation_batches("heldout", size=64)]
    n_prompts = int(torch.cat(every).sum())
    assert 5 < n_prompts < len(torch.cat(every)) / 5
    for n_scored, expected in ((10, 5), (4 * n_prompts, n_prompts)):
        task.n_heldout = n_scored
        (scored,) = task.evaluation_batches("heldout", size=99)
        assert len(scored["concept"]) == n_scored
        assert scored["concept"].any(1).sum() == expected


def test_a_mask_that_takes_the_space_before_it_is_one_token_as_in_roberta(
    tmp_path: Path,
):
    rows = [
        {"prompt": f"Clerk {i} likes <mask>.", "answer": CITIES[i % 6]}
        for i in range(60)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = TaskOptions(data=str(path), masked_lm=True)
    corpus = PromptsTask.read(options)
    tokenizer = train_tokenizer(
        [f"{completed(r)} to {r.answer}" for r in corpus.records["base"]],
        "bpe",
        is_decoder=False,
        vocab_size=2000,
        max_length=64,
    )
    mask = AddedToken("<mask>", lstrip=True, special=True)
    tokenizer.add_special_tokens({"mask_token": mask})
    task = PromptsTask(corpus, tokenizer, options)
    assert len(task._prompts["base"]) == 60
    batch = task.batch("mask", 0, size=4, seed=0)
    answers = batch["answer_id"][batch["kind"] == PROMPT]
    assert {tokenizer.decode([i]).strip() for i in answers} <= set(CITIES)
    rivals = {tokenizer.decode([i]).strip() for i in batch["rival_ids"][0]}
    assert len(rivals) == 5


@pytest.mark.skipif("CIRCUITCUT_DATA" not in os.environ, reason="CIRCUITCUT_DATA unset")
@pytest.mark.parametrize(
    ("name", "n", "chance", "paired"),
    [
        ("ioi/ioi_prompts.json", 841, 0.0, False),
        ("ioi/ioi_pairs.csv", 499, 0.5, True),
        ("known_1000/known_1000.json", 1100, 0.1, False),
    ],
)
@both
def test_the_published_files_are_tasks_for_both_kinds_of_model(
    name: str, n: int, chance: float, paired: bool, masked: bool
):
    options = TaskOptions(
        data=str(Path(os.environ["CIRCUITCUT_DATA"]) / name), masked_lm=masked
    )
    corpus: PromptsCorpus = PromptsTask.read(options)
    texts = [completed(r) for r in corpus.records["base"]]
    texts += [r.counterfactual or "" for r in corpus.records["base"]]
    texts += ["to ."]
    tokenizer = train_tokenizer(
        texts, "word", is_decoder=not masked, vocab_size=9000, max_length=64
    )
    task = PromptsTask(corpus, tokenizer, replace(options, max_length=64))
    assert len(task._prompts["base"]) >= n
    assert task.concept_metric.chance == pytest.approx(chance, abs=0.03)
    assert (task.no_pairs is None) == paired
    batch = task.batch("mask", 0, size=8, seed=0)
    assert batch["concept"].any()
    assert batch["retain"].any()


def test_an_answer_that_continues_an_unknown_word_is_left_out(tmp_path: Path):
    """Both together are one unknown word, as long as the prompt."""
    rows = rows_of_file()
    rows.append({"prompt": "Clerk 0 went to qq", "answer": "##ww"})
    numbers = " ".join(map(str, range(60)))
    task = task_on(
        tmp_path, rows, vocabulary=f"Clerk {numbers} went to . {' '.join(CITIES)}"
    )
    left_out = task._asked.left_out["answers that are not a single token"]
    assert [record.answer for record in left_out] == ["ww"]
