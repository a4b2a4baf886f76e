"""Attributes rates of a study: which subjects, their words, clean beside ablated."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuitcut.data.facts.files import read_facts
from circuitcut.data.facts.records import Fact
from circuitcut.data.facts.subject_words import (
    Words,
    common_words,
    counts_as_word,
    read_subject_words,
    words_of_facts,
    words_of_paragraphs,
)
from circuitcut.data.prompts.records import MASK
from circuitcut.data.text.files import read_retained
from circuitcut.experiments.class_effects.flags import ClassEffectsFlags
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loaded import LoadedModel
from circuitcut.storage.errors import UserError
from circuitcut.storage.progress import shown
from circuitcut.storage.statistics.student_t import mean_and_interval
from circuitcut.weight_classes.checkpoint import Checkpoint
from circuitcut.weight_classes.tokens.attributes_rate import (
    NamedSubject,
    Vocabulary,
    nearest_words,
    rates,
)
from circuitcut.weight_classes.vocabulary import unembedding

Name = tuple[str, int | None, str]
NO_WORDS = "without words"
NO_SUBJECT = "whose prompt does not name them"
AT_FIRST = "of one token at the first position, which stays uncut"


@dataclass(frozen=True)
class Subjects:
    """The subjects of a run, and how many of the data were left out, by reason."""

    subjects: tuple[NamedSubject, ...]
    left_out: Mapping[str, int]
    common: frozenset[str] = frozenset()
    """Words of the corpus that count as stop words."""


def subjects_of(config: ClassEffectsFlags, loaded: LoadedModel) -> Subjects:
    """At most `n_subjects` subjects in an order drawn with the seed.

    Raises:
        UserError: When a file cannot be read, or no subject is left.
    """
    assert config.subjects is not None
    facts, _ = read_facts(config.subjects)
    of_subject = {fact.subject: fact for fact in reversed(facts)}  # its first fact
    names = list(dict.fromkeys(fact.subject for fact in facts))
    random.Random(config.seed).shuffle(names)
    words, common = _words(config, facts, names)
    left_out = Counter[str]()
    found: list[NamedSubject] = []
    for name in names:
        if len(found) == config.n_subjects:
            break
        ids = _ids(of_subject[name], loaded.tokenizer) if words.get(name) else None
        if not words.get(name):
            left_out[NO_WORDS] += 1
        elif ids is None:
            left_out[NO_SUBJECT] += 1
        elif len(ids) == 1 and config.positions == "words":
            left_out[AT_FIRST] += 1
        else:
            found.append(NamedSubject(name, ids, words[name]))
    if not found:
        why = "; ".join(f"{n:,} {reason}" for reason, n in left_out.items())
        raise UserError(
            f"--subjects {config.subjects} has no subject to measure: {why}; give "
            "--subject_words or --subject_corpus with words of these subjects"
        )
    return Subjects(tuple(found), dict(left_out), common)


def _words(
    config: ClassEffectsFlags, facts: list[Fact], names: list[str]
) -> tuple[Words, frozenset[str]]:
    """The words of every subject, and those that are too common to be anyone's."""
    if config.subject_words is not None:
        return read_subject_words(config.subject_words), frozenset()
    if config.subject_corpus is not None:
        records = read_retained(config.subject_corpus, config.text_column)
        paragraphs = [record.text for record in records]
        # as many again, for those whose prompt does not name them
        words = words_of_paragraphs(names[: 2 * config.n_subjects], paragraphs)
        common = common_words(paragraphs, config.subject_common)
        return {name: found - common for name, found in words.items()}, common
    return words_of_facts(facts), frozenset()


def _ids(fact: Fact, tokenizer: Any) -> tuple[int, ...] | None:
    """A prompt's tokens up to the subject's last one; None: it is not named."""
    for prompt in fact.prompts:
        start = prompt.find(fact.subject)
        if start < 0 or MASK in prompt[:start]:
            continue
        tokens = tokenizer(prompt, return_offsets_mapping=True)
        stop = start + len(fact.subject)
        inside = [
            place
            for place, (first, last) in enumerate(tokens.offset_mapping)
            if first < stop and last > start
        ]
        if inside:
            return tuple(tokens.input_ids[: inside[-1] + 1])
    return None


def attributes(
    config: ClassEffectsFlags,
    loaded: LoadedModel,
    checkpoint: Checkpoint,
    subjects: Subjects,
    masks: Mapping[Name, FrozenMask],
) -> dict[str, Any]:
    """The entry `attributes` of results.json.

    Costs one pass over the subjects' prompts for the clean model and each mask.
    """
    tokenizer: Any = loaded.tokenizer
    vectors = unembedding(checkpoint, config.convention)
    tokens = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    tokens += [""] * (len(vectors) - len(tokens))  # rows that pad the matrix
    vocabulary = Vocabulary.of(
        vectors,
        tokens,
        lambda word: counts_as_word(word) and word not in subjects.common,
    )

    def nearest() -> list[list[list[str]]]:
        return nearest_words(
            loaded.model, subjects.subjects, vocabulary, n_top=config.n_top
        )

    words = [subject.words for subject in subjects.subjects]
    of_clean = nearest()
    clean = rates(of_clean, words)
    of_others = rates(of_clean, [*words[1:], *words[:1]])  # those of the next subject
    ablated: dict[tuple[str, str], list[np.ndarray]] = {}
    named = shown(masks.items(), "attributes rates", unit="ablation")
    for (of_set, _, when), mask in named:
        with mask.applied(loaded.model):
            ablated.setdefault((of_set, when), []).append(rates(nearest(), words))
    return {
        "source": config.source_of_words,
        "n_subjects": len(subjects.subjects),
        "left_out": dict(subjects.left_out),
        "words_of_a_subject": float(np.mean([len(own) for own in words])),
        "n_top": config.n_top,
        "n_common_words": len(subjects.common),
        "clean": [
            _layer(n, [column])
            | {"of_others": _layer(n, [others])["rate"]}
            | _beside_others(column - others)
            for n, (column, others) in enumerate(zip(clean.T, of_others.T, strict=True))
        ],
        "effects": [
            {
                "set": of_set,
                "when": when,
                "n_draws": len(draws) if of_set != "class" else 0,
                "layers": [
                    _layer(n, [draw.T[n] for draw in draws])
                    | _difference(clean.T[n], [draw.T[n] for draw in draws])
                    for n in range(clean.shape[1])
                ],
            }
            for (of_set, when), draws in ablated.items()
        ],
    }


def _beside_others(differences: np.ndarray) -> dict[str, Any]:
    """How far the rate is above that of the next subject's words, over subjects."""
    mean, interval = mean_and_interval([_mean([value]) for value in differences])
    return {"above_others": mean, "above_others_interval": interval}


def _layer(layer: int, columns: list[np.ndarray]) -> dict[str, Any]:
    """Mean rate over subjects and draws, with the interval over subjects."""
    with np.errstate(all="ignore"):
        by_subject = [_mean(values) for values in zip(*columns, strict=True)]
    mean, interval = mean_and_interval(by_subject)
    n = sum(value is not None for value in by_subject)
    return {"layer": layer, "n": n, "rate": mean, "interval": interval}


def _difference(clean: np.ndarray, columns: list[np.ndarray]) -> dict[str, Any]:
    """Ablated minus clean: of one set over subjects, of several draws over draws."""
    changes = [column - clean for column in columns]
    if len(changes) == 1:
        numbers = [_mean([change]) for change in changes[0]]
    else:
        numbers = [_mean(change.tolist()) for change in changes]
    mean, interval = mean_and_interval(numbers)
    return {"difference": mean, "difference_interval": interval}


def _mean(values: Any) -> float | None:
    """Mean of the numbers that are defined; None without any."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else None
