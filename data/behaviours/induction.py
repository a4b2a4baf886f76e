"""Random words written twice: in the second half every word can be copied.

C. Olsson et al. (2022), "In-context Learning and Induction Heads",
https://arxiv.org/abs/2209.11895. The counterfactual prompt has another first half, in
which the last word of the prompt does not occur. Departure: words and first names, each
one token behind a space in most tokenizers, in place of random tokens.
"""

import random
from collections.abc import Sequence
from functools import lru_cache

from circuitcut.data.ioi.behaviours_generated import WORDS
from circuitcut.data.ioi.generated import plain_sentences
from circuitcut.data.ioi.words import NAMES
from circuitcut.data.prompts.records import PromptRecord, PromptsCorpus

N_WORDS = 6
"""Different words of a prompt; the chance level is one in so many."""
LEAD = "Words:"
"""Stands before the first word, so that each has a space before it."""
SPLIT_SIZES = {"base": 1500, "mask": 240, "tune": 80, "relearn": 120, "heldout": 160}
WORD_SHARES = {"mask": 0.35, "tune": 0.16, "relearn": 0.24, "heldout": 0.25}
"""Share of the words in each split, which share none; `base` has all of them."""
N_TEXTS = {"base": 500, "mask": 160, "tune": 50, "relearn": 80, "heldout": 100}


@lru_cache(maxsize=2)
def generate_induction(seed: int) -> PromptsCorpus:
    """The built-in corpus; the splits (except `base`) share no word."""
    rng = random.Random(f"induction {seed}")
    words = [*WORDS, *NAMES]
    rng.shuffle(words)
    groups, first = {"base": words}, 0.0
    for split, share in WORD_SHARES.items():
        last = first + share * len(words)
        groups[split] = words[round(first) : round(last)]
        first = last
    return PromptsCorpus(
        {
            split: (
                *dict.fromkeys(_prompt(rng, groups[split]) for _ in range(n)),
                *(
                    PromptRecord(text, unseen=True)
                    for text in plain_sentences(rng, N_TEXTS[split])
                ),
            )
            for split, n in SPLIT_SIZES.items()
        }
    )


def _prompt(rng: random.Random, words: Sequence[str]) -> PromptRecord:
    """Words, and the first of them again up to a random place."""
    drawn = rng.sample(words, 2 * N_WORDS)
    written, others = drawn[:N_WORDS], drawn[N_WORDS:]
    n_again = rng.randint(1, N_WORDS - 1)
    again, answer = written[:n_again], written[n_again]
    return PromptRecord(
        " ".join([LEAD, *written, *again]),
        answer,
        rivals=tuple(word for word in written if word != answer),
        counterfactual=" ".join([LEAD, *others, *again]),
        where=f"built-in data, a list with {answer}",
        unseen=True,  # no other split has its words
    )
