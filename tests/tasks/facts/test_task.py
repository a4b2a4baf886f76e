"""Scores of facts against brute force, and which facts take part."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import TaskOptions
from circuitcut.tasks.facts.asked import asked_facts
from circuitcut.tasks.facts.rows import CONCEPT, NEAR, OTHER, TEXT
from circuitcut.tasks.facts.task import FactsTask
from tests.tasks.facts.rote import Rote
from tests.tasks.test_contract import Guesser

TOWNS = ("New Delhi", "New York", "Old York", "Paris", "Oslo")
COLOURS = ("red", "blue", "green")
TEMPLATES = ("The town of {} is", "{} lies at")


def rows() -> list[dict]:
    """Twenty towns, of each two prompts and a neighbour, ten colours, ten texts."""
    return [
        *(
            {
                "subject": f"Land{i}",
                "relation": "town",
                "object": TOWNS[i % 5],
                "prompts": list(TEMPLATES),
                "neighbourhood": [f"The town of Isle{i} is"],
            }
            for i in range(20)
        ),
        *(
            {
                "subject": f"Thing{i}",
                "relation": "colour",
                "object": COLOURS[i % 3],
                "prompts": "The colour of {} is",
            }
            for i in range(10)
        ),
        *({"retain": f"A text of number N{i} ."} for i in range(20)),
    ]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def task_on(data: Path, *, masked: bool = False, **options) -> FactsTask:
    settings = TaskOptions(data=str(data), masked_lm=masked, **options)
    corpus = FactsTask.read(settings)
    tokenizer = train_tokenizer(
        corpus.texts(), "word", is_decoder=not masked, vocab_size=999, max_length=64
    )
    return FactsTask(corpus, tokenizer, settings)


def every_row(task: FactsTask, split: str, kind: int) -> dict[str, Tensor]:
    (batch,) = task.evaluation_batches(split, size=999)
    return {name: values[batch["kind"] == kind] for name, values in batch.items()}


@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_those_of_a_search_through_the_objects(data: Path, masked: bool):
    """Every token is chosen among those of the objects that are equal so far."""
    task = task_on(data, masked=masked)
    n_tokens = len(task._tokenizer)
    model = Guesser(n_tokens, n_tokens).double().requires_grad_(False)
    objects = {
        name: task._tokenizer.encode(name, add_special_tokens=False) for name in TOWNS
    }
    n_checked = 0
    for split in ("mask", "heldout"):
        batch = every_row(task, split, CONCEPT)
        counts = task.counts(model, batch)
        logits = model(batch["input_ids"]).logits
        for row, first in enumerate(batch["position"].tolist()):
            n = int(batch["n_answer"][row])
            answer = batch["targets"][row, first : first + n].tolist()
            at = logits[row, first : first + n]
            chosen: list[int] = []
            for place in range(n):
                possible = {
                    ids[place]
                    for ids in objects.values()
                    if len(ids) > place
                    and ids[:place] == answer[:place]
                    and (len(ids) == n or not masked)
                }
                chosen.append(max(possible, key=lambda token: float(at[place, token])))
            log_p = at.log_softmax(-1)[range(n), answer].sum()
            assert counts["accuracy"][row] == (chosen == answer)
            assert counts["top1"][row] == (at.argmax(-1).tolist() == answer)
            assert counts["log_p"][row] == pytest.approx(float(log_p), rel=1e-5)
            assert counts["p_answer"][row] == pytest.approx(math.exp(log_p), rel=1e-4)
            n_checked += n > 1
        assert counts["prompts"].sum() == len(batch["kind"])
    assert n_checked > 3


def test_objects_of_two_tokens_are_the_concept_where_another_competes(data: Path):
    task = task_on(data)
    batch = every_row(task, "mask", CONCEPT)
    outputs = task.outputs(Guesser(len(task._tokenizer), len(task._tokenizer)), batch)
    assert int(batch["concept"].sum()) == len(outputs.concept.logits)
    assert outputs.concept.rivals is not None
    assert (outputs.concept.rivals >= 0).all()
    assert (outputs.concept.rivals != outputs.concept.targets[:, None]).all()
    # Paris and Oslo: one token. New Delhi, New York: two. Old York: York has no rival
    n_branches = {1: 1, 2: 2}
    for row in range(len(batch["kind"])):
        word = task._tokenizer.decode(batch["targets"][row, batch["position"][row]])
        expected = (
            1 if word.strip() == "Old" else n_branches[int(batch["n_answer"][row])]
        )
        assert int(batch["concept"][row].sum()) == expected
        assert int(batch["n_branches"][row]) == expected


def known_lines(task: FactsTask, known: set[str], *, ways: int) -> Rote:
    """A model that gives the objects of some subjects, in so many of their prompts."""
    facts = (*task._corpus.concept, *task._corpus.others)
    lines = {}
    done: dict[str, int] = {}
    for prompt in asked_facts(facts, task._tokenizer, masked=False).prompts:
        subject = facts[prompt.fact].subject
        done[subject] = done.get(subject, 0) + 1
        if subject in known and done[subject] <= ways:
            for place, token in enumerate(prompt.answer_ids):
                lines[(*prompt.input_ids, *prompt.answer_ids[:place])] = token
    return Rote(lines, len(task._tokenizer))


def test_only_known_facts_take_part_and_their_share_is_told(
    data: Path, caplog: pytest.LogCaptureFixture
):
    task = task_on(data, concept="town")
    known = {f"Land{i}" for i in range(0, 20, 2)} | {"Thing1", "Thing2"}
    model = known_lines(task, known, ways=1)  # one of two prompts is half of them
    with caplog.at_level("INFO"):
        of_model = task.for_model(model, "hash")
    assert "10 of 20 (50%) of town" in caplog.text
    assert "2 of 10 others" in caplog.text
    splits = ("mask", "tune", "relearn", "heldout")
    n = {
        kind: sum(len(every_row(of_model, split, kind)["kind"]) for split in splits)
        for kind in (CONCEPT, OTHER, NEAR, TEXT)
    }
    assert (n[CONCEPT], n[NEAR]) == (20, 10)
    assert of_model.n_examples("base") == task.n_examples("base")
    summary = of_model.files()["known.json"]
    assert (summary["facts"], summary["known"], summary["share_known"]) == (20, 10, 0.5)
    assert summary["others"] == {"colour": {"facts": 10, "known": 2}}
    assert {row[0] for row in summary["known_facts"]} == known - {"Thing1", "Thing2"}
    assert {row[3] for row in summary["known_facts"]} == {0.5}
    chance = of_model.concept_metric.chance
    assert chance == pytest.approx(0.2)  # two of ten, of every town
    assert task.files() == {}
    n_passes = model.n_passes
    again = task.for_model(model, "hash")
    for others, subjects in ((False, known - {"Thing1", "Thing2"}), (True, known)):
        answers, left_out = again.answers(others=others)
        assert len(answers) == 40 + 10 * others  # two of a town, one of a colour
        right = [fact.subject for fact, _, is_right in answers if is_right]
        assert sorted(right) == sorted(subjects)  # one prompt of each
        assert all(fact.subject in prompt.text for fact, prompt, _ in answers)
        assert left_out == {}
    assert model.n_passes == n_passes


def test_facts_are_known_in_each_language_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path / "cache"))
    names = {"en": ("Land", "The town of {} is"), "nl": ("Rijk", "De stad van {} is")}
    rows = [
        {
            **{"fact": i, "language": language, "subject": f"{stem}{i}"},
            **{"relation": "town", "object": TOWNS[i % 5], "prompts": [template]},
        }
        for language, (stem, template) in names.items()
        for i in range(12)
    ]
    rows += [{"retain": f"A text of number N{i} ."} for i in range(20)]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_on(path, concept="town", n_facts=8)
    known = {f"Land{i}" for i in range(12)} | {f"Rijk{i}" for i in range(0, 12, 2)}
    of_model = task.for_model(known_lines(task, known, ways=1), "hash")
    summary = of_model.files()["known.json"]
    drawn = [fact.entity for fact in task._corpus.concept]
    assert (len(drawn), len(set(drawn))) == (16, 8)  # eight facts in two languages
    n_dutch = sum(int(name.removeprefix("Land")) % 2 == 0 for name in set(drawn))
    assert summary["languages"] == {
        "en": {"facts": 8, "known": 8},
        "nl": {"facts": 8, "known": n_dutch},
    }
    assert {row[4] for row in summary["known_facts"]} == {"en", "nl"}
    dutch = task_on(path, concept="town", languages=("nl",))
    assert {fact.language for fact in dutch._corpus.concept} == {"nl"}


def test_a_relation_that_the_model_does_not_know_is_refused(data: Path):
    task = task_on(data, concept="colour")
    model = known_lines(task, {"Land1", "Land2", "Thing3"}, ways=2)
    message = (
        r"facts of colour with at least 4 prompts .* got 1 of 10 facts, "
        r".*facts\.jsonl, line 21; known facts of other relations: town \(2\)"
    )
    with pytest.raises(UserError, match=message):
        task.for_model(model, "hash")


def test_paraphrases_and_facts_are_limited_and_splits_differ_in_objects(data: Path):
    task = task_on(data, concept="town", n_paraphrases=1, n_facts=6)
    splits = ("mask", "tune", "relearn", "heldout")
    batches = {split: every_row(task, split, CONCEPT) for split in splits}
    assert sum(len(batch["kind"]) for batch in batches.values()) == 6
    by_object = task_on(data, concept="town", split_by="object")
    objects = []
    for split in splits:
        batch = every_row(by_object, split, CONCEPT)
        places = batch["position"][:, None] + torch.arange(2)
        objects.append(
            {tuple(row) for row in batch["targets"].gather(1, places).tolist()}
        )
    assert all(not a & b for i, a in enumerate(objects) for b in objects[:i])
    assert every_row(by_object, "heldout", CONCEPT)["unseen"].all()


def test_a_batch_is_half_concept_and_the_rest_other_facts_and_texts(data: Path):
    task = task_on(data, concept="town")
    batch = task.batch("mask", 0, size=8, seed=0)
    assert batch["kind"].tolist() == [CONCEPT] * 4 + [OTHER] * 2 + [TEXT] * 2
    objects = batch["weights"].max(1).values
    assert objects.tolist() == [1.0] * 4 + [8.0] * 2 + [1.0] * 2
    limited = task.finetune_batch("relearn", 0, size=4, seed=0, limit=3)
    assert len(set(limited["cluster"].tolist())) == 3  # of different subjects


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object": "Paris"}, "no other object of its length: 2, first in .*line 1"),
        ({"object": "Ulm"}, None),
    ],
)
def test_a_relation_with_one_object_cannot_be_asked(
    tmp_path: Path, change: dict, message: str | None
):
    path = tmp_path / "facts.jsonl"
    wanted = [{**row, "object": "Paris"} for row in rows()[:4]]
    wanted[0] |= change
    path.write_text("".join(json.dumps(row) + "\n" for row in [*wanted, *rows()[20:]]))
    if message is None:
        assert task_on(path, concept="town").concept == "town"
        return
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [wanted[0], *rows()[20:]])
    )
    with pytest.raises(UserError, match=message):
        task_on(path, concept="town")


def test_nothing_to_retain_is_refused(tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()[:20]))
    with pytest.raises(UserError, match="or --retain_data texts to retain"):
        task_on(path)


def test_the_fingerprint_is_of_facts_and_concept_and_not_of_places(data: Path):
    settings = TaskOptions(data=str(data))
    first = FactsTask.read(settings)
    moved = data.with_name("moved.jsonl")
    moved.write_text(data.read_text())
    again = FactsTask.read(replace(settings, data=str(moved)))
    assert again.fingerprint() == first.fingerprint()
    for change in ({"concept": "colour"}, {"n_facts": 9}, {"split_by": "object"}):
        other = FactsTask.read(replace(settings, **change))
        assert other.fingerprint() != first.fingerprint()


def test_a_few_scored_examples_are_of_every_kind(data: Path):
    task = task_on(data, concept="town")
    n_of = {
        kind: len(every_row(task, "heldout", kind)["kind"])
        for kind in (CONCEPT, NEAR, OTHER, TEXT)
    }
    task.n_heldout = 10
    found = [
        int((batch["kind"] == kind).sum())
        for batch in task.evaluation_batches("heldout", size=99)
        for kind in n_of
    ]
    assert sum(found) == 10
    assert all(n <= of for n, of in zip(found, n_of.values(), strict=True))
    smallest = min(n_of.values())
    assert min(found) == min(smallest, 2)
    task.n_heldout = 10**6
    assert task.n_examples("heldout") == sum(n_of.values())


def test_a_model_with_one_answer_for_every_subject_knows_nothing(data: Path):
    task = task_on(data, concept="town")
    model = known_lines(task, {"Land3", "Land8", "Land13", "Land18"}, ways=2)
    with pytest.raises(UserError, match="got 4 of 20 facts, all with 'Paris'"):
        task.for_model(model, "hash")


def test_the_chance_of_one_subject_s_facts_is_that_of_their_relations(data: Path):
    task = task_on(data, concept="subject:Land1|Land2")
    assert task.concept_metric.chance == pytest.approx(0.2)  # five towns, each as often
    alone = known_lines(task, {"Land1", "Thing1"}, ways=2)
    with pytest.raises(UserError, match="got 1 of 2 facts"):
        task.for_model(alone, "hash")
    both = known_lines(task, {"Land1", "Land2", "Land6"}, ways=2)
    of_model = task.for_model(both, "another")
    assert of_model.concept_metric.chance == pytest.approx(2 / 3)
    assert of_model.files()["known.json"]["split_by"] == "prompt"
