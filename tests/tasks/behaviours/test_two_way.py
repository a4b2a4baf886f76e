"""Two subjects, two objects: every prompt has a partner as long as itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from circuitcut.data.behaviours.subjects import athletes, built_in_facts, capitals
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import TaskOptions
from circuitcut.tasks.behaviours.two_way import CapitalOfTask, SportsTask, paired
from circuitcut.tasks.rows.prompts import Reader

SPLITS = ("mask", "tune", "relearn", "heldout")


def read(task: Any, **options: Any) -> tuple[Any, Any]:
    corpus = task.read(TaskOptions(**options))
    tokenizer = train_tokenizer(
        corpus.texts(), "word", is_decoder=True, vocab_size=4096, max_length=64
    )
    return corpus, tokenizer


def test_the_built_in_facts_are_distinct():
    assert len({country for country, _ in capitals()}) == len(capitals()) > 80
    assert len({capital for _, capital in capitals()}) == len(capitals())
    assert dict(capitals())["New Zealand"] == "Wellington"
    names = [name for name, _ in athletes()]
    assert len({*names}) == len(names) == 6 * 16
    assert len(built_in_facts("sports")) == len(names)


@pytest.mark.parametrize("task", [CapitalOfTask, SportsTask])
def test_the_partner_is_of_the_split_and_as_long_and_its_object_is_the_rival(task: Any):
    corpus, tokenizer = read(task)
    found = paired(corpus, Reader(tokenizer, False, 64))
    objects = {f.subject: f.object for f in built_in_facts(task.name)}
    for split in SPLITS:
        prompts = [r for r in found.records[split] if r.answer]
        texts = {r.text: r for r in prompts}
        assert len(prompts) > 10
        for record in prompts:
            other = texts.get(record.counterfactual) or next(
                r for r in corpus.records[split] if r.text == record.counterfactual
            )
            assert record.rivals == (other.answer,)
            assert other.answer != record.answer == objects[record.group]
            assert len(other.text.split()) == len(record.text.split())
            wording = record.text.replace(record.group, "{}")
            assert other.text.replace(other.group, "{}") == wording
    groups = [{r.group for r in found.records[s] if r.answer} for s in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_chance_is_one_half_and_counterfactuals_are_there():
    corpus, tokenizer = read(SportsTask)
    task = SportsTask(corpus, tokenizer, TaskOptions())
    assert task.concept_metric.chance == 0.5
    assert task.no_pairs is None


def test_facts_of_a_file_are_paired_and_a_file_without_partners_is_refused(
    tmp_path: Path,
):
    rows = [
        {
            "subject": f"Isle{i}",
            "relation": "sea",
            "object": f"Sea{i % 4}",
            "prompt": "Near {} is",
        }
        for i in range(40)
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus, tokenizer = read(CapitalOfTask, data=str(path))
    task = CapitalOfTask(corpus, tokenizer, TaskOptions(data=str(path)))
    batch = task.batch("mask", 0, size=4, seed=0)
    assert (batch["answer_id"] != batch["rival_ids"][:, 0]).all()
    same = [row | {"object": "Sea"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in same))
    corpus, tokenizer = read(CapitalOfTask, data=str(path))
    with pytest.raises(UserError, match="prompts with a partner"):
        CapitalOfTask(corpus, tokenizer, TaskOptions(data=str(path)))
