"""A token task over fixed random rows, and a linear model on which effects add up."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from circuitcut.masks.ablation import (
    AblationValues,
    mean_values,
    record_values,
    zero_values,
)
from circuitcut.masks.gating import gated
from circuitcut.models.sites import Site
from circuitcut.tasks.base import Batch, Metric, Predictions, Split, Task, TaskOptions
from circuitcut.training.objectives import margin

N_TOKENS, N_SPECIAL, SEQ = 12, 2, 5
SPECIAL_IDS = (0, 1)


class ToyTask(Task):
    """Row `i` is the same whatever batch it is in; token 5 and above is the concept."""

    name = "toy"
    head = "token_classification"
    concept_metric = retain_metric = Metric("accuracy", True, "fraction")

    def __init__(self, corpus: Any = 2, tokenizer: Any = None, options: Any = None):
        self.n_classes = corpus
        self.first_concept = 5

    @classmethod
    def read(cls, options: TaskOptions) -> Any:
        raise NotImplementedError

    def rows(self, start: int, size: int) -> Batch:
        ids = torch.stack([_row(start + i) for i in range(size)])
        real = ids >= N_SPECIAL
        concept = real & (ids >= self.first_concept)
        return {
            "input_ids": ids,
            "targets": torch.where(concept, 0, ids % self.n_classes),
            "concept": concept,
            "retain": real & ~concept,
            "weights": 1.0 + (ids % 3),
            "real": real,
        }

    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        return self.rows(1000 * seed + step * size, size)

    def counterfactual(self, batch: Batch) -> Batch:
        return batch | {"input_ids": (batch["input_ids"] + 3) % N_TOKENS}

    def concept_classes(self, batch: Batch, where: Tensor) -> Tensor:
        return torch.zeros(int(where.sum()), 1, dtype=torch.long)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"input_ids": batch["input_ids"]}

    def finetune_batch(self, *args: Any, **kwargs: Any) -> Batch:
        raise NotImplementedError

    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        raise NotImplementedError

    def counts(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        raise NotImplementedError

    def n_examples(self, split: Split) -> int:
        raise NotImplementedError


class DoubleTask(ToyTask):
    """Its logits are not rounded to single precision, as those of tasks are."""

    def _predictions(self, logits: Tensor, batch: Batch, where: Tensor) -> Predictions:
        rounded = super()._predictions(logits, batch, where)
        return replace(rounded, logits=logits[where[self.counted(batch)]])


@lru_cache(maxsize=4096)
def _row(number: int) -> Tensor:
    rng = torch.Generator().manual_seed(number)
    return torch.randint(N_TOKENS, (SEQ,), generator=rng)


class LinearTokens(nn.Module):
    """Embedding, linear, a mean over the sequence added, linear: no non-linearity.

    With two classes the margin is a difference of logits, so effects of units add up.
    """

    def __init__(self, n_classes: int = 2, width: int = 6, *, relu: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(N_TOKENS, 4)
        self.first = nn.Linear(4, width)
        self.act = nn.ReLU() if relu else nn.Identity()
        self.second = nn.Linear(width, n_classes)
        self.double().requires_grad_(False)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        x = self.act(self.first(self.embedding(input_ids)))
        return SimpleNamespace(logits=self.second(x + x.mean(1, keepdim=True)))


SITES = {
    "neurons": Site("neurons", "second", 0, 6),
    "heads": Site("heads", "second", 0, 3, 2),
    "hidden": Site("hidden", "first", 0, 6),
    "weights": Site("weights", "first", 0, 24),
}


def ablation(
    kind: str, task: ToyTask, model: nn.Module, sites: list[Site]
) -> AblationValues:
    if kind == "zero":
        return zero_values(sites)
    batches = [task.rows(i, 8) for i in (50, 60)]
    if kind == "counterfactual":  # only the kind is read; each batch has its own values
        return record_values(model, sites, task.inputs(batches[0]))
    return mean_values(model, sites, [(task.inputs(b), b["real"]) for b in batches])


def mean_margin(
    task: ToyTask,
    model: nn.Module,
    sites: list[Site],
    keep: Mapping[str, Tensor],
    ablated: AblationValues,
    *,
    n_batches: int,
    size: int,
    special_ids: tuple[int, ...] = (),
) -> float:
    """Weighted mean margin under gates `keep`, by running the cut model."""
    total = weight = 0.0
    for step in range(n_batches):
        batch = task.batch("mask", step, size=size, seed=0)
        if ablated.kind == "counterfactual":
            paired = task.inputs(task.counterfactual(batch))
            ablated = record_values(model, sites, paired)
        with (
            torch.no_grad(),
            gated(model, sites, keep, ablated, special_ids=special_ids),
        ):
            logits = model(**task.inputs(batch)).logits
        where = batch["concept"]
        weights = batch["weights"][where]
        classes = task.concept_classes(batch, where)
        values = margin(logits[where], classes, None)
        total += (weights * values).sum().item()
        weight += weights.sum().item()
    return total / weight
