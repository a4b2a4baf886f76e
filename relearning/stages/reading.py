"""What every hidden unit of a model says: its score for the concept and its top words.

All units are read together, in two passes over the corpus: one for moments, one for
sums over word types. Lo et al. (2024), https://arxiv.org/abs/2401.01814: the score of a
word is the mean over its occurrences of the unit's |z-score|, divided by the largest
such mean; top words are the first five above .1. Departure: words that occur once are
left out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.attribution.words.moments import Moments
from circuitcut.attribution.words.states import WordSource, word_states
from circuitcut.models.sites import Site
from circuitcut.relearning.stages.vocabulary import NONE, Vocabulary

N_TOP = 5
LEAST = 0.1
"""Share of the highest score that a top word has at least."""


@dataclass(frozen=True)
class Reading:
    """All units of a model at one stage, the embedding level first."""

    score: Float[Tensor, "unit"]
    """Probeless, in the units of the activation; 0 for a constant unit."""
    effect: Float[Tensor, "unit"]
    """See `Moments.effect`: the score that is no rank."""
    is_constant: Bool[Tensor, "unit"]
    top_words: Int[Tensor, "unit place"] | None = None
    """Places in the vocabulary, the highest first, `NONE` where there are fewer; None
    where words are not read."""
    top_scores: Float[Tensor, "unit place"] | None = None
    """Score of each top word, 1 for the first; 0 where there is none."""

    def tensors(self) -> dict[str, Tensor]:
        """As a stage keeps them."""
        tensors = {
            "score": self.score.float(),
            "effect": self.effect.float(),
            "constant": self.is_constant,
        }
        if self.top_words is not None and self.top_scores is not None:
            tensors["top_words"] = self.top_words.to(torch.int32)
            tensors["top_scores"] = self.top_scores.float()
        return tensors


def read_units(
    source: WordSource,
    model: nn.Module,
    sites: tuple[Site, ...],
    vocabulary: Vocabulary | None,
    *,
    all_labels: bool = False,
) -> Reading:
    """Read all units of a model as it stands, with whatever mask is on.

    Args:
        vocabulary: That of the source; None reads no words.
        all_labels: Score by every pair of labels instead of the concept alone.

    Raises:
        UserError: When the split has no word of the concept, or no other word.
    """
    passes = word_states(source, model, sites, label="scores of the units")
    moments = Moments.over(passes)
    score = moments.probeless_labels() if all_labels else moments.probeless()
    is_constant = moments.std == 0
    reading = Reading(score, moments.effect(), is_constant)
    if vocabulary is None:
        return reading
    sums = _type_sums(source, model, sites, vocabulary, moments)
    words, scores = top_words_of(sums / vocabulary.counts[:, None], is_constant)
    return Reading(score, moments.effect(), is_constant, words, scores)


def top_words_of(
    means: Float[Tensor, "type unit"], is_constant: Bool[Tensor, "unit"]
) -> tuple[Int[Tensor, "unit place"], Float[Tensor, "unit place"]]:
    """The top words of every unit, and their scores; of equal words the first.

    Args:
        means: Mean |z-score| of every word.
        is_constant: Units that have no words.
    """
    highest = means.amax(0).clamp(min=torch.finfo(means.dtype).tiny)
    left, units = means / highest, torch.arange(means.shape[1])
    columns = []
    for _ in range(min(N_TOP, len(means))):
        place = left.argmax(0)  # the first of equal ones
        columns.append((place, left[place, units]))
        left[place, units] = -1.0
    words, scores = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    gone = (scores <= LEAST) | is_constant[:, None]
    words[gone], scores[gone] = NONE, 0.0
    return words, scores


def _type_sums(
    source: WordSource,
    model: nn.Module,
    sites: tuple[Site, ...],
    vocabulary: Vocabulary,
    moments: Moments,
) -> Float[Tensor, "type unit"]:
    """Sum of |z-score| over the occurrences of every word, float32 on the CPU."""
    mean, std = moments.mean.float(), moments.std.float()
    scale = torch.where(std > 0, 1 / std.clamp(min=1e-30), 0.0)
    sums = torch.zeros(len(vocabulary.words), len(mean))
    passes = word_states(source, model, sites, label="words of the units")
    for words, states in passes:
        places = vocabulary.places(words)
        known = places != NONE
        z = ((states.cpu()[known] - mean) * scale).abs()
        sums.index_add_(0, places[known], z)
    return sums
