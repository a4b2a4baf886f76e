"""Prompts for tracing are those that the model has right: it is not asked again."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from circuitcut.experiments.circuits.traced_facts import NOT_KNOWN, traced_facts
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.tasks.facts.asked import asked_facts
from circuitcut.tasks.facts.task import FactsTask
from circuitcut.tasks.settings.options import TaskOptions
from tests.tasks.facts.rote import Rote

TOWNS = ("Paris", "Oslo", "Lima", "Rome")
KNOWN = {f"Land{i}" for i in range(6)} | {"Thing1"}


def test_known_prompts_are_traced_without_another_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path / "cache"))
    rows: list[dict[str, Any]] = [
        {"subject": f"Land{i}", "relation": "town", "object": TOWNS[i % 4]}
        | {"prompts": ["The town of {} is"]}
        for i in range(8)
    ]
    rows += [
        {"subject": f"Thing{i}", "relation": "colour", "object": ("red", "blue")[i % 2]}
        | {"prompts": ["The colour of {} is"]}
        for i in range(4)
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = TaskOptions(data=str(path), concept="town")
    corpus = FactsTask.read(options)
    tokenizer = train_tokenizer(
        corpus.texts(), "word", is_decoder=True, vocab_size=99, max_length=64
    )
    facts = [*corpus.concept, *corpus.others]
    lines = {
        prompt.input_ids: prompt.answer_ids[0]
        for prompt in asked_facts(facts, tokenizer, masked=False).prompts
        if facts[prompt.fact].subject in KNOWN
    }
    model = Rote(lines, len(tokenizer))
    task = FactsTask(corpus, tokenizer, options).for_model(model, "hash")
    n_passes = model.n_passes
    loaded = SimpleNamespace(tokenizer=tokenizer, is_decoder=True, model=model)
    experiment: Any = SimpleNamespace(corpus=corpus, loaded=loaded, task=task)
    config: Any = SimpleNamespace(
        max_length=64, seed=0, task_options=lambda *_, **__: options
    )
    found = traced_facts(experiment, config, which="all", n=99)
    assert {traced.fact.subject for traced in found.facts} == KNOWN
    assert (found.n_asked, found.left_out) == (12, {NOT_KNOWN: 5})
    of_concept = traced_facts(experiment, config, which="concept", n=3)
    assert {traced.fact.relation for traced in of_concept.facts} == {"town"}
    assert len(of_concept.facts) == 3
    assert model.n_passes == n_passes
