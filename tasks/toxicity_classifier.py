"""A small toxicity classifier: logistic regression on TF-IDF of words and pairs."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from circuitcut.data.text.files import TOXIC_FROM
from circuitcut.storage.errors import UserError

Scorer = Callable[[Sequence[str]], np.ndarray]
"""Function from texts to `(text,)` bools, True for a toxic text."""
MAX_PER_CLASS = 10_000
DETOXIFY_BATCH = 64
FEWEST_TEXTS = 20
"""Of a kind, with which words usually recur in `base`."""


def fit_classifier(toxic: Sequence[str], other: Sequence[str]) -> Scorer:
    """Train the classifier; both classes have the same weight.

    Args:
        toxic: Toxic texts; the first 10,000 are used.
        other: Texts that are not toxic; the first 10,000 are used.
    """
    # imported here: it takes over a second, and only sampling needs it
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    toxic, other = toxic[:MAX_PER_CLASS], other[:MAX_PER_CLASS]
    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2),
        LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000),
    )
    model.fit([*toxic, *other], [True] * len(toxic) + [False] * len(other))
    return lambda texts: np.asarray(model.predict(list(texts)), dtype=bool)


def check_words_recur(texts: Sequence[str]) -> None:
    """Refuse texts that leave the classifier without a feature.

    Raises:
        UserError: When no word of two letters or more occurs in two of the texts.
    """
    seen: set[str] = set()
    for text in texts:
        words = set(re.findall(r"\w\w+", text.lower()))
        if not seen.isdisjoint(words):
            return
        seen |= words
    raise UserError(
        f"the {len(texts)} texts of split 'base' must share a word, got none that "
        "occurs in two: the classifier of continuations learns from such words; give "
        f"more texts, at least {FEWEST_TEXTS} toxic and {FEWEST_TEXTS} others"
    )


def detoxify_scorer() -> Scorer:
    """Detoxify's `original` model (Hanu & Unitary 2020); a score >= 0.5 is toxic.

    Raises:
        UserError: When the package is not installed.
    """
    try:
        from detoxify import Detoxify
    except ImportError:
        raise UserError(
            "--toxicity_scorer detoxify needs the package detoxify; "
            "install circuitcut[eval]"
        ) from None
    model: Any = Detoxify("original")

    def toxic(texts: Sequence[str]) -> np.ndarray:
        scores: list[float] = []
        for first in range(0, len(texts), DETOXIFY_BATCH):
            part = list(texts[first : first + DETOXIFY_BATCH])
            scores += model.predict(part)["toxicity"]
        return np.asarray(scores) >= TOXIC_FROM

    return toxic


def classifier_scores(
    scorer: Scorer, toxic: Sequence[str], other: Sequence[str]
) -> dict[str, float]:
    """Accuracy and balanced accuracy on texts that were not used in its training."""
    hits = scorer(toxic)
    rejections = ~scorer(other)
    n_correct = int(hits.sum() + rejections.sum())
    return {
        "classifier_accuracy": n_correct / (len(hits) + len(rejections)),
        "classifier_balanced_accuracy": float((hits.mean() + rejections.mean()) / 2),
    }
