"""Generated facts about invented countries: prompts that ask for their capitals.

Retained are sentences about places, things and weather. A second fact about the same
countries is not among them: in a model of two layers the same heads look up both.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from circuitcut.data.ioi.generated import plain_sentences
from circuitcut.data.prompts.records import (
    PromptRecord,
    PromptsCorpus,
    with_further_texts,
)
from circuitcut.data.prompts.splits import split_prompts
from circuitcut.data.text.records import TextRecord
from circuitcut.data.text.splits import split_retained

N_COUNTRIES = 100
N_RIVALS = 3
N_PLAIN = 700
_STARTS = ("Bal", "Cor", "Dun", "Fer", "Gal", "Hel", "Jun", "Kar", "Lor", "Mor", "Nal")
_MIDDLES = ("a", "e", "i", "o", "u", "ar", "en", "il", "on", "us")
_COUNTRY_ENDS = ("dia", "land", "mark", "nia", "stan")
_CAPITAL_ENDS = ("burg", "gate", "polis", "ton", "ville")
CAPITAL_TEMPLATES = (
    "The capital of {} is",
    "The parliament of {} meets in",
    "The king of {} lives in",
    "Most embassies in {} are in",
    "All roads of {} lead to",
    "Every law of {} is signed in",
)


@lru_cache(maxsize=2)
def generate_facts(seed: int) -> PromptsCorpus:
    """The built-in corpus; prompts of different splits have different countries.

    Every prompt has three wrong capitals as rivals, and the same prompt about another
    country as its counterfactual, both of its own split. `base` has all prompts and all
    texts.
    """
    rng = random.Random(f"facts {seed}")
    stems = [f"{start}{middle}" for start in _STARTS for middle in _MIDDLES]
    countries, capitals = (
        _names(rng, stems, ends) for ends in (_COUNTRY_ENDS, _CAPITAL_ENDS)
    )
    prompts = [
        PromptRecord(
            template.format(country),
            capital,
            group=country,
            where=f"built-in data, prompt about {country}",
        )
        for country, capital in zip(countries, capitals, strict=True)
        for template in CAPITAL_TEMPLATES
    ]
    records = [TextRecord(text, "wiki") for text in plain_sentences(rng, N_PLAIN)]
    texts = split_retained(records, seed=seed) | {"base": records}
    corpus = split_prompts(prompts, seed=seed)
    paired: dict[str, PromptRecord] = {}
    for split in ("mask", "tune", "relearn", "heldout"):
        paired |= _with_rivals(rng, corpus.records[split])
    corpus = PromptsCorpus(
        {
            split: tuple(paired[record.text] for record in rows)
            for split, rows in corpus.records.items()
        }
    )
    return with_further_texts(corpus, texts)


def _names(rng: random.Random, stems: Sequence[str], ends: Sequence[str]) -> list[str]:
    return [f"{stem}{rng.choice(ends)}" for stem in rng.sample(stems, N_COUNTRIES)]


def _with_rivals(
    rng: random.Random, records: Sequence[PromptRecord]
) -> dict[str, PromptRecord]:
    """The prompts by their text, with other countries of the same split."""
    capitals = {record.group: record.answer for record in records}
    paired: dict[str, PromptRecord] = {}
    for record in records:
        countries = [country for country in capitals if country != record.group]
        other, *wrong = rng.sample(countries, N_RIVALS + 1)
        paired[record.text] = replace(
            record,
            rivals=tuple(capitals[country] for country in wrong),
            counterfactual=record.text.replace(record.group, other),
        )
    return paired
