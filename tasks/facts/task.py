"""Facts: what a model knows of a relation, of subjects, or of a list of facts.

The concept is the object of each fact, behind the prompt (decoders) or at mask tokens
(encoders), wherever another object of its relation competes. Retained are other facts,
plain text and, for decoders, the other words of all prompts. Only facts that the uncut
model knows take part (`known`); the built-in model is first trained on all of them.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.data.facts.concept import chosen_facts, evenly_drawn
from circuitcut.data.facts.files import read_facts
from circuitcut.data.facts.generated import CAPITAL, generate_facts
from circuitcut.data.facts.generated_languages import generate_parallel_facts
from circuitcut.data.facts.records import Fact, FactsCorpus, distinct
from circuitcut.data.sampling import draw, draw_from
from circuitcut.data.text.files import read_retained
from circuitcut.data.text.records import TextRecord
from circuitcut.data.text.splits import split_retained
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating
from circuitcut.tasks.base import (
    Batch,
    Head,
    Metric,
    Split,
    TaskOptions,
    check_limit,
)
from circuitcut.tasks.facts.asked import (
    AskedFacts,
    AskedPrompt,
    answer_positions,
    asked_facts,
)
from circuitcut.tasks.facts.division import divide
from circuitcut.tasks.facts.known import cached_right_prompts, shares_right
from circuitcut.tasks.facts.material import Asked, material
from circuitcut.tasks.facts.rows import (
    CONCEPT,
    NEAR,
    NO_RIVAL,
    OTHER,
    TEXT,
    fact_row,
    padded_rivals,
    text_numbers,
)
from circuitcut.tasks.facts.spoken import Question, chosen, produced, wrong_objects
from circuitcut.tasks.language_rows import (
    Row,
    collate,
    counted_nll,
    of_vocabulary,
    pad_id_of,
    prefix_ids,
    share,
)
from circuitcut.tasks.rows.answers import AnswerTask
from circuitcut.tasks.rows.prompts import Reader, text_row
from circuitcut.tasks.settings.facts import DEFAULTS

CONCEPT_SHARE = 0.5
"""Share of the concept's prompts in a mask-training batch; other facts and texts share
the rest."""
OTHER_WEIGHT = 8.0
"""Weight of another fact's object among the retained tokens of a mask-training batch,
most of which are words of texts."""
_GROUPS = {"": CONCEPT, "other_": OTHER, "near_": NEAR}
"""Beginning of the scores of each kind of prompt."""
_SCORES = ("accuracy", "top1", "p_answer", "log_p")
logger = logging.getLogger(__name__)


class FactsTask(AnswerTask):
    """Prompts whose answer is the object of a fact, other facts, and plain texts.

    Batches hold further integers per example: `kind` (`CONCEPT`, `OTHER`, `NEAR` or
    `TEXT`), `position` (where the object's first token is predicted), `n_answer` (its
    tokens), `n_branches` (those where another object competes), and `rival_ids` (batch,
    answer token, rival), in which the rivals are repeated up to the largest number. The
    concept's positions are those where another object competes. The chance level of the
    accuracy is the share of the concept's most frequent object: the best guess without
    the subject.

    Raises:
        UserError: When no prompt of the concept can be asked, or a split has none.
    """

    name: ClassVar[str] = "facts"
    head: ClassVar[Head] = "language_model"
    concept_metric = Metric("accuracy", True, "fraction", 0.0, "accuracy on the facts")
    retain_metric = Metric("retain_nll", False, "nats/token", 0.0, "loss on other text")
    defaults = DEFAULTS

    @classmethod
    def read(cls, options: TaskOptions) -> FactsCorpus:
        """Built-in facts, or facts of files (docs/howto/facts.md)."""
        seed = options.split_seed
        concept = options.concept
        further: list[TextRecord] = []
        if options.data is None:
            built_in, sentences = (
                generate_parallel_facts(options.languages, seed)
                if options.languages
                else generate_facts(seed)
            )
            facts, texts, concept = list(built_in), list(sentences), concept or CAPITAL
        else:
            facts, texts = read_facts(
                options.data,
                options.data_format,
                options.hub_config,
                options.hub_revision,
                options.languages,
            )
        if options.retain_data is not None:
            further = read_retained(options.retain_data, options.text_column)
        chosen, others, name = chosen_facts(distinct(facts), concept)
        records = [TextRecord(text, "wiki") for text in texts] + further
        texts_of = split_retained(records, seed=seed) if records else {}
        if options.data is None:  # the built-in model needs every word
            texts_of["base"] = records
        return FactsCorpus(
            tuple(evenly_drawn(chosen, options.n_facts, seed)),
            tuple(evenly_drawn(others, options.n_facts, seed)),
            {split: tuple(r.text for r in rows) for split, rows in texts_of.items()},
            name,
            by_object=options.split_by == "object",
        )

    def __init__(self, corpus: FactsCorpus, tokenizer: Any, options: TaskOptions):
        self.concept = corpus.name
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._options = options
        self._reader = Reader(
            tokenizer,
            options.masked_lm,
            options.max_length,
            prefix_ids(tokenizer, options),
        )
        self.retain_metric = of_vocabulary(self.retain_metric, tokenizer)
        self._of_kind = material(corpus, self._reader, options.n_paraphrases)
        self._n_table = _largest(self._of_kind.values())
        self._has_texts = bool(corpus.texts_of)
        if not self._has_texts and not self._of_kind[OTHER].prompts:
            raise UserError(
                "the data must hold other facts, or --retain_data texts to retain, got "
                f"{self.concept} alone; name some texts with --retain_data"
            )
        if not self._has_texts:
            logger.warning(
                "no text to retain is given: the words of other facts' prompts stand "
                "in for it; name some with --retain_data"
            )
        self._text_rows: dict[str, list[Row]] = {}
        self._right: dict[int, list[bool]] = {}
        self._divide({})

    def for_model(self, model: nn.Module, weights_sha256: str) -> "FactsTask":
        """The task on the facts that this model knows, by the cache where it has them.

        Raises:
            UserError: When it knows too few of the concept's facts.
        """
        known: dict[int, list[float]] = {}
        right_of: dict[int, list[bool]] = {}
        for kind in (CONCEPT, OTHER):
            asked = self._of_kind[kind]
            right = right_of[kind] = cached_right_prompts(
                asked.prompts,
                model,
                pad_id_of(self._tokenizer),
                weights_sha256,
                self._tokenizer.backend_tokenizer.to_str(),
                self._corpus.fingerprint(),
                repr((kind, self._reader.masked, self._reader.max_length)),
                repr((self._reader.prefix, self._options.n_paraphrases)),
            )
            known[kind] = shares_right(asked.prompts, right, len(asked.facts))
        task = copy(self)
        task._right = right_of
        task._divide(known)
        logger.info("%s", task._division.in_words(self._corpus.name))
        return task

    def _divide(self, shares: Mapping[int, Sequence[float]]) -> None:
        """Divide the prompts of known facts among the splits."""
        seed = self._options.split_seed
        self._division = divide(self._of_kind, shares, self._corpus, seed)
        self._fact_rows: dict[tuple[str, int], list[Row]] = {}
        self.concept_metric = replace(
            self.concept_metric,
            chance=self._division.chance,
            label=f"accuracy on facts of {self._corpus.name}",
        )

    def known_facts(
        self, split: Split | None = None
    ) -> list[tuple[Fact, list[AskedPrompt], float]]:
        """Every fact, the concept's first, with its prompts in tokens.

        The number is the share of the prompts in which its object has rank 1; of a task
        that is not yet `for_model` it is 0.

        Args:
            split: The prompts of this split alone, and the facts that have some.
        """
        found: list[tuple[Fact, list[AskedPrompt], float]] = []
        for kind in (CONCEPT, OTHER):
            asked = self._of_kind[kind]
            n = len(asked.facts)
            shares = self._division.shares.get(kind, [0.0] * n)
            rows = zip(asked.facts, asked.of_facts(), shares, strict=True)
            if split is None:
                found += rows
                continue
            of_split = {
                id(asked.prompts[i]) for i in self._division.numbers[split][kind]
            }
            for fact, prompts, right in rows:
                kept = [prompt for prompt in prompts if id(prompt) in of_split]
                if kept:
                    found.append((fact, kept, right))
        return found

    def answers(
        self, *, others: bool
    ) -> tuple[list[tuple[Fact, AskedPrompt, bool]], dict[str, int]]:
        """Every prompt, and whether the model that the task is for has it right.

        Args:
            others: With those of facts outside the concept.

        Returns:
            Facts, prompts and answers; and the number of prompts that cannot be asked,
            by reason.
        """
        found: list[tuple[Fact, AskedPrompt, bool]] = []
        left_out: Counter[str] = Counter()
        for kind in (CONCEPT, OTHER) if others else (CONCEPT,):
            asked = self._of_kind[kind]
            right = self._right[kind]
            for number, prompt in enumerate(asked.prompts):
                found.append((asked.fact_of(number), prompt, right[number]))
            left_out.update({why: len(of) for why, of in asked.left_out.items()})
        return found, dict(left_out)

    def neighbours(self) -> dict[tuple[Any, ...], list[AskedPrompt]]:
        """Of the concept's facts, by key: prompts about other subjects, same object."""
        asked = self._of_kind[NEAR]
        by_fact = zip(asked.facts, asked.of_facts(), strict=True)
        return {fact.key: prompts for fact, prompts in by_fact}

    def asked_as(self, fact: Fact, answer: str) -> list[AskedPrompt]:
        """The prompts of a fact, asked for another object."""
        return list(self.ask([replace(fact, object=answer)]).prompts)

    def ask(self, facts: Sequence[Fact]) -> AskedFacts:
        """The prompts of any facts, in tokens as this task asks them."""
        return asked_facts(
            facts,
            self._tokenizer,
            masked=self._reader.masked,
            max_length=self._reader.max_length,
            prefix=self._reader.prefix,
        )

    def files(self) -> dict[str, Any]:
        """known.json: which facts the model knows, what the splits share, chance."""
        if not self._division.shares:
            return {}
        return {"known.json": self._division.summary(self._corpus)}

    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Half prompts of the concept; other facts and texts share the rest equally."""
        n_of = {kind: len(self._rows_of_kind(split, kind)) for kind in (OTHER, TEXT)}
        rest = [kind for kind, n in n_of.items() if n]
        n_concept = max(1, round(CONCEPT_SHARE * size)) if rest else size
        shares = {CONCEPT: n_concept}
        for left, kind in zip(range(len(rest), 0, -1), rest, strict=True):
            shares[kind] = (size - sum(shares.values())) // left
        rows: list[tuple[int, int]] = []
        for kind, n in shares.items():
            pool = self._rows_of_kind(split, kind)
            drawn = draw(len(pool), step, n, "mask", split, str(kind), seed)
            rows += [(kind, i) for i in drawn[:n]]
        return self._collated(split, rows)

    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        """Prompts with their objects, and texts; with `limit` the concept's first ones.

        The first prompts are of different facts.
        """
        pool = self._pool(split, (CONCEPT, OTHER, TEXT))
        if limit is not None:
            pool = self._pool(split, (CONCEPT,))
            check_limit(limit, len(pool), split)
            pool = pool[:limit]
        chosen = draw(len(pool), step, size, "finetune", split, seed)
        return self._collated(split, [pool[i] for i in chosen])

    def retain_batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Other facts and texts, drawn epoch by epoch.

        Raises:
            UserError: When the split has none.
        """
        pool = self._pool(split, (OTHER, TEXT))
        numbers = range(len(pool))
        chosen = draw_from(numbers, step, size, "without concept", split, seed)
        return self._collated(split, [pool[i] for i in chosen])

    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        """Every prompt and text once: concept, neighbours, other facts, texts."""
        pool = self._pool(split, (CONCEPT, NEAR, OTHER, TEXT))
        for piece in self.pieces(split, pool, size):
            yield self._collated(split, piece)

    def kinds(self, split: Split, examples: Sequence[Any]) -> Sequence[tuple[int, ...]]:
        """Prompts of the concept, neighbours, other facts and texts."""
        del split
        return [(kind,) for kind, _ in examples]

    def n_examples(self, split: Split) -> int:
        """Number of prompts and texts of a split, neighbours among them."""
        return len(self._pool(split, (CONCEPT, NEAR, OTHER, TEXT)))

    def _answers(self, batch: Batch) -> Bool[Tensor, "batch seq"]:
        return answer_positions(batch)

    def rivals(
        self, batch: Batch, where: Tensor
    ) -> Int[Tensor, "position rival"] | None:
        """What competes with each token of the concept's objects, repeated.

        In the objective `margin`, a sum over rivals, a repeated one counts repeatedly.
        """
        if not (where & batch["concept"]).any():
            return None
        rows, places = where.nonzero().unbind(1)
        return batch["rival_ids"][rows, places - batch["position"][rows]]

    def counted(self, batch: Batch) -> Bool[Tensor, "batch seq"]:
        """All tokens of all objects, and retained tokens."""
        return answer_positions(batch) | batch["retain"]

    def counts(
        self, model: nn.Module, batch: Batch
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Prompts: hits and probabilities; texts: summed nats and counts."""
        where, answers = self.counted(batch), answer_positions(batch)
        logits = self.logits(model, batch).float()
        nll = counted_nll(logits, batch, where)
        of_answers = self._of_answers(logits[answers[where]], batch, nll)
        counts: dict[str, Tensor] = {}
        for begin, kind in _GROUPS.items():
            rows = batch["kind"] == kind
            counts[f"{begin}prompts"] = rows.float()
            for name, values in of_answers.items():
                counts[f"{begin}{name}"] = values * rows
        is_text = batch["kind"] == TEXT
        retained = is_text if self._has_texts else batch["kind"] == OTHER
        words = batch["retain"] & (~answers if not self._reader.masked else True)
        for name, rows in (("retain", retained), ("template", ~is_text)):
            positions = words & rows[:, None]
            counts[f"{name}_nats"] = (nll * positions).sum(-1)
            counts[f"{name}_tokens"] = positions.sum(-1).float()
        return counts

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Accuracy, rank 1 and probability of the object, of each kind of prompt.

        `accuracy`: the object beats the other objects of its relation; `top1`: it has
        the highest logit of the whole vocabulary; `p_answer` and `log_p`: its mean
        probability and log-probability in nats, over all its tokens. Other facts and
        neighbours have the same scores after `other_` and `near_`.
        """
        scores = {
            f"{begin}{name}": share(counts[f"{begin}{name}"], counts[f"{begin}prompts"])
            for begin, kind in _GROUPS.items()
            if kind == CONCEPT or self._of_kind[kind].prompts
            for name in _SCORES
        }
        for name in ("retain", *["template"] * (not self._reader.masked)):
            nats, tokens = counts[f"{name}_nats"], counts[f"{name}_tokens"]
            scores[f"{name}_nll"] = share(nats, tokens)
        return scores

    def _of_answers(
        self,
        at_answers: Float[Tensor, "position vocab"],
        batch: Batch,
        nll: Float[Tensor, "batch seq"],
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Scores of every prompt by the tokens of its object; zero for texts."""
        answers = answer_positions(batch)
        rows, places = answers.nonzero().unbind(1)
        targets = batch["targets"][answers].unsqueeze(1)
        own = at_answers.gather(1, targets).squeeze(1)
        best = at_answers.scatter(1, targets, -torch.inf).amax(1)
        rival_ids = batch["rival_ids"][rows, places - batch["position"][rows]]
        competes = rival_ids[:, 0] != NO_RIVAL
        best_rival = at_answers.gather(1, rival_ids.clamp(min=0)).amax(1)
        lost = competes & (own <= best_rival)
        log_p = -(nll * answers).sum(-1)

        def none_of(where: Tensor) -> Tensor:
            n = torch.zeros_like(log_p).index_add(0, rows, where.float())
            return ((n == 0) & (batch["n_answer"] > 0)).float()

        return {
            "accuracy": none_of(lost),
            "top1": none_of(own <= best),
            "p_answer": log_p.exp() * (batch["n_answer"] > 0),
            "log_p": log_p,
        }

    def sampled_scores(
        self,
        model: nn.Module,
        cut: Callable[[], AbstractContextManager[Any]],
        *,
        seed: int,
    ) -> dict[str, float]:
        """Generation and multiple choice at the scored held-out prompts.

        `generated` (causal models): share of the prompts after which greedy decoding
        has the object within ten tokens, of each kind of prompt. `choice_accuracy`, of
        the concept and of other facts: the whole object is more probable than the wrong
        objects that the data name, else than three drawn ones of the relation;
        `choice_chance`: expected share of a guess.
        """
        del seed  # greedy
        scores: dict[str, float] = {}
        pool = self._pool("heldout", tuple(_GROUPS.values()))
        by_kind: dict[int, list[int]] = {}
        for kind, i in self.scored("heldout", pool):
            by_kind.setdefault(kind, []).append(
                self._division.numbers["heldout"][kind][i]
            )
        with evaluating(model), cut():
            for begin, kind in _GROUPS.items():
                numbers = by_kind.get(kind, [])
                if not self._reader.masked and numbers:
                    scores[f"{begin}generated"] = self._generated(model, kind, numbers)
                if kind != NEAR:
                    scores |= self._multiple_choice(model, begin, kind, numbers)
        return scores

    def _generated(self, model: nn.Module, kind: int, numbers: Sequence[int]) -> float:
        asked = self._of_kind[kind]
        hits = produced(
            model,
            [asked.prompts[i] for i in numbers],
            [asked.fact_of(i).object for i in numbers],
            self._tokenizer,
        )
        return sum(hits) / len(hits)

    def _multiple_choice(
        self, model: nn.Module, begin: str, kind: int, numbers: Sequence[int]
    ) -> dict[str, float]:
        """Accuracy and chance; nothing where no prompt has a wrong object."""
        asked = self._of_kind[kind]
        facts = (*self._corpus.concept, *self._corpus.others)
        questions = []
        for i in numbers:
            prompt, fact = asked.prompts[i], asked.fact_of(i)
            wrong = [
                other
                for name in wrong_objects(fact, facts, prompt.text)
                for other in self.asked_as(fact, name)
                if other.text == prompt.text and other.answer_ids != prompt.answer_ids
            ]
            if wrong:
                questions.append(Question(prompt, tuple(wrong)))
        if not questions:
            return {}
        right = chosen(model, questions, pad_id_of(self._tokenizer))
        chance = sum(question.chance for question in questions)
        return {
            f"{begin}choice_accuracy": sum(right) / len(right),
            f"{begin}choice_chance": chance / len(right),
        }

    def _pool(self, split: str, kinds: Sequence[int]) -> list[tuple[int, int]]:
        """Kind and number of the rows of a split."""
        return [
            (kind, i)
            for kind in kinds
            for i in range(len(self._rows_of_kind(split, kind)))
        ]

    def _rows_of_kind(self, split: str, kind: int) -> list[Row]:
        if kind == TEXT:
            if split not in self._text_rows:
                self._text_rows[split] = list(self._rows_of_texts(split))
            return self._text_rows[split]
        key = split, kind
        if key not in self._fact_rows:
            self._fact_rows[key] = self._rows_of_facts(split, kind)
        return self._fact_rows[key]

    def _rows_of_facts(self, split: str, kind: int) -> list[Row]:
        asked = self._of_kind[kind]
        elsewhere = self._division.objects_elsewhere(split)
        clusters = self._clusters()
        return [
            fact_row(
                asked.prompts[i],
                asked.rivals[i],
                kind=kind,
                cluster=clusters[asked.fact_of(i).entity],
                unseen=kind != CONCEPT or asked.fact_of(i).object not in elsewhere,
            )
            for i in self._division.numbers[split][kind]
        ]

    def _clusters(self) -> dict[str, int]:
        """A number for every subject: what the bootstrap resamples."""
        facts = (*self._corpus.concept, *self._corpus.others)
        subjects = dict.fromkeys(fact.entity for fact in facts)
        return {subject: number for number, subject in enumerate(subjects)}

    def _rows_of_texts(self, split: str) -> Iterator[Row]:
        texts = self._corpus.texts_of.get(split, ())
        n_more = 0 if self._reader.masked else 1
        first = len(self._corpus.concept) + len(self._corpus.others)
        for i, tokens in enumerate(self._reader.tokens(texts, n_more)):
            row = text_row(texts[i], tokens, self._reader, first + i, (0, 0))
            if row is not None:
                yield replace(row, numbers=text_numbers())

    def _collated(self, split: str, chosen: Sequence[tuple[int, int]]) -> Batch:
        rows = [self._rows_of_kind(split, kind)[i] for kind, i in chosen]
        batch = collate(rows, pad_id_of(self._tokenizer))
        tables = [
            padded_rivals(self._rivals_of(split, kind, i), *self._n_table)
            for kind, i in chosen
        ]
        batch["rival_ids"] = torch.from_numpy(np.stack(tables))
        objects = answer_positions(batch) & (batch["kind"] == OTHER)[:, None]
        batch["weights"] = batch["weights"] * (1 + (OTHER_WEIGHT - 1) * objects)
        return batch

    def _rivals_of(
        self, split: str, kind: int, i: int
    ) -> Sequence[Int[np.ndarray, "_rival"]]:
        if kind == TEXT:
            return ()
        return self._of_kind[kind].rivals[self._division.numbers[split][kind][i]]


def _largest(asked: Iterable[Asked]) -> tuple[int, int]:
    """Tokens of the longest object and most rivals of one, for tables of one shape."""
    of_prompts = [of for kind in asked for of in kind.rivals]
    n_answer = max(len(of) for of in of_prompts)
    return n_answer, max(1, *(len(ids) for of in of_prompts for ids in of))
