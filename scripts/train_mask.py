"""Find the units whose ablation makes a concept go while the rest stays.

    python scripts/train_mask.py --task locations

Trains the gates, freezes them, measures the frozen mask on held-out data beside random
cuts and attribution cuts of the same size, and writes a run directory under runs/:
config.json, metrics.jsonl, mask.safetensors, mask.json, ranking.safetensors and
results.json. A minute or two on two CPU cores; README.md has the numbers to expect.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.circuit import MOST_EDGES, circuit_of, per_site
from circuitcut.experiments.flags import Experiment, UnitsConfig, command, flag, where
from circuitcut.experiments.freeze import freeze
from circuitcut.experiments.gates import (
    MaskSettings,
    ablation_values,
    gate_histogram,
    special_ids,
    train_gates,
)
from circuitcut.experiments.plan import methods_of, plan, units_of
from circuitcut.experiments.published_circuit import published_overlap
from circuitcut.experiments.restore_edges import can_be_put_back, put_back
from circuitcut.experiments.scores import (
    Scored,
    attribution_scores,
    provenance,
    random_scores,
    score,
    show,
)
from circuitcut.experiments.spare_edges import can_be_tried, tried
from circuitcut.experiments.unit_maps import unit_maps
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.registry import GATES
from circuitcut.models.sites import UNIT_KINDS, Site
from circuitcut.relearning.holding import check_holdable
from circuitcut.scripts.train_base import prepare
from circuitcut.storage.atomic import write_tensors
from circuitcut.storage.checkpoints import latest_step
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.evaluation import evaluate
from circuitcut.training.config import config_dict, run_script
from circuitcut.training.tracking import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainMaskConfig(UnitsConfig):
    """Settings of one mask-training run; None takes the task's recipe."""

    gate: str | None = flag(None, f"gate: {', '.join(sorted(GATES))}")
    direction: Literal["break", "isolate"] = flag(
        "break",
        "break: ablate few units so that the concept goes; isolate: keep few so "
        "that it alone stays",
    )
    ablation: Literal["zero", "mean", "counterfactual"] | None = flag(
        None, "what replaces an ablated activation"
    )
    mean_over: Literal["retain", "all"] = flag(
        "retain", "positions over which means are taken"
    )
    per_position: bool = flag(False, "one mean per position (aligned prompts)")
    positions: Literal["words", "all"] = flag(
        "words", "cut at every position (edges always) or not at special tokens"
    )
    concept_objective: Literal["margin", "ascent", "uniform", "kl", "js"] | None = flag(
        None,
        "margin: the answer's logit below its rivals; ascent: bounded loss ascent per "
        "token; uniform: the answer and its rivals equally likely; kl, js: stay as in "
        "the uncut model, by a divergence without bound or by one (isolate)",
    )
    concept_weight: float | None = flag(None, "weight of the concept objective")
    retain_objective: Literal["kl", "cross_entropy"] | None = flag(
        None, "kl to the uncut model, or cross-entropy"
    )
    retain_weight: float | None = flag(None, "weight of the retain objective")
    margin_floor: float | None = flag(
        None, "margin: nats below the rivals that suffice"
    )
    token_cap: float | None = flag(None, "ascent: nats of loss per token that count")
    penalty: Literal["none", "price", "lagrangian"] | None = flag(
        None, "price per unit, or a Lagrangian towards --target_ablated"
    )
    price: float | None = flag(
        None, "nats per expected unit (ablated in break, kept else)"
    )
    target_ablated: float | None = flag(
        None, "lagrangian: units to ablate; below 1 a fraction of all units"
    )
    ramp: float | None = flag(None, "share of the run over which the price grows")
    keep_prob: float | None = flag(None, "hard_concrete: initial P(gate > 0)")
    k_min: float | None = flag(None, "topk: smallest k drawn, in units")
    k_max: float | None = flag(None, "topk: largest k drawn, in units")
    average: float | None = flag(None, "rate of the running mean of scores; 0: off")
    n_steps: int | None = flag(None, "optimiser steps")
    batch_size: int | None = flag(None, "examples a step, of each process")
    micro_batch: int | None = flag(
        None,
        "examples at once, to the same step; default: all, or for edges what memory "
        "has room for",
    )
    lr: float | None = flag(None, "learning rate of the gates")
    n_ablated: int | None = flag(
        None,
        "freeze exactly this many; default: threshold, or for topk the smallest "
        "number that reaches --concept_target on the tune split (toxicity: the largest "
        "within --retain_cost)",
    )
    concept_target: float = flag(
        0.05, "share of the way from no ability to the uncut score that may remain"
    )
    retain_cost: float = flag(
        0.02, "where the concept's score is a loss: growth of the retained text's loss"
    )
    superset: Path | None = flag(
        None, "train only the units that this run's mask ablates"
    )
    checkpoint_every: int = flag(50, "steps between checkpoints")
    resume: Path | None = flag(None, "continue this unfinished run with its own flags")
    attribution: list[str] = flag(
        [],
        f"baselines cut to the same size: {', '.join(sorted(METHODS))}, or none; "
        "default: gradient_margin and probeless; for edges eap and eap_ig",
    )
    n_random: int = flag(3, "random cuts of the same size")
    curve_sizes: list[int] = flag([], "numbers of ablated units to score as well")
    name: Path | None = flag(None, "name of the run directory; default: generated")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choices("--units", self.units, UNIT_KINDS)
        _check_choices("--gate", [self.gate] if self.gate else [], GATES)
        wanted = [m for m in self.attribution if m != "none"]
        _check_choices("--attribution", wanted, METHODS)
        for key in ("n_steps", "batch_size", "micro_batch", "n_ablated"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"--{key} must be positive, got {value}")
        for key in ("lr", "price", "concept_weight", "retain_weight", "token_cap"):
            value = getattr(self, key)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UserError(f"--{key} must be a finite number >= 0, got {value}")
        if self.per_position and self.ablation != "mean":
            raise UserError("--per_position needs --ablation mean")
        if self.penalty == "lagrangian" and not self.target_ablated:
            raise UserError("--penalty lagrangian needs --target_ablated")
        keeping = self.concept_objective in ("kl", "js")
        if self.direction == "break" and keeping:
            raise UserError(
                f"--concept_objective {self.concept_objective} keeps the concept: use "
                "--direction isolate"
            )
        if self.direction == "isolate" and self.concept_objective and not keeping:
            raise UserError(
                f"--concept_objective {self.concept_objective} removes the concept: "
                "--direction isolate, which keeps it, needs kl or js"
            )
        if "weights" in self.units and self.ablation == "counterfactual":
            raise UserError(
                "--units weights cannot be ablated with counterfactual values"
            )


def _check_choices(name: str, values: Sequence[str], known: Any) -> None:
    wrong = [value for value in values if value not in known]
    if wrong:
        raise UserError(f"{name} must be among {sorted(known)}, got {wrong}")


def main(config: TrainMaskConfig) -> Path:
    """Train, freeze, and report on the frozen mask only."""
    run = None
    if config.resume is not None:
        run = RunDirectory.open(config.resume)
        if run.is_finished:
            raise UserError(f"{run.path} is finished; start a new run without --resume")
    else:
        RunDirectory.check(config.run_dir, config.name)
    superset = FrozenMask.load(config.superset) if config.superset else None
    experiment = prepare(config, check=partial(plan, config, superset))
    sites, settings = plan(config, superset, experiment.loaded)
    resumed = run is not None
    if run is None:
        run = RunDirectory.create(
            config.run_dir,
            kind="train_mask",
            task=config.task,
            model=config.model_name,
            config=config_dict(config),
            name=config.name,
        )

    # train the gates, with the model frozen
    ablated = ablation_values(experiment, sites, settings)
    start = latest_step(run.checkpoint_path) if resumed else None
    tracker = Tracker(run, resume_step=start)
    masks = train_gates(
        experiment,
        sites,
        ablated,
        settings,
        superset=superset,
        checkpoints=run.checkpoint_path,
        resume=resumed,
        on_log=tracker.scalars,
        on_step=_watch(tracker, settings),
    )

    if not run.is_writer:  # the first of several processes does the rest
        return run.path

    # freeze, then measure the frozen mask
    ranking = masks.split(masks.ranking().detach().cpu())
    origin = provenance(config, experiment, settings)
    mask = freeze(config, experiment, masks, ranking, ablated, settings, origin)
    if can_be_tried(mask, settings, config.n_ablated):
        mask, ranking = tried(
            experiment,
            settings,
            mask,
            ranking,
            config.n_ablated,
            margin_cost=config.concept_target,
        )
    metric = experiment.task.concept_metric
    if can_be_put_back(mask, settings, metric, config.n_ablated):
        mask, ranking = put_back(
            experiment, settings, mask, ranking, config.concept_target
        )
    if mask.n_ablated in (0, mask.n_units):
        what = "nothing" if mask.n_ablated == 0 else "everything"
        logger.warning(
            "the frozen mask ablates %s: ask for --n_ablated, or change --price, "
            "--target_ablated, --lr or --n_steps",
            what,
        )
    _show_maps(tracker, settings.n_steps, "frozen", mask.keep, mask.sites)
    mask.save(run.path)
    write_tensors(run.path / "ranking.safetensors", ranking, {"polarity": "high keeps"})
    results = _results(config, experiment, settings, masks, mask, ranking, ablated)
    try:
        check_holdable(mask, {"lasting"})
        results["next"] = command("relearn", {"mask": run.path, **where(config)})
    except UserError:  # what cannot be relearned from
        results["next"] = command("report", {"runs": run.path, **where(config)})
    tracker.hparams(config_dict(config), results["scores"]["cut"])
    tracker.close()
    run.write_results(results)
    show(results, run.path)
    return run.path


def _watch(tracker: Tracker, settings: MaskSettings) -> Any:
    """Histograms and maps of the gates, about ten times in a run."""
    every = max(1, settings.n_steps // 10)

    def on_step(step: int, masks: MaskSet) -> None:
        if step % every == 0 or step == settings.n_steps - 1:
            for name, values in gate_histogram(masks).items():
                tracker.histogram(step, f"gates/{name}", values)
            _show_maps(tracker, step, "gates", masks.keep_probs(), masks.sites)

    return on_step


def _show_maps(
    tracker: Tracker,
    step: int,
    what: str,
    kept: Mapping[str, Tensor],
    sites: Sequence[Site],
) -> None:
    for kind, image in unit_maps(kept, sites).items():
        tracker.image(step, f"ablated_{kind}/{what}", image)


def _results(
    config: TrainMaskConfig,
    experiment: Experiment,
    settings: MaskSettings,
    masks: MaskSet,
    mask: FrozenMask,
    ranking: Mapping[str, Tensor],
    ablated: AblationValues,
) -> dict[str, Any]:
    """Every number a table shows, on held-out data."""
    task, model = experiment.task, experiment.loaded.model
    scored: dict[str, Scored] = {"uncut": score(experiment, None, sampled=True)}
    scored["cut"] = score(experiment, mask, sampled=True)
    soft = {name: value.detach() for name, value in masks.values().items()}
    ids = special_ids(experiment, settings)
    if settings.ablation != "counterfactual":
        before = evaluate(
            task,
            model,
            "heldout",
            cut=lambda batch: gated(model, masks.sites, soft, ablated, special_ids=ids),
        )
        scored["cut_before_rounding"] = Scored(before.scores, before.unseen_scores, {})
    randoms = random_scores(experiment, mask, config.n_random, config.seed)
    methods = methods_of(config.attribution, units_of(config))
    rankings = {"learned": ranking} if config.curve_sizes else {}
    attributed, curve = attribution_scores(
        experiment,
        mask,
        methods,
        sizes=config.curve_sizes,
        seed=config.seed,
        rankings=rankings,
    )
    return {
        "kind": "train_mask",
        "task": config.task,
        "model": config.model_name,
        "units": sorted({site.kind for site in mask.sites}),
        "gate": settings.gate,
        "direction": settings.direction,
        "ablation": settings.ablation,
        "n_ablated": mask.n_ablated,
        "n_units": mask.n_units,
        "expected_ablated": float(masks.expected_ablated().detach()),
        "asked_ablated": config.n_ablated or settings.target_ablated or None,
        "per_site": per_site(mask),
        "circuit": circuit_of(mask, ranking),
        "published_circuit": published_overlap(
            config.task, config.model_name, model, mask
        ),
        "edges": _edges(mask, kept=settings.direction == "isolate"),
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
        "concept_metric": vars(task.concept_metric),
        "retain_metric": vars(task.retain_metric),
        "base": experiment.base,
    }


def _edges(mask: FrozenMask, *, kept: bool) -> list[str] | None:
    """The few edges that the mask is about; None where they are too many, or none."""
    names = mask.edges(kept=kept)
    return names if 0 < len(names) <= MOST_EDGES else None


if __name__ == "__main__":
    run_script(main, TrainMaskConfig)
