"""Measures of an edited fact, from what a model gives its old and its new object.

Success, success@5, gains of rank and probability, MRR: D. Dai et al. (2022), "Knowledge
Neurons in Pretrained Transformers", https://arxiv.org/abs/2104.08696. Paraphrases and
neighbours, which compare the two objects alone: K. Meng et al. (2022), "Locating and
Editing Factual Associations in GPT", https://arxiv.org/abs/2202.05262.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from jaxtyping import Float
from torch import Tensor

TOP = 5


@dataclass(frozen=True)
class Told:
    """What a model gives both objects at one prompt."""

    p_old: float
    p_new: float
    rank_old: int
    """In the whole vocabulary; 1 is the highest."""
    rank_new: int


def told(logits: Float[Tensor, "prompt vocab"], old: int, new: int) -> list[Told]:
    """Probabilities and ranks of two tokens at every prompt.

    A rank is one more than the number of higher logits.
    """
    p = logits.double().softmax(-1)
    ranks = [(logits > logits[:, [token]]).sum(-1) + 1 for token in (old, new)]
    columns = (p[:, old], p[:, new], *ranks)
    return [
        Told(p_old, p_new, int(rank_old), int(rank_new))
        for p_old, p_new, rank_old, rank_new in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def measures(
    prompt: Told, paraphrases: Sequence[Told], neighbours: Sequence[Told]
) -> dict[str, float]:
    """Measures of one fact, before or after its edit.

    Returns:
        At the prompt: `changed` (the old object has not rank 1), `success` (the new one
        has), `success_at_5`, `prefers_target` (the new one is more probable than the
        old one), `reciprocal_rank`, `rank` and `probability` of the new one.
        `paraphrase_success`: share of the paraphrases at which the new object is more
        probable; `neighbourhood_success`: share of the neighbours, of which the old
        object is true, at which the old one is. Without any, the two are left out.
    """
    found = {
        "changed": float(prompt.rank_old > 1),
        "success": float(prompt.rank_new == 1),
        "success_at_5": float(prompt.rank_new <= TOP),
        "prefers_target": float(prompt.p_new > prompt.p_old),
        "reciprocal_rank": 1 / prompt.rank_new,
        "rank": float(prompt.rank_new),
        "probability": prompt.p_new,
    }
    if paraphrases:
        found["paraphrase_success"] = fmean(p.p_new > p.p_old for p in paraphrases)
    if neighbours:
        found["neighbourhood_success"] = fmean(p.p_old > p.p_new for p in neighbours)
    return found
