"""Facts edited one by one: other objects take the place of theirs, and it is undone.

The values of a fact's units are moved from the embedding of its object to that of
another one (`attribution/knowledge/operations.py`), and what the model says is measured
at the fact's prompts, at neighbours, and at other facts of its relation and of others.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import torch

from circuitcut.attribution.knowledge.base_pass import BasePass
from circuitcut.attribution.knowledge.edits import measures, told
from circuitcut.attribution.knowledge.operations import (
    STRENGTHS,
    edited,
    embedding_of,
)
from circuitcut.attribution.knowledge.prompts import Prompt, prompts_of
from circuitcut.attribution.knowledge.unit_sets import Units
from circuitcut.data.facts.records import Fact, FactsCorpus
from circuitcut.experiments.knowledge.facts import KnownFact
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.knowledge.records import EditRecord, Records
from circuitcut.experiments.knowledge.results import interval_of
from circuitcut.experiments.knowledge.study import Study
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import shown
from circuitcut.tasks.facts.task import FactsTask

EDITS_FILE = "edits.jsonl"
BEFORE = "before"
LEAST = 1e-38
"""Probabilities below are counted as this much, so that a perplexity is finite."""
INSIDE, OUTSIDE = "perplexity_inside", "perplexity_outside"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Edit:
    """One fact that can be edited."""

    units: Units
    old: int
    new: int
    target: str
    own: tuple[Prompt, ...]
    """The prompt, at which the model is right, then its paraphrases."""


@dataclass
class Edits:
    """The edits of a study's facts, and where their records are."""

    study: Study
    _of_relation: dict[str, int] = field(default_factory=dict, init=False)
    """Facts of each relation that are edited already."""

    def records(self) -> Records:
        """What an edit of every fact does.

        Where neurons cannot write an embedding, no fact is edited, which is logged. The
        edits of a sweep that is shared out are those of the joined run: which units
        are edited depends on all facts of the relation.
        """
        study = self.study
        records = Records(study.folder / EDITS_FILE, EditRecord, study.numbers)
        for entry in records:
            self._count(entry)
        _, n_shares = study.config.place_of_share
        if records.left and n_shares == 1:
            reason = self._cannot()
            with evaluating(study.model):
                for number in shown(records.left, "edits"):
                    entry = _left_out(number, reason) if reason else self._edit(number)
                    self._count(entry)
                    records.add(entry)
        return records

    def _cannot(self) -> str:
        """Why no fact can be edited; empty if some can."""
        if self.study.config.edit == "none":
            return "not asked for"
        try:
            embedding_of(self.study.model, 0)
        except UserError as error:
            logger.warning("no fact is edited: %s", error)
            return "no neuron can write an embedding"
        return ""

    def _count(self, entry: EditRecord) -> None:
        if not entry["left_out"]:
            relation = self.study.facts[entry["fact"]].fact.relation
            self._of_relation[relation] = self._of_relation.get(relation, 0) + 1

    def _edit(self, number: int) -> EditRecord:
        study = self.study
        relation = study.facts[number].fact.relation
        if self._of_relation.get(relation, 0) >= study.config.most_edits:
            return _left_out(number, "enough facts of the relation")
        edit = self._plan(number)
        if isinstance(edit, str):
            return _left_out(number, edit)
        groups = {
            "own": edit.own,
            "near": self._neighbours(number, edit.old),
            INSIDE: self._others(number, inside=True),
            OUTSIDE: self._others(number, inside=False),
        }
        sets = {
            "refined": [edit.units],
            **study.controls(number, edit.units),
        }
        found = {BEFORE: self._measured(groups, edit, nullcontext())}
        for name, of_name in sets.items():
            each = [
                self._measured(groups, edit, self._edited(units, edit))
                for units in of_name
            ]
            found[name] = {key: fmean(e[key] for e in each) for key in found[BEFORE]}
        return {
            "fact": number,
            "target": edit.target,
            "left_out": "",
            "n_units": len(edit.units),
            "sets": found,
        }

    def _plan(self, number: int) -> _Edit | str:
        """What is edited, or why nothing is."""
        study, known = self.study, self.study.facts[number]
        units = study.refined_sets[number] - self._shared[known.fact.relation]
        if not units:
            return "no units of its own"
        asked = study.found.of(number)["prompts"]
        right = [i for i, p in enumerate(asked) if p["predicted"] == p["gold"]]
        if not right:
            return "not predicted"
        first = right[0]
        answer = known.prompts[first].answer
        if len(answer) > 1:
            return "object of several tokens"
        target = self._target(number, first)
        if target is None:
            return "no other object of one token"
        name, new = target
        rest = [p for i, p in enumerate(known.prompts) if i != first]
        own = (known.prompts[first], *(p for p in rest if p.answer == answer))
        return _Edit(units, answer[0], new, name, own)

    @cached_property
    def _shared(self) -> dict[str, Units]:
        """Units of more than `--edit_shared` of a relation's facts, and of two."""
        study = self.study
        of_relation: dict[str, list[Units]] = {}
        for number, units in study.refined_sets.items():
            relation = study.facts[number].fact.relation
            of_relation.setdefault(relation, []).append(units)
        return {
            relation: frozenset(
                unit
                for unit in frozenset().union(*sets)
                if (n := sum(unit in units for units in sets)) > 1
                and n > study.config.edit_shared * len(sets)
            )
            for relation, sets in of_relation.items()
        }

    def _target(self, number: int, prompt: int) -> tuple[str, int] | None:
        """The data's false object or a drawn one of the relation, and its token.

        Drawn from the objects of all facts of the relation, known or not.
        """
        study, known = self.study, self.study.facts[number]
        fact, corpus = known.fact, study.experiment.corpus
        assert isinstance(corpus, FactsCorpus)
        alike = [
            other
            for other in (*corpus.concept, *corpus.others)
            if _is_alike(fact, other)
        ]
        true = {other.object for other in alike if other.subject == fact.subject}
        others = dict.fromkeys(
            other.object for other in alike if other.object not in true
        )
        names = [*others, *(name for name in fact.choices if name not in others)]
        order = torch.randperm(len(names), generator=study.rng(number, 0)).tolist()
        drawn = [names[i] for i in order]
        if fact.counterfactual is not None:
            drawn.insert(0, fact.counterfactual)
        for name in drawn:
            token = self._token(known, prompt, name)
            if token is not None and (token,) != known.prompts[prompt].answer:
                return name, token
        return None

    def _token(self, known: KnownFact, prompt: int, name: str) -> int | None:
        """The token of another object at a prompt; a causal model's first one."""
        task = self.study.experiment.task
        assert isinstance(task, FactsTask)
        text = known.asked[prompt].text
        asked = [a for a in task.asked_as(known.fact, name) if a.text == text]
        found = prompts_of(asked[:1])
        return found[0].answer[0] if found and len(found[0].answer) == 1 else None

    def _neighbours(self, number: int, old: int) -> tuple[Prompt, ...]:
        """Prompts about other subjects of which the object is true.

        Those of the data, else the first prompts of the run's own facts.
        """
        study, known = self.study, self.study.facts[number]
        near = known.near or tuple(
            other.prompts[0]
            for other in study.facts
            if _is_alike(known.fact, other.fact)
            and other.fact.object == known.fact.object
            and other.fact.subject != known.fact.subject
        )
        return tuple(p for p in near if p.answer == (old,))[: study.config.n_others]

    def _others(self, number: int, *, inside: bool) -> tuple[Prompt, ...]:
        """First prompts of facts with another object, of the relation or of others."""
        study, fact = self.study, self.study.facts[number].fact
        found = [
            other.prompts[0]
            for other in study.facts
            if (other.fact.relation == fact.relation) == inside
            and other.fact.language == fact.language
            and other.fact.object != fact.object
        ]
        order = torch.randperm(len(found), generator=study.rng(number, 3)).tolist()
        return tuple(found[i] for i in order[: study.config.n_others])

    def _edited(self, units: Units, edit: _Edit) -> AbstractContextManager[None]:
        config = self.study.config
        return edited(
            self.study.model,
            units,
            edit.old,
            edit.new,
            formula=config.edit,
            strengths=strengths_of(config),
        )

    def _measured(
        self,
        groups: Mapping[str, Sequence[Prompt]],
        edit: _Edit,
        context: AbstractContextManager[None],
    ) -> dict[str, float]:
        """Measures in a context; mean log-probabilities for the two perplexities."""
        prompts = [prompt for of in groups.values() for prompt in of]
        with context:
            base = BasePass.run(self.study.model, prompts)
        n_own, n_near = len(groups["own"]), len(groups["near"])
        both = told(base.logits[: n_own + n_near, 0], edit.old, edit.new)
        found = measures(both[0], both[1:n_own], both[n_own:])
        rows = torch.arange(len(prompts), device=base.logits.device)
        log_p = base.probabilities(base.logits, rows).double().clamp(min=LEAST).log()
        first = n_own + n_near
        for name in (INSIDE, OUTSIDE):
            last = first + len(groups[name])
            if last > first:
                found[name] = log_p[first:last].mean().item()
            first = last
        return found


def _is_alike(fact: Fact, other: Fact) -> bool:
    """Whether two facts are of one relation and language."""
    return (other.relation, other.language) == (fact.relation, fact.language)


def strengths_of(config: KnowledgeFlags) -> tuple[float, float] | None:
    """l1 and l2 of the formula, as asked for or as published; None without edits."""
    if config.edit == "none":
        return None
    given = config.edit_strengths
    return (given[0], given[1]) if given else STRENGTHS[config.edit]


def _left_out(number: int, reason: str) -> EditRecord:
    return {
        "fact": number,
        "target": "",
        "left_out": reason,
        "n_units": 0,
        "sets": {},
    }


def summarised_edits(study: Study, records: Records) -> dict[str, Any]:
    """The entry `edits` of results.json: a row for each set of units and measure."""
    done = [entry for entry in records if not entry["left_out"]]
    reasons = [entry["left_out"] for entry in records if entry["left_out"]]
    return {
        "formula": study.config.edit,
        "strengths": strengths_of(study.config),
        "n_edited": len(done),
        "n_units": fmean(entry["n_units"] for entry in done) if done else 0.0,
        "left_out": {
            reason: reasons.count(reason) for reason in dict.fromkeys(reasons)
        },
        "rows": [
            row
            for units in (done[0]["sets"] if done else ())
            if units != BEFORE
            for measure in dict.fromkeys(m for e in done for m in e["sets"][BEFORE])
            for row in [_row(done, units, measure, study.config.seed)]
        ],
    }


def _row(
    done: Sequence[EditRecord], units: str, measure: str, seed: int
) -> dict[str, Any]:
    """Means over facts before and after, and the gain with a bootstrap interval.

    The gain is after minus before, of ranks the other way round, of perplexities
    after / before - 1.
    """
    values = [
        (entry["sets"][BEFORE][measure], entry["sets"][units][measure])
        for entry in done
        if measure in entry["sets"][BEFORE]
    ]
    is_perplexity = measure in (INSIDE, OUTSIDE)

    def ends(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = table.mean(-2)
        before, after = ((-mean).exp() if is_perplexity else mean).unbind(-1)
        return before, after

    def gain(table: torch.Tensor) -> torch.Tensor:
        before, after = ends(table)
        if is_perplexity:
            return after / before - 1
        return before - after if measure == "rank" else after - before

    table = torch.tensor(values, dtype=torch.float64)
    before, after = ends(table)
    return {
        "units": units,
        "measure": measure,
        "n_facts": len(values),
        "before": before.item(),
        "after": after.item(),
        "gain": gain(table).item(),
        "gain_interval": interval_of(values, gain, seed),
    }
