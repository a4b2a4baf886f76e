"""Scores of a cut or uncut model on a split, with bootstrap intervals."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import Progress
from circuitcut.tasks.base import (
    LANGUAGE_HEADS,
    Batch,
    Outputs,
    Predictions,
    Split,
    Task,
    has_concept,
    rows_of,
    to_device,
)
from circuitcut.tasks.lengths import by_length
from circuitcut.tasks.selected_logits import logits_at
from circuitcut.tasks.span_counts import ratio

BEHAVIOURS = ("concept", "retain")
OF_CONCEPT = "of_concept_"
_RESAMPLES_AT_ONCE = 64
_LOGITS_AT_ONCE = 2**26
"""Logits of one pass: 256 MiB in float32, and as much again for their logarithms."""
_LOGITS_OF_KL = 2**20
"""Of several tensors of KL. Larger ones, of up to 32 MB, leave gaps in the C heap that
the results of one cut divide, so that those of the next do not fit."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split and the per-example counts they come from."""

    scores: dict[str, float]
    unseen_scores: dict[str, float]
    """Scores of the examples whose entities occur in no other split."""
    counts: dict[str, Float[Tensor, "example"]]
    clusters: Int[Tensor, "example"]
    """Document of each example; the bootstrap resamples documents."""
    unseen: Bool[Tensor, "example"]
    n_examples: int


PositionScore = Callable[[Predictions], Float[Tensor, "position"]]

Cut = Callable[[Batch], AbstractContextManager[Any]]
"""Returns the context in which the model is cut, for a batch on the model's device."""
Cuts = Callable[[Batch], Iterable[AbstractContextManager[Any]]]
"""Returns the contexts of several cuts, for a batch on the model's device."""


@dataclass
class References:
    """The uncut model's outputs on the batches of one split, kept between evaluations.

    Use one object only for evaluations of the same task, model, split and size.
    """

    outputs: list[Outputs] = field(default_factory=list)
    bytes_left: int = 384 * 1024**2
    """Memory left in bytes; when it is used, later batches are computed every time."""

    def of(self, number: int, compute: Callable[[], Outputs]) -> Outputs:
        """The outputs of batch number `number`, from memory or from `compute`."""
        if number < len(self.outputs):
            return self.outputs[number]
        outputs = compute()
        size = sum(p.logits.nbytes for p in (outputs.concept, outputs.retain))
        if number == len(self.outputs) and size <= self.bytes_left:
            self.outputs.append(outputs)
            self.bytes_left -= size
        return outputs


def uncut(batch: Batch) -> AbstractContextManager[Any]:
    """A context that does not cut the model."""
    del batch
    return nullcontext()


def evaluate(
    task: Task,
    model: nn.Module,
    split: Split,
    *,
    size: int | None = None,
    cut: Cut = uncut,
    reference: bool | References = False,
    of_concept: Mapping[str, PositionScore] | None = None,
    limit: int | None = None,
    only_concept: bool = False,
) -> Evaluation:
    """Scores of `model` inside `cut` on every example of `split`, in eval mode.

    Args:
        task: The data and the scores.
        model: Keeps its mode (training or evaluation).
        split: The examples to evaluate.
        size: Examples per forward pass; the scores do not depend on it. None: the
            task's `eval_batch`.
        cut: Returns the context in which the model is cut; default: no cut.
        reference: Run also the uncut model and add `kl_concept` and `kl_retain`, the
            mean KL(uncut || cut) in nats per position. A `References` keeps the uncut
            model's outputs for the next call.
        of_concept: Further scores by name; each is averaged over the concept positions.
        limit: Evaluate only the first `limit` examples.
        only_concept: Leave out the examples without a position of the concept, whose
            scores are then undefined.

    Raises:
        UserError: When the split is empty.
    """
    return evaluate_cuts(
        task,
        model,
        split,
        lambda batch: [cut(batch)],
        1,
        size=size,
        reference=reference,
        of_concept=of_concept,
        limit=limit,
        only_concept=only_concept,
    )[0]


def evaluate_cuts(
    task: Task,
    model: nn.Module,
    split: Split,
    cuts: Cuts,
    n_cuts: int,
    *,
    size: int | None = None,
    reference: bool | References = False,
    of_concept: Mapping[str, PositionScore] | None = None,
    limit: int | None = None,
    only_concept: bool = False,
) -> list[Evaluation]:
    """Scores in each of several cuts: all of them on one batch, then the next batch.

    What the cuts share on a batch is computed once: the uncut model's outputs, and
    whatever `cuts` does before it gives the first context. Other arguments as in
    `evaluate`.

    Args:
        cuts: Called once a batch; gives `n_cuts` contexts, always in the same order.

    Raises:
        UserError: When the split is empty.
    """
    device = next(model.parameters()).device
    references = reference if isinstance(reference, References) else References()
    batches = _limited(
        task.evaluation_batches(split, size=size or task.eval_batch), limit
    )
    config = getattr(model, "config", None)
    known, places = _passes(
        _with_concept(batches) if only_concept else batches,
        getattr(config, "vocab_size", 0) if task.head in LANGUAGE_HEADS else 0,
    )
    if not known:
        raise UserError(f"split {split!r} of task {task.name!r} has no examples")
    counts: list[dict[str, list[Tensor]]] = [{} for _ in range(n_cuts)]
    label, n_steps = f"scores on {split}", len(known) * n_cuts
    unit = "batch" if n_cuts == 1 else "cut and batch"
    with (
        evaluating(model),
        torch.no_grad(),
        Progress(label, 0, n_steps, unit=unit, summary=False) as bar,
    ):
        for number, batch in enumerate(known):
            moved = to_device(batch, device)
            uncut_outputs = cache(
                partial(references.of, number, partial(task.outputs, model, moved))
            )
            for place, cut in enumerate(cuts(moved)):
                batch_counts = _batch_counts(
                    task,
                    model,
                    moved,
                    cut,
                    uncut_outputs=uncut_outputs if reference else None,
                    of_concept=of_concept or {},
                )
                for name, value in batch_counts.items():
                    counts[place].setdefault(name, []).append(value.double().cpu())
                bar.advance(number * n_cuts + place)
    in_order = torch.cat(places).argsort()
    clusters = torch.cat([batch["cluster"] for batch in known])[in_order]
    unseen = torch.cat([batch["unseen"] for batch in known]).bool()[in_order]
    return [
        _evaluation(
            task,
            {name: torch.cat(values)[in_order] for name, values in of_cut.items()},
            clusters,
            unseen,
        )
        for of_cut in counts
    ]


def _evaluation(
    task: Task, counts: dict[str, Tensor], clusters: Tensor, unseen: Tensor
) -> Evaluation:
    totals = {name: value.sum() for name, value in counts.items()}
    unseen_totals = {name: value[unseen].sum() for name, value in counts.items()}
    return Evaluation(
        scores=_scores(task, totals),
        unseen_scores=_scores(task, unseen_totals) if unseen.any() else {},
        counts=counts,
        clusters=clusters,
        unseen=unseen,
        n_examples=len(unseen),
    )


def _passes(
    batches: Iterable[Batch], n_classes: int
) -> tuple[list[Batch], list[Tensor]]:
    """The batches in groups of like length whose logits are not too many.

    Returns:
        The groups, and the place of each group's examples in the order of the split.
    """
    groups, places, n_before = [], [], 0
    for batch in batches:
        counted = batch["concept"] | batch["retain"]
        for like in by_length(batch):
            n_logits = int(counted[like].sum()) * n_classes
            n_parts = -(-n_logits // _LOGITS_AT_ONCE) or 1
            for rows in like.nonzero().flatten().chunk(n_parts):
                groups.append(rows_of(batch, rows))
                places.append(n_before + rows)
        n_before += len(batch["cluster"])
    return groups, places


def check_scored(task: Task, splits: Sequence[Split]) -> None:
    """Check that the scored examples of some splits have the concept, and the rest.

    Raises:
        UserError: When `n_heldout` chose none of those that the split has.
    """
    if task.n_heldout is None:
        return
    every = copy(task)
    every.n_heldout = None
    for split in splits:
        for key, what in (("concept", "with the concept"), ("retain", "to retain")):
            if not _has(task, split, key) and _has(every, split, key):
                raise UserError(
                    f"--n_heldout {task.n_heldout} leaves no example {what} among "
                    f"those of split {split!r} that are scored; give more, or leave it "
                    "out"
                )


def _has(task: Task, split: Split, key: str) -> bool:
    batches = task.evaluation_batches(split, size=task.eval_batch)
    return any(batch[key].any() for batch in batches)


def _with_concept(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches without the examples that have no position of the concept."""
    for batch in batches:
        rows = has_concept(batch)
        if rows.any():
            yield rows_of(batch, rows)


def _limited(batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    """The first `limit` examples of the batches; None means all examples."""
    n_left = limit
    for batch in batches:
        if n_left is None:
            yield batch
            continue
        if n_left <= 0:
            return
        shortened = {key: value[:n_left] for key, value in batch.items()}
        n_left -= len(shortened["cluster"])
        yield shortened


def _batch_counts(
    task: Task,
    model: nn.Module,
    batch: Batch,
    cut: AbstractContextManager[Any],
    *,
    uncut_outputs: Callable[[], Outputs] | None,
    of_concept: Mapping[str, PositionScore],
) -> dict[str, Tensor]:
    """Counts per example: of the task, of further scores, and of KL(uncut || cut)."""
    with_outputs = uncut_outputs is not None or bool(of_concept)
    with cut:
        if not with_outputs:
            return dict(task.counts(model, batch))
        counts, ablated = counts_and_outputs(task, model, batch)
    for name, score in of_concept.items():
        values = score(ablated.concept)
        counts[OF_CONCEPT + name] = _per_example(batch, "concept", values)
        counts["concept_positions"] = _per_example(
            batch, "concept", torch.ones_like(values)
        )
    if uncut_outputs is not None:
        counts |= _divergences(batch, uncut_outputs(), ablated)
    return counts


def bootstrap(
    task: Task,
    evaluation: Evaluation,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    unseen: bool = False,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of every score by resampling clusters (documents).

    Args:
        task: Computes the scores from the counts.
        evaluation: Counts per example.
        n_resamples: Number of resamples; each has as many clusters as the split.
        seed: Seed of the resampling; with one seed two evaluations of a split are
            resampled in the same way (paired).
        level: Level of the intervals, for instance 0.95.
        unseen: Use only the examples of `Evaluation.unseen_scores`.

    Raises:
        UserError: When `level` or `n_resamples` is out of range.
    """
    if not 0 < level < 1 or n_resamples < 1:
        raise UserError(
            f"level must lie in (0, 1) and n_resamples be positive, got {level} and "
            f"{n_resamples}"
        )
    included = evaluation.unseen if unseen else torch.ones_like(evaluation.unseen)
    _, cluster = evaluation.clusters[included].unique(return_inverse=True)
    n_clusters = int(cluster.max()) + 1 if len(cluster) else 0
    names = list(evaluation.counts)
    table = torch.stack([evaluation.counts[name][included] for name in names], dim=1)
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


class _CachedForward(nn.Module):
    """A model for one batch: the first call runs it, later calls return that output.

    A task may ask for all logits, or by `logits_at` for those of some positions.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._output: Any = None
        self._narrowed: tuple[Tensor, Tensor] | None = None

    def narrowed(self, inputs: Mapping[str, Tensor], where: Tensor) -> Tensor:
        """Logits at the positions `where`, (position, classes)."""
        if self._output is not None:
            return self._output.logits[where]
        if self._narrowed is None or not torch.equal(self._narrowed[0], where):
            self._narrowed = where, logits_at(self.model, inputs, where)
        return self._narrowed[1]

    def forward(self, **inputs: Tensor) -> Any:
        if self._output is None:
            self._output = self.model(**inputs)
        return self._output


def counts_and_outputs(
    task: Task, model: nn.Module, batch: Batch
) -> tuple[dict[str, Tensor], Outputs]:
    """Counts per example and predictions of one batch, from one forward pass."""
    cached = _CachedForward(model)
    return dict(task.counts(cached, batch)), task.outputs(cached, batch)


def _divergences(batch: Batch, uncut: Outputs, ablated: Outputs) -> dict[str, Tensor]:
    """Summed KL(uncut || cut) and number of positions, per example and behaviour."""
    divergences = {}
    for behaviour in BEHAVIOURS:
        before, after = (getattr(of, behaviour).logits for of in (uncut, ablated))
        at_once = max(1, _LOGITS_OF_KL // before.shape[-1])
        pieces = zip(before.split(at_once), after.split(at_once), strict=True)
        nats = torch.cat([_kl(*piece) for piece in pieces])
        divergences[f"kl_{behaviour}"] = _per_example(batch, behaviour, nats)
        divergences[f"{behaviour}_positions"] = _per_example(
            batch, behaviour, torch.ones_like(nats)
        )
    return divergences


def _kl(
    logits: Float[Tensor, "position classes"], others: Float[Tensor, "position classes"]
) -> Float[Tensor, "position"]:
    """KL(logits || others) in nats."""
    log_p, log_q = logits.log_softmax(-1), others.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _per_example(batch: Batch, behaviour: str, values: Tensor) -> Tensor:
    """Sums over the positions of the behaviour, per example."""
    zeros = torch.zeros(len(batch["cluster"]), device=values.device, dtype=values.dtype)
    return zeros.index_add(0, batch[behaviour].nonzero()[:, 0], values)
