"""What results.json says of a run: one header for every kind, then the kind's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.experiments.circuits.edges_of_mask import circuit_of
from circuitcut.experiments.circuits.heads_of_mask import heads_of
from circuitcut.experiments.circuits.published import published_overlap
from circuitcut.experiments.freeze import Frozen
from circuitcut.experiments.gate_training import special_ids
from circuitcut.experiments.load import Experiment, provenance_of
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
from circuitcut.masks.registry import GATES
from circuitcut.models.sites import Site
from circuitcut.reports.verdict import effect_warning
from circuitcut.storage.results_schema import SCHEMA_VERSION
from circuitcut.tasks.evaluation import evaluate

SAME_NUMBER = 0.1
"""Share by which gates may ablate more or fewer units than the mask made of them."""


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
        "provenance": provenance_of(experiment),
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
    soft, n_soft = _before_rounding(plan, experiment, masks, ablated, mask.n_ablated)
    if soft is not None:
        scored["cut_before_rounding"] = soft
    randoms = random_scores(experiment, mask, plan.n_random, config.seed)
    attributed, curve = attribution_scores(
        experiment,
        mask,
        plan.methods,
        sizes=plan.curve_sizes,
        seed=config.seed,
        rankings={"learned": frozen.ranking} if plan.curve_sizes else {},
        n_batches=plan.attribution_batches,
    )
    results = header("train_mask", experiment, mask=mask) | {
        "gate": settings.gate,
        "direction": settings.direction,
        "expected_ablated": n_soft,
        "asked_ablated": plan.size.n_ablated,
        "per_site": per_site(mask),
        "circuit": circuit_of(mask, frozen.ranking),
        "published_circuit": published_overlap(
            config.task, config.model_name, experiment.loaded.model, mask
        ),
        "edges": _edge_names(mask, kept=settings.direction == "isolate"),
        "heads": heads_of(mask, frozen.ranking),
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
    return results | {"warning": effect_warning(results)}


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
    plan: Plan,
    experiment: Experiment,
    masks: MaskSet,
    ablated: AblationValues,
    n_ablated: int,
) -> tuple[Scored | None, float]:
    """Scores under the trained gates, between 0 and 1, and how many units they ablate.

    Gates with a budget are those of the frozen number of ablated units. There are no
    scores of gates that ablate another number than the frozen mask, nor of
    counterfactuals.
    """
    model, ids = experiment.loaded.model, special_ids(experiment, plan.settings)
    soft = {name: value.detach() for name, value in masks.values(n_ablated).items()}
    if GATES[plan.settings.gate].has_threshold(plan.settings):
        n_soft = float(masks.expected_ablated().detach())
    else:
        n_soft = masks.n_units - sum(float(value.sum()) for value in soft.values())
    differs = abs(n_soft - n_ablated) > max(1.0, SAME_NUMBER * n_ablated)
    if differs or plan.settings.ablation == "counterfactual":
        return None, n_soft
    evaluation = evaluate(
        experiment.task,
        model,
        "heldout",
        cut=lambda batch: gated(model, masks.sites, soft, ablated, special_ids=ids),
    )
    return Scored(evaluation.scores, evaluation.unseen_scores, {}), n_soft


def _edge_names(mask: FrozenMask, *, kept: bool) -> list[str] | None:
    """The edges that the mask is about, of any number; None without edges."""
    if not any(site.kind == "edges" for site in mask.sites):
        return None
    return mask.edges(kept=kept)
