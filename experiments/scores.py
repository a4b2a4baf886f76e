"""Scores of frozen masks, and of the random and attribution cuts beside them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitcut.attribution.registry import METHODS
from circuitcut.attribution.subject import kept_order
from circuitcut.experiments.gate_training import cut_with
from circuitcut.experiments.load import Experiment
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.reports.load import load_run
from circuitcut.reports.verdict import effect_warning
from circuitcut.storage.run_directory import RunDirectory, is_run
from circuitcut.tasks.base import Split
from circuitcut.tasks.evaluation import References, bootstrap, evaluate

N_RESAMPLES = 500


@dataclass(frozen=True)
class Scored:
    """Scores of one cut, on all held-out examples and on those with unseen entities."""

    scores: dict[str, float]
    unseen: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def score(
    experiment: Experiment,
    mask: FrozenMask | None,
    *,
    split: Split = "heldout",
    intervals: bool = True,
    sampled: bool = False,
    seed: int = 0,
) -> Scored:
    """Evaluate one mask (None: the uncut model) with KL to the uncut model."""
    task, model = experiment.task, experiment.loaded.model
    if mask is None:
        evaluation = evaluate(task, model, split)
    else:
        cut = cut_with(experiment, mask)
        references = experiment.references.setdefault(split, References())
        evaluation = evaluate(task, model, split, cut=cut, reference=references)
    scores = dict(evaluation.scores)
    if sampled and (mask is None or mask.ablated.kind != "counterfactual"):
        scores |= task.sampled_scores(model, _context(mask, experiment), seed=seed)
    limits = bootstrap(task, evaluation, n_resamples=N_RESAMPLES) if intervals else {}
    return Scored(scores, evaluation.unseen_scores, limits)


def _context(
    mask: FrozenMask | None, experiment: Experiment
) -> Callable[[], AbstractContextManager[Any]]:
    if mask is None:
        return nullcontext
    return lambda: mask.applied(experiment.loaded.model)


def random_scores(
    experiment: Experiment, mask: FrozenMask, n_random: int, seed: int
) -> list[Scored]:
    """Random cuts with the mask's own counts at every site."""
    return [
        score(experiment, mask.random_like(seed + 1 + i), intervals=False)
        for i in range(n_random)
    ]


def attribution_scores(
    experiment: Experiment,
    mask: FrozenMask,
    methods: Sequence[str],
    *,
    sizes: Sequence[int],
    seed: int,
    rankings: Mapping[str, Mapping[str, Tensor]],
    split: Split = "heldout",
    n_batches: int = 32,
) -> tuple[dict[str, Scored], list[dict[str, Any]]]:
    """Cuts by attribution of the mask's size, and every ranking at further `sizes`.

    Args:
        rankings: Further rankings by name (high keeps), for the curve only.

    Returns:
        Scores by method, and rows `{"method", "n_ablated", "scores"}`.
    """
    orders: dict[str, Mapping[str, Tensor]] = dict(rankings)
    for method in methods:
        orders[method] = attribution_ranking(
            experiment, mask, method, seed=seed, n_batches=n_batches
        )
    at_size = {
        method: score(
            experiment, cut_by(mask, orders[method], mask.n_ablated), split=split
        )
        for method in methods
    }
    curve = [
        {
            "method": method,
            "n_ablated": size,
            "scores": score(
                experiment, cut_by(mask, order, size), split=split, intervals=False
            ).scores,
        }
        for method, order in orders.items()
        for size in sizes
        if size <= mask.n_units
    ]
    return at_size, curve


def attribution_ranking(
    experiment: Experiment, mask: FrozenMask, method: str, *, seed: int, n_batches: int
) -> dict[str, Tensor]:
    """Ranking of the mask's units by an attribution method; the highest are kept."""
    scores = responsibility(experiment, mask, method, seed=seed, n_batches=n_batches)
    return kept_order(scores, mask.provenance.get("direction"))


def responsibility(
    experiment: Experiment, mask: FrozenMask, method: str, *, seed: int, n_batches: int
) -> dict[str, Tensor]:
    """Scores of the mask's units by an attribution method, with their signs."""
    return METHODS[method](
        experiment.task,
        experiment.loaded.model,
        mask.sites,
        mask.ablated,
        n_batches=n_batches,
        size=16,
        seed=seed,
        special_ids=mask.special_ids,
    )


def cut_by(
    mask: FrozenMask, ranking: Mapping[str, Tensor], n_ablated: int
) -> FrozenMask:
    return FrozenMask.exactly_k(
        ranking,
        mask.sites,
        mask.ablated,
        n_ablated=n_ablated,
        special_ids=mask.special_ids,
        provenance=mask.provenance,
    )


def warning_of_cut(path: Path, mask: FrozenMask, experiment: Experiment) -> str | None:
    """Why relearning this cut would show nothing; None where the concept is broken.

    A finished train_mask run has measured it. Another mask is measured here, on the
    held-out split, without random cuts beside it.

    Args:
        path: Where the mask lies.
    """
    if is_run(path):
        run = RunDirectory.open(path)
        if run.kind == "train_mask" and run.is_finished:
            return effect_warning(load_run(path).results)
    scored = {"uncut": score(experiment, None), "cut": score(experiment, mask)}
    return effect_warning(
        {
            "direction": mask.provenance.get("direction"),
            "concept_metric": vars(experiment.task.concept_metric),
            "retain_metric": vars(experiment.task.retain_metric),
            "scores": {name: value.scores for name, value in scored.items()},
            "intervals": {name: value.intervals for name, value in scored.items()},
        }
    )
