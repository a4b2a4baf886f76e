"""What tasks whose prompts have an answer share: answers weigh more in training."""

from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.tasks.base import Batch, Task

ANSWER_WEIGHT = 4.0
"""Weight of an answer in training; other tokens have weight 1. With weight 1 for the
answers too, a small model gives both names of an IOI prompt the same probability for
hundreds of steps."""


class AnswerTask(Task):
    """A language-model task; the concept's positions are those of the answers."""

    def target_weights(self, batch: Batch) -> Float[Tensor, "batch seq"]:
        """`ANSWER_WEIGHT` for answers, 1 for other targets."""
        answers = 1 + (ANSWER_WEIGHT - 1) * self._answers(batch)
        return super().target_weights(batch) * answers

    def _answers(self, batch: Batch) -> Bool[Tensor, "batch seq"]:
        return batch["concept"]
