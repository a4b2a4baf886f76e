"""A small judge of toxicity: TF-IDF of words and pairs, and logistic regression."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from circuitcut.data.text.files import TOXIC_FROM
from circuitcut.storage.errors import UserError

Scorer = Callable[[Sequence[str]], np.ndarray]
"""Texts to whether each is toxic, `(text,)` bools."""
MAX_PER_CLASS = 10_000
DETOXIFY_BATCH = 64


def fit_classifier(toxic: Sequence[str], other: Sequence[str]) -> Scorer:
    """The classifier, with both classes weighted alike.

    Args:
        toxic: Toxic texts; at most 10,000 are used.
        other: Texts that are not, at most 10,000 of them.
    """
    # scikit-learn takes over a second to import, and only sampling needs it
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


def detoxify_scorer() -> Scorer:
    """Detoxify's `original` model (Hanu & Unitary 2020), toxic from a score of .5 on.

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
    """Accuracy and balanced accuracy on texts that it was not fitted on."""
    hits = scorer(toxic)
    rejections = ~scorer(other)
    right = int(hits.sum() + rejections.sum())
    return {
        "classifier_accuracy": right / (len(hits) + len(rejections)),
        "classifier_balanced_accuracy": float((hits.mean() + rejections.mean()) / 2),
    }
