"""Scores of frozen masks, and of the random and attribution cuts beside them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.flags import Experiment, TaskConfig
from circuitcut.experiments.gates import MaskSettings, cut_with
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.weights_hash import weights_hash
from circuitcut.reports.tables import format_table
from circuitcut.storage.atomic import read_tensors
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Split
from circuitcut.tasks.evaluation import References, bootstrap, evaluate

N_RESAMPLES = 500
SHOWN_EDGES = 8


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
    """Ranking of the mask's units by an attribution method; the highest are kept.

    A mask that breaks the concept ablates the most responsible units first. One that
    isolates it keeps what matters to it either way, by absolute scores: a circuit
    without what holds the concept back is another one.
    """
    found = responsibility(experiment, mask, method, seed=seed, n_batches=n_batches)
    if mask.provenance.get("direction") == "isolate":
        return {name: values.abs() for name, values in found.items()}
    return {name: -values for name, values in found.items()}


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


def ranking_of_run(folder: Path, mask: FrozenMask) -> dict[str, Tensor]:
    """The ranking that a mask-training run kept; the highest are kept longest.

    Raises:
        UserError: When the folder has none, or its sites are not the mask's.
    """
    path = folder / "ranking.safetensors"
    if not path.exists():
        raise UserError(f"{folder} has no ranking.safetensors; --sizes needs one")
    return checked_ranking(path, mask)


def checked_ranking(path: Path, mask: FrozenMask) -> dict[str, Tensor]:
    """A ranking of the units of `mask`; the highest are kept longest.

    Raises:
        UserError: When it is not there, or its sites are not the mask's.
    """
    ranking = read_tensors(path)
    sizes = {site.name: site.n_units for site in mask.sites}
    if {name: len(values) for name, values in ranking.items()} != sizes:
        raise UserError(f"{path} does not rank the units of this mask")
    return ranking


def provenance(
    config: TaskConfig, experiment: Experiment, settings: MaskSettings
) -> dict[str, Any]:
    """Where a mask comes from; checked when it is loaded."""
    loaded = experiment.loaded
    return {
        "task": config.task,
        "model": loaded.name,
        "revision": loaded.revision,
        "config_hash": loaded.config_hash,
        "weights_hash": weights_hash(loaded.model),
        "gate": settings.gate,
        "direction": settings.direction,
        "seed": settings.seed,
    }


def show(results: Mapping[str, Any], path: Path) -> None:
    """Print the small table of a mask run and the next command."""
    scores = results["scores"]
    concept, retain = results["concept_metric"], results["retain_metric"]
    randoms = scores["random"]
    rows = [
        _row("uncut", 0, scores["uncut"]),
        _row("learned cut", results["n_ablated"], scores["cut"]),
    ]
    rows += [
        _row(f"{method} cut", results["n_ablated"], values)
        for method, values in scores["attribution"].items()
    ]
    if randoms:
        mean = {k: sum(r[k] for r in randoms) / len(randoms) for k in randoms[0]}
        rows.append(
            _row(f"random cut (mean of {len(randoms)})", results["n_ablated"], mean)
        )
    wanted = [concept["name"], retain["name"], "kl_retain"]
    table = [
        {
            "model": r["model"],
            "ablated": r["ablated"],
            **{k: r["scores"].get(k) for k in wanted},
        }
        for r in rows
    ]
    print(
        f"\n{results['task']} on {results['model']}: {results['n_ablated']} of "
        f"{results['n_units']} {' and '.join(results['units'])} ablated, held-out data"
    )
    print(format_table(table, ["model", "ablated", *wanted]))
    if results.get("edges"):
        kept = results["direction"] == "isolate"
        print(f"{'kept' if kept else 'ablated'}: {_first(results['edges'])}")
    better = "higher" if concept["higher_is_better"] else "lower"
    print(f"{concept['name']}: the concept ({better} = more of it)")
    print(f"{retain['name']}: the rest")
    print(f"run: {path}\nnext: {results['next']}")


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN_EDGES])
    n_more = len(names) - SHOWN_EDGES
    return shown if n_more <= 0 else f"{shown} and {n_more} more (results.json)"


def _row(model: str, ablated: int, scores: Mapping[str, float]) -> dict[str, Any]:
    return {"model": model, "ablated": ablated, "scores": scores}
