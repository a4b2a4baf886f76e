"""Task of a planted circuit: the answer at the last position of random sequences."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from circuitcut.tasks.base import Batch, Metric, Split, Task, TaskOptions

Draw = Callable[[int, torch.Generator], tuple[Tensor, ...]]
"""Function from (number of examples, generator) to token ids (example, seq) and answers
(example,). If some examples are to be retained, it also returns bools (example,), True
for the examples of the concept."""

_EXAMPLES = 64
_PAIRED = 500_000_000
_SPLITS = {"base": 0, "mask": 1, "tune": 2, "relearn": 3, "heldout": 4}


class PlantedTask(Task):
    """The answers are the concept, unless the circuit has a second behaviour."""

    name = "planted"
    head = "causal_lm"
    concept_metric = Metric("accuracy", True, "fraction")
    retain_metric = Metric("retained", True, "fraction")

    def __init__(self, corpus: Draw, tokenizer: Any = None, options: Any = None):
        del tokenizer, options
        self.draw = corpus

    @classmethod
    def read(cls, options: TaskOptions) -> Any:
        raise NotImplementedError("a planted task is made from its circuit")

    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        return self._drawn(size, (seed * 5 + _SPLITS[split]) * 20_011 + step)

    def _drawn(self, size: int, number: int) -> Batch:
        ids, answers, *marks = self.draw(size, torch.Generator().manual_seed(number))
        paired = self.draw(size, torch.Generator().manual_seed(number + _PAIRED))[0]
        is_concept = marks[0][:, None] if marks else torch.ones(size, 1).bool()
        targets = torch.full_like(ids, -100)
        targets[:, -1] = answers
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        return {
            "input_ids": ids,
            "paired_ids": paired,
            "targets": targets,
            "concept": (targets >= 0) & is_concept,
            "retain": (targets >= 0) & ~is_concept,
            "weights": everywhere.float(),
            "real": everywhere,
            "cluster": torch.arange(size),
            "unseen": everywhere[:, 0],
        }

    def counterfactual(self, batch: Batch) -> Batch:
        return batch | {"input_ids": batch["paired_ids"]}

    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        for start in range(0, _EXAMPLES, size):
            yield self._drawn(
                min(size, _EXAMPLES - start),
                400_000_000 + 1000 * _SPLITS[split] + start,
            )

    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        del limit
        return self.batch(split, step, size=size, seed=seed)

    def counts(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = self.logits(model, batch).unflatten(0, batch["input_ids"].shape)
        predictions = logits[:, -1].argmax(-1)
        correct = (predictions == batch["targets"][:, -1]).float()
        n = batch["concept"][:, -1].float()
        return {
            "right": correct * n,
            "n": n,
            "retain_right": correct * (1 - n),
            "retain_n": 1 - n,
        }

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        return {
            "accuracy": float(counts["right"] / counts["n"]),
            "retained": float(counts["retain_right"] / counts["retain_n"]),
        }

    def n_examples(self, split: Split) -> int:
        return _EXAMPLES


class GuessedTask(PlantedTask):
    """A task whose answer is one of six values, so that chance is 1/6."""

    concept_metric = Metric("accuracy", True, "fraction", chance=1 / 6)
