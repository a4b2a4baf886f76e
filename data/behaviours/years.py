"""Spans of years within a century: a correct end is above the start.

M. Hanna, O. Liu and A. Variengien (2023), "How does GPT-2 compute greater-than?",
https://arxiv.org/abs/2305.00586. How a year is written depends on the tokenizer, which
must make one token of what is asked for.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

from circuitcut.data.ioi.behaviours_generated import (
    CENTURIES,
    EVENTS,
    LAST_YEAR,
    years_prompt,
)
from circuitcut.data.ioi.generated import plain_sentences
from circuitcut.data.prompts.records import PromptRecord, PromptsCorpus, completed
from circuitcut.data.sampling import digest_of

Form = Literal["two_digits", "last_digit", "apart"]
FORMS: tuple[Form, ...] = ("two_digits", "last_digit", "apart")
"""`1732 to the year 17|45`, as published; `1732 to the year 173|5`, for tokenizers that
write digit by digit; `17 32 to the year 17 |45`, for tokenizers of whole words."""
FIRST_START = 2
CONTRAST_START = 1
"""Of the counterfactual prompt: nearly every end is right, as in the published
`01-dataset`."""
SPLIT_SIZES = {"base": 1200, "mask": 240, "tune": 80, "relearn": 120, "heldout": 160}
"""Prompts of each split; no start year of a century is in two of them."""
START_SHARES = {"mask": 0.25, "tune": 0.08, "relearn": 0.12, "heldout": 0.15}
N_TEXTS = {"base": 500, "mask": 160, "tune": 50, "relearn": 80, "heldout": 100}


@dataclass(frozen=True)
class YearSpan:
    """An event that began in a year, and two ends: a right one and a wrong one."""

    event: str
    century: int
    start: int
    """Within the century, from `FIRST_START` to 98."""
    end: int
    """Above `start`, at most 99."""
    wrong_end: int
    """From 1 to `start`."""

    def prompt(self, form: Form, start: int | None = None) -> str:
        """The text before what is asked for.

        Args:
            start: Another start, which only its last digit may tell from the span's if
                the last digit is asked for.
        """
        start = self.start if start is None else start
        if form == "apart":
            return years_prompt(self.event, self.century, start)
        decade = str(self.start // 10) if form == "last_digit" else ""
        return (
            f"The {self.event} lasted from the year {self.century}{start:02d} to the "
            f"year {self.century}{decade}"
        )

    def record(self, form: Form) -> PromptRecord:
        """The prompt with the right end as its answer and the wrong end as its rival.

        If the last digit is asked for, both ends are of the start's decade.
        """
        contrast = CONTRAST_START
        if form == "last_digit":
            contrast = self.start - self.start % 10
        return PromptRecord(
            self.prompt(form),
            written(self.right(form), form),
            continues=form != "apart",
            rivals=(written(self.wrong(form), form),),
            counterfactual=self.prompt(form, contrast),
            group=f"{self.century}{self.start:02d}",
            where=f"built-in data, a span from {self.century}{self.start:02d}",
            unseen=True,  # no other split has the start
        )

    def threshold(self, form: Form) -> int:
        """What is asked for is right above this."""
        return self.start % 10 if form == "last_digit" else self.start

    def right(self, form: Form) -> int:
        """A right end in what the form asks for."""
        if form != "last_digit":
            return self.end
        low = self.start % 10 + 1  # at most 9 in what can be asked
        return low + self.end % (10 - low)

    def wrong(self, form: Form) -> int:
        """A wrong end in what the form asks for."""
        if form != "last_digit":
            return self.wrong_end
        return self.wrong_end % (self.start % 10 + 1)

    def can_be_asked(self, form: Form) -> bool:
        """Whether some ends are right, and the counterfactual start is another."""
        return form != "last_digit" or 0 < self.start % 10 < 9


def written(year: int, form: Form) -> str:
    """A year within its century, or its last digit, as an answer."""
    return str(year) if form == "last_digit" else f"{year:02d}"


def ends(form: Form) -> range:
    """Everything that can be asked for."""
    return range(10) if form == "last_digit" else range(100)


@dataclass(frozen=True)
class YearsCorpus:
    """Spans and plain sentences by split."""

    spans: Mapping[str, tuple[YearSpan, ...]]
    sentences: Mapping[str, tuple[str, ...]]

    @property
    def labels(self) -> list[str] | None:
        """None: the task has no classes."""
        return None

    @property
    def records(self) -> Mapping[str, tuple[PromptRecord, ...]]:
        """The prompts as a tokenizer of whole words needs them, then the sentences."""
        return self.in_form("apart").records

    def in_form(self, form: Form) -> PromptsCorpus:
        """The prompts that can be asked in a form, each once, then the sentences."""
        return PromptsCorpus(
            {
                split: (
                    *(
                        dict.fromkeys(
                            s.record(form) for s in spans if s.can_be_asked(form)
                        )
                    ),
                    *(
                        PromptRecord(text, unseen=True)
                        for text in self.sentences[split]
                    ),
                )
                for split, spans in self.spans.items()
            }
        )

    def texts(self) -> list[str]:
        """Full texts of the `base` split, and the counterfactual prompts."""
        records = self.records["base"]
        return [
            *(completed(record) for record in records),
            *(r.counterfactual for r in records if r.counterfactual is not None),
        ]

    def fingerprint(self) -> str:
        """SHA-256 hex digest of every span and sentence."""
        return digest_of({**self.spans, "sentences": tuple(self.sentences.items())})


@lru_cache(maxsize=2)
def generate_years(seed: int) -> YearsCorpus:
    """The built-in corpus: every split has start years of its own."""
    rng = random.Random(f"years {seed}")
    starts = list(product(CENTURIES, range(FIRST_START, LAST_YEAR + 1)))
    rng.shuffle(starts)
    spans, first = {}, 0
    for split, share in START_SHARES.items():
        last = first + round(share * len(starts))
        spans[split] = tuple(_spans(rng, starts[first:last], SPLIT_SIZES[split]))
        first = last
    spans["base"] = tuple(_spans(rng, starts[first:], SPLIT_SIZES["base"]))
    sentences = {split: tuple(plain_sentences(rng, n)) for split, n in N_TEXTS.items()}
    return YearsCorpus({split: spans[split] for split in SPLIT_SIZES}, sentences)


def _spans(
    rng: random.Random, starts: list[tuple[int, int]], n: int
) -> Iterator[YearSpan]:
    """So many prompts with different events and starts, or all there are."""
    asked = list(product(EVENTS, starts))
    for event, (century, start) in rng.sample(asked, min(n, len(asked))):
        end, wrong = rng.randint(start + 1, 99), rng.randint(1, start)
        yield YearSpan(event, century, start, end, wrong)
