"""What results.json says of a run: one header for every kind, then the kind's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.experiments.circuits.edges_of_mask import MOST_EDGES, circuit_of
from circuitcut.experiments.circuits.published import published_overlap
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.gate_training import special_ids
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.plan import Plan
from circuitcut.experiments.scores import (
    Scored,
    attribution_scores,
    random_scores,
    score,
)
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.models.sites import Site
from circuitcut.storage.results_schema import SCHEMA_VERSION
from circuitcut.tasks.evaluation import evaluate


def header(
    kind: str,
    experiment: Experiment,
    sites: Sequence[Site] = (),
    mask: FrozenMask | None = None,
    ablation: str | None = None,
) -> dict[str, Any]:
    """What every results.json begins with, whatever the kind of run.

    Args:
        sites: What can be cut, where there is no mask.
        mask: The cut under study, if there is one.
        ablation: Kind of ablation value, where there is no mask.
    """
    config, task = experiment.config, experiment.task
    sites = mask.sites if mask else sites
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "task": config.task,
        "model": config.model_name,
        "units": sorted({site.kind for site in sites}),
        "ablation": mask.ablated.kind if mask else ablation,
        "n_ablated": mask.n_ablated if mask else 0,
        "n_units": sum(site.n_units for site in sites) if sites else None,
        "concept_metric": vars(task.concept_metric),
        "retain_metric": vars(task.retain_metric),
        "base": experiment.base,
    }


def describe(
    plan: Plan,
    experiment: Experiment,
    masks: MaskSet,
    frozen: Frozen,
    ablated: AblationValues,
) -> dict[str, Any]:
    """Every number of a mask run, on held-out data; the frozen mask's alone.

    Args:
        masks: The trained gates, for the scores before rounding.
        frozen: The finished mask.
        ablated: What ablated units became in training.
    """
    mask, settings = frozen.mask, plan.settings
    config = experiment.config
    scored = {
        "uncut": score(experiment, None, sampled=True),
        "cut": score(experiment, mask, sampled=True),
    }
    if settings.ablation != "counterfactual":
        scored["cut_before_rounding"] = _before_rounding(
            plan, experiment, masks, ablated
        )
    randoms = random_scores(experiment, mask, plan.n_random, config.seed)
    attributed, curve = attribution_scores(
        experiment,
        mask,
        plan.methods,
        sizes=plan.curve_sizes,
        seed=config.seed,
        rankings={"learned": frozen.ranking} if plan.curve_sizes else {},
        n_batches=plan.n_batches,
    )
    n_asked = plan.size.n_ablated or settings.target_ablated or None
    return header("train_mask", experiment, mask=mask) | {
        "gate": settings.gate,
        "direction": settings.direction,
        "expected_ablated": float(masks.expected_ablated().detach()),
        "asked_ablated": n_asked,
        "per_site": per_site(mask),
        "circuit": circuit_of(mask, frozen.ranking),
        "published_circuit": published_overlap(
            config.task, config.model_name, experiment.loaded.model, mask
        ),
        "edges": _few_edges(mask, kept=settings.direction == "isolate"),
        "scores": {key: value.scores for key, value in scored.items()}
        | {"random": [r.scores for r in randoms]}
        | {"attribution": {key: value.scores for key, value in attributed.items()}},
        "unseen": {key: value.unseen for key, value in scored.items()}
        | {"random": [r.unseen for r in randoms]}
        | {"attribution": {key: value.unseen for key, value in attributed.items()}},
        "intervals": {
            key: value.intervals for key, value in scored.items() if value.intervals
        },
        "curve": curve,
    }


def per_site(mask: FrozenMask) -> list[dict[str, Any]]:
    """Units and ablated units of every site, as results.json lists them."""
    return [
        {
            "site": site.name,
            "kind": site.kind,
            "layer": site.layer,
            "n_units": site.n_units,
            "n_ablated": int((~mask.keep[site.name]).sum()),
        }
        | ({"level": "logits"} if site.is_logits else {})
        for site in mask.sites
    ]


def scores_by_name(scored: Mapping[str, Scored]) -> dict[str, Any]:
    """`scores`, `unseen` and `intervals` of results.json."""
    return {
        "scores": {key: value.scores for key, value in scored.items()},
        "unseen": {key: value.unseen for key, value in scored.items()},
        "intervals": {key: value.intervals for key, value in scored.items()},
    }


def _before_rounding(
    plan: Plan, experiment: Experiment, masks: MaskSet, ablated: AblationValues
) -> Scored:
    """Scores under the trained gates as they are, between 0 and 1."""
    model, ids = experiment.loaded.model, special_ids(experiment, plan.settings)
    soft = {name: value.detach() for name, value in masks.values().items()}
    evaluation = evaluate(
        experiment.task,
        model,
        "heldout",
        cut=lambda batch: gated(model, masks.sites, soft, ablated, special_ids=ids),
    )
    return Scored(evaluation.scores, evaluation.unseen_scores, {})


def _few_edges(mask: FrozenMask, *, kept: bool) -> list[str] | None:
    """The few edges that the mask is about; None where they are too many, or none."""
    names = mask.edges(kept=kept)
    return names if 0 < len(names) <= MOST_EDGES else None
