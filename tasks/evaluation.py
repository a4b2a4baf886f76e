"""Scores of a model, cut or not, on a split, with intervals over its documents."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating
from circuitcut.tasks.base import Batch, Outputs, Predictions, Split, Task, to_device
from circuitcut.tasks.span_counts import ratio

BEHAVIOURS = ("concept", "retain")
OF_CONCEPT = "of_concept_"
_RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split and the per-example counts they come from."""

    scores: dict[str, float]
    unseen_scores: dict[str, float]
    """The same over the examples whose entities occur in no other split."""
    counts: dict[str, Float[Tensor, "example"]]
    clusters: Int[Tensor, "example"]
    """Document of each example: what the bootstrap resamples."""
    unseen: Bool[Tensor, "example"]
    n_examples: int


PositionScore = Callable[[Predictions], Float[Tensor, "position"]]

Cut = Callable[[Batch], AbstractContextManager[Any]]
"""Makes the context in which the model is cut for one batch (on the model's device)."""


@dataclass
class References:
    """The uncut model's outputs on the batches of one split, kept from cut to cut.

    Give the same object to evaluations of one task, model, split and size alone.
    """

    outputs: list[Outputs] = field(default_factory=list)
    bytes_left: int = 2 * 1024**3
    """Logits of later batches are computed anew once this memory is used."""

    def of(self, number: int, compute: Callable[[], Outputs]) -> Outputs:
        """The outputs of batch `number`, kept or computed."""
        if number < len(self.outputs):
            return self.outputs[number]
        found = compute()
        size = sum(p.logits.nbytes for p in (found.concept, found.retain))
        if number == len(self.outputs) and size <= self.bytes_left:
            self.outputs.append(found)
            self.bytes_left -= size
        return found


def uncut(batch: Batch) -> AbstractContextManager[Any]:
    """No cut at all."""
    del batch
    return nullcontext()


def evaluate(
    task: Task,
    model: nn.Module,
    split: Split,
    *,
    size: int = 64,
    cut: Cut = uncut,
    reference: bool | References = False,
    of_concept: Mapping[str, PositionScore] | None = None,
    limit: int | None = None,
) -> Evaluation:
    """Scores of `model` inside `cut` on every example of `split`, in eval mode.

    Args:
        task: The data and what doing it means.
        model: Left in the mode in which it came.
        split: Which examples.
        size: Examples a forward pass; the scores do not depend on it.
        cut: Makes the context in which the model is cut; none by default.
        reference: Run the uncut model too and add `kl_concept` and `kl_retain`, the
            mean KL(uncut || cut) in nats per position. `References` keeps its outputs
            for the next call.
        of_concept: Further scores by name: their means over the concept's positions.
        limit: Stop after that many examples.

    Raises:
        UserError: When the split is empty.
    """
    device = next(model.parameters()).device
    references = reference if isinstance(reference, References) else References()
    counts: dict[str, list[Tensor]] = {}
    clusters, unseen, n_examples = [], [], 0
    with evaluating(model):
        batches = task.evaluation_batches(split, size=size)
        for number, batch in enumerate(batches):
            if limit is not None and n_examples >= limit:
                break
            if limit is not None:
                batch = {
                    key: value[: limit - n_examples] for key, value in batch.items()
                }
            n_examples += len(batch["cluster"])
            clusters.append(batch["cluster"])
            unseen.append(batch["unseen"])
            with torch.no_grad():
                moved = to_device(batch, device)
                counted, ablated = _counts(
                    task, model, moved, cut, bool(reference) or bool(of_concept)
                )
                for name, score in (of_concept or {}).items():
                    assert ablated is not None
                    values = score(ablated.concept)
                    counted[OF_CONCEPT + name] = _per_example(moved, "concept", values)
                    counted["concept_positions"] = _per_example(
                        moved, "concept", torch.ones_like(values)
                    )
                if ablated is not None and reference:
                    whole = references.of(number, partial(task.outputs, model, moved))
                    counted |= _divergences(moved, whole, ablated)
            for name, value in counted.items():
                counts.setdefault(name, []).append(value.double().cpu())
    if not n_examples:
        raise UserError(f"split {split!r} of task {task.name!r} has no examples")
    joined = {name: torch.cat(values) for name, values in counts.items()}
    is_unseen = torch.cat(unseen).bool()
    return Evaluation(
        scores=_scores(task, {name: value.sum() for name, value in joined.items()}),
        unseen_scores=_scores(
            task, {name: value[is_unseen].sum() for name, value in joined.items()}
        )
        if is_unseen.any()
        else {},
        counts=joined,
        clusters=torch.cat(clusters),
        unseen=is_unseen,
        n_examples=n_examples,
    )


def bootstrap(
    task: Task,
    evaluation: Evaluation,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    unseen: bool = False,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of every score, resampling whole clusters (documents).

    Args:
        task: What turns counts into scores.
        evaluation: Counts per example.
        n_resamples: Resamples of as many clusters as there are.
        seed: Of the resampling; the same seed pairs two evaluations of one split.
        level: Probability that an interval holds.
        unseen: Only the examples of `Evaluation.unseen_scores`.

    Raises:
        UserError: When `level` or `n_resamples` is out of range.
    """
    if not 0 < level < 1 or n_resamples < 1:
        raise UserError(
            f"level must lie in (0, 1) and n_resamples be positive, got {level} and "
            f"{n_resamples}"
        )
    chosen = evaluation.unseen if unseen else torch.ones_like(evaluation.unseen)
    _, cluster = evaluation.clusters[chosen].unique(return_inverse=True)
    n_clusters = int(cluster.max()) + 1 if len(cluster) else 0
    names = list(evaluation.counts)
    table = torch.stack([evaluation.counts[name][chosen] for name in names], dim=1)
    totals = torch.zeros(n_clusters, len(names), dtype=torch.float64)
    totals.index_add_(0, cluster, table.double())
    rng = torch.Generator().manual_seed(seed)
    sampled: dict[str, list[float]] = {}
    for start in range(0, n_resamples if n_clusters else 0, _RESAMPLES_AT_ONCE):
        n = min(_RESAMPLES_AT_ONCE, n_resamples - start)
        picks = torch.randint(n_clusters, (n, n_clusters), generator=rng)
        times = torch.zeros(n, n_clusters, dtype=torch.float64)
        times.scatter_add_(1, picks, torch.ones_like(times))
        for sums in times @ totals:
            resampled = dict(zip(names, sums, strict=True))
            for name, score in _scores(task, resampled).items():
                sampled.setdefault(name, []).append(score)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return {name: _interval(scores, tails) for name, scores in sampled.items()}


def _interval(scores: list[float], tails: Tensor) -> tuple[float, float]:
    low, high = torch.tensor(scores, dtype=torch.float64).nanquantile(tails).tolist()
    return low, high


def _scores(task: Task, totals: Mapping[str, Tensor]) -> dict[str, float]:
    scores = task.summarise(totals)
    for behaviour in BEHAVIOURS:
        if f"kl_{behaviour}" in totals:
            nats, positions = (
                totals[f"kl_{behaviour}"],
                totals[f"{behaviour}_positions"],
            )
            scores[f"kl_{behaviour}"] = ratio(float(nats), float(positions))
    for name, value in totals.items():
        if name.startswith(OF_CONCEPT):
            positions = totals["concept_positions"]
            scores[name.removeprefix(OF_CONCEPT)] = ratio(
                float(value), float(positions)
            )
    return scores


class _Once(nn.Module):
    """The model, run once a batch however often it is asked."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._output: Any = None

    def forward(self, **inputs: Tensor) -> Any:
        if self._output is None:
            self._output = self.model(**inputs)
        return self._output


def _counts(
    task: Task, model: nn.Module, batch: Batch, cut: Cut, with_outputs: bool
) -> tuple[dict[str, Tensor], Outputs | None]:
    """Counts of one batch and, if wanted, the predictions, from one forward pass."""
    with cut(batch):
        once = _Once(model)
        counts = task.counts(once, batch)
        return dict(counts), task.outputs(once, batch) if with_outputs else None


def _divergences(batch: Batch, uncut: Outputs, ablated: Outputs) -> dict[str, Tensor]:
    """Summed KL(uncut || cut) and number of positions, per example and behaviour."""
    found = {}
    for behaviour in BEHAVIOURS:
        log_p = getattr(uncut, behaviour).logits.log_softmax(-1)
        log_q = getattr(ablated, behaviour).logits.log_softmax(-1)
        nats = (log_p.exp() * (log_p - log_q)).sum(-1)
        found[f"kl_{behaviour}"] = _per_example(batch, behaviour, nats)
        found[f"{behaviour}_positions"] = _per_example(
            batch, behaviour, torch.ones_like(nats)
        )
    return found


def _per_example(batch: Batch, behaviour: str, values: Tensor) -> Tensor:
    """Sums of one value a position of the behaviour."""
    zeros = torch.zeros(len(batch["cluster"]), device=values.device, dtype=values.dtype)
    return zeros.index_add(0, batch[behaviour].nonzero()[:, 0], values)
