"""What a mask run will do, resolved once and typed, every refusal in one place."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from circuitcut.attribution.registry import METHODS, able
from circuitcut.experiments.flags import UnitsConfig
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.micro_batches import check_memory
from circuitcut.experiments.settings import (
    SETTINGS_FILE,
    MaskSettings,
    saved_settings,
)
from circuitcut.masks.budget import as_units, in_units
from circuitcut.masks.edges.sites import check_one_graph
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gate import Direction, Penalty
from circuitcut.masks.registry import GATES
from circuitcut.models.architectures import sites_of
from circuitcut.models.builtin import BUILTIN
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Task, can_have_pairs
from circuitcut.tasks.registry import TASKS

WITHOUT_BUDGET: dict[str, Any] = {"lr": 0.15}
"""Of gates that a price or nothing keeps sparse."""
ISOLATED_SHARES = {False: (0.0125, 0.25), True: (0.005, 0.05)}
"""Smallest and largest k drawn in `isolate`, as shares of all edges; in large graphs
(True) smaller circuits are of interest."""

ISOLATED_EDGES: dict[str, Any] = {
    "n_steps": 300,
    # a norm undoes what a gate scales: only a gate near zero shows that it is needed
    "power": 5.0,
    "temperature_end": 0.05,
    # the loss of an edge shows in a few steps and must not slow all later ones
    "beta2": 0.98,
}
"""Planted circuits (benchmarks/planted_circuits.py) were missed without them."""
PRETRAINED_KL = 0.1
"""Cross-entropy alone hid a fall in fluency from perplexity 32 to 556 (SmolLM2)."""
LARGE_GRAPH = 2000
"""Edges of a graph above which scores start from EAP-IG: from equal ones nearly every
edge of a sample is closed, the cut model knows nothing, and nothing is learned for many
steps (docs/results/smollm2.md). In small graphs equal scores find planted circuits."""
FROM_RANKING: dict[str, Any] = {
    "start": "eap_ig",
    # noise of scale 1 fills half of a sample with edges that the ranking closes
    "noise_start": 0.3,
    "noise_end": 0.1,
    "power": 1.0,
    # of fewer prompts the gradient of most edges is noise (docs/results/smollm2.md)
    "batch_size": 32,
}
"""Of large graphs, where scores start from a ranking."""
ISOLATED_PRICE = 0.01
"""Nats an edge in small graphs; in large ones less in proportion, so that a price does
not cap circuits. Gates with a price are trained towards JS, which is
bounded: with KL, samples that ablate a part of the circuit have a very high loss, and
edges are then kept only because they lower this loss."""


@dataclass(frozen=True)
class Size:
    """How many units a mask ablates: asked for, by threshold, or by scores."""

    n_ablated: int | None = None
    """Exactly so many, also where a Lagrangian has a target: P(gate > 0), whose sum it
    holds, is not the share of hard-concrete gates above 0.5. None: by the gates'
    threshold, or by scores on `tune`."""
    concept_target: float = 0.05
    """Share of the way from no ability to the uncut score that may remain."""
    retain_cost: float = 0.02
    """Where the concept's score is a loss: growth of the retained text's loss."""
    retain_kl: float = math.inf
    """Likewise: nats a token between the uncut and the cut model on retained text."""


@dataclass(frozen=True)
class Plan:
    """What is cut and how, ready to be trained, frozen and described."""

    sites: tuple[Site, ...]
    settings: MaskSettings
    size: Size
    methods: tuple[str, ...]
    """Attribution methods whose cuts stand beside the learned one."""
    n_random: int
    curve_sizes: tuple[int, ...]
    superset: FrozenMask | None = None
    """Only the units that it ablates are trained."""
    attribution_batches: int = 32
    """Batches of 16 examples over which the scores of `methods` are averaged."""

    @property
    def n_units(self) -> int:
        """Number of units at all sites."""
        return sum(site.n_units for site in self.sites)

    def files(self) -> dict[str, Any]:
        """The resolved settings, as a run directory keeps them, by file name."""
        return {SETTINGS_FILE: asdict(self.settings)}


def plan(
    config: MaskConfig, experiment: Experiment, *, resumed: Path | None = None
) -> Plan:
    """Resolve the flags for the model at hand; nothing is trained.

    Args:
        resumed: The run directory that goes on: its saved settings are taken, whatever
            the defaults have become since.

    Raises:
        UserError: When the model or the task cannot follow a flag.
    """
    model = experiment.loaded.model
    units = units_of(config)
    methods = methods_of(config.attribution, units)
    sites = sites_for(config, model)
    n_units = sum(site.n_units for site in sites)
    _check_sizes(config, units, n_units)
    if config.start not in (None, "equal"):
        methods_of([config.start], units)
    saved = None if resumed is None else saved_settings(resumed)
    if resumed is not None and saved is None:
        config = before_budgets(config)
    paired = experiment.task.no_pairs is None
    settings = saved or settings_of(config, n_units, paired=paired)
    _check_settings(settings, experiment.task, n_units)
    superset = None
    if config.superset:
        superset = circuit_ablated(FrozenMask.load(config.superset))
        _check_superset(superset, sites)
    check_memory(
        model,
        sites,
        config.max_length,
        counterfactual=settings.ablation == "counterfactual",
    )
    n_trained = superset.n_ablated if superset else n_units
    n_asked = config.n_ablated or settings.n_asked(n_units)
    _check_asked(n_asked, n_trained)
    GATES[settings.gate].check(n_trained, settings)
    return Plan(
        sites,
        settings,
        Size(n_asked, config.concept_target, config.retain_cost, retain_kl_of(config)),
        tuple(methods),
        config.n_random,
        tuple(config.curve_sizes),
        superset,
        attribution_batches(config.attribution_batches, sites),
    )


def attribution_batches(given: int | None, sites: Sequence[Site]) -> int:
    """Batches over which attribution is averaged: those asked for, or as usual."""
    n_edges = sum(site.n_units for site in sites if site.kind == "edges")
    return given or (8 if n_edges > LARGE_GRAPH else 32)


def retain_kl_of(config: MaskConfig) -> float:
    """The limit of KL on retained text: what was asked for, or that of the model."""
    if config.retain_kl is not None:
        return config.retain_kl
    return math.inf if config.model_name in BUILTIN else PRETRAINED_KL


def units_of(config: UnitsConfig) -> Sequence[str]:
    """Kinds of unit asked for, or those of the task and model."""
    defaults = TASKS[config.task].defaults
    return list(config.units or defaults.of(config.model_name).units or defaults.units)


def sites_for(config: UnitsConfig, model: nn.Module) -> tuple[Site, ...]:
    """The sites that the flags ask for.

    Raises:
        UserError: When the model cannot be cut there.
    """
    sites = sites_of(
        model,
        units_of(config),
        config.layers or None,
        merged_qkv=config.merged_qkv,
        attention_bias=config.attention_bias,
        position_node=config.position_node,
        value_bias=config.value_bias,
    )
    if any(site.kind == "edges" for site in sites):
        ResidualModel(model)  # refuses a model that lacks a module
    return sites


def methods_of(methods: Sequence[str], units: Sequence[str]) -> list[str]:
    """Attribution methods asked for; without any, the two usual ones of these units.

    Raises:
        UserError: When a method cannot rank the units.
    """
    possible = able(units)
    if not methods:
        usual = ("eap", "eap_ig", "gradient_margin", "probeless")
        return [name for name in usual if name in possible][:2]
    if "all" in methods:
        return sorted(possible)
    for method in methods:
        reason = None if method == "none" else METHODS[method].cannot_rank(units)
        if reason is not None:
            raise UserError(
                f"attribution method {method} {reason}; use one of "
                f"{', '.join(possible)}"
            )
    return [method for method in methods if method != "none"]


def settings_of(
    config: MaskConfig, n_units: int, *, paired: bool | None = None
) -> MaskSettings:
    """The recipe of task and model, with the flags that were given.

    Args:
        paired: The data have counterfactual inputs; None: the task can have them.
    """
    if paired is None:
        paired = can_have_pairs(TASKS[config.task])
    defaults = TASKS[config.task].defaults
    edges = "edges" in units_of(config)
    of_model = defaults.of(config.model_name)
    recipe = of_model.mask or defaults.mask
    if edges:
        recipe = of_model.mask_on_edges or defaults.mask_on_edges or recipe
    settings = adapted(
        MaskSettings(**recipe),
        gate=config.gate,
        penalty=config.penalty,
        direction=config.direction,
        edges=edges,
        paired=paired,
        n_units=n_units,
    )
    given = {
        f.name: getattr(config, f.name)
        for f in fields(MaskSettings)
        if getattr(config, f.name, None) is not None
    }
    for name in {"k_min", "k_max"} & given.keys():
        given[name] = as_units(given[name], n_units)
    settings = replace(settings, **given)
    if edges and config.positions is None:  # as all published masks on edges
        settings = replace(settings, positions="all")
    if settings.retain_objective == "none":
        settings = replace(settings, retain_weight=0.0)  # it weighs nothing
    return settings


def adapted(
    recipe: MaskSettings,
    *,
    gate: str | None,
    penalty: Penalty | None = None,
    direction: Direction,
    edges: bool,
    paired: bool,
    n_units: int,
) -> MaskSettings:
    """A task's recipe, moved to another gate or direction, or to edges.

    Args:
        recipe: For a gate with a budget and `break`.
        gate: None stays with the recipe's.
        penalty: Likewise.
        paired: The task has counterfactual inputs.
        n_units: All units; the range of k is made to fit.
    """
    gate_class = GATES[gate or recipe.gate]
    if gate is not None and gate != recipe.gate:
        recipe = replace(recipe, gate=gate, **gate_class.recipe)
    if penalty is not None:
        recipe = replace(recipe, penalty=penalty)
    has_budget = not gate_class.has_threshold(recipe)
    if not has_budget:
        recipe = replace(recipe, **WITHOUT_BUDGET)
    recipe = replace(recipe, direction=direction)
    if direction == "isolate":
        recipe = replace(recipe, concept_objective="kl", retain_weight=0.0)
    if edges and direction == "isolate":
        is_large = n_units > LARGE_GRAPH
        low, high = (share * n_units for share in ISOLATED_SHARES[is_large])
        recipe = replace(recipe, **ISOLATED_EDGES, k_min=low, k_max=max(high, 16.0))
        if has_budget and is_large:
            recipe = replace(recipe, **FROM_RANKING)
        if not has_budget:
            price = ISOLATED_PRICE * min(1.0, LARGE_GRAPH / n_units)
            recipe = replace(recipe, price=price, concept_objective="js")
        if paired:
            recipe = replace(recipe, ablation="counterfactual")
    return in_units(recipe, n_units)


def circuit_ablated(mask: FrozenMask) -> FrozenMask:
    """The mask that ablates the circuit of `mask`, and nothing else.

    The circuit of a mask that isolates is what it keeps, else what it ablates.
    """
    if mask.provenance.get("direction") != "isolate":
        return mask
    return replace(mask, keep={name: ~kept for name, kept in mask.keep.items()})


def before_budgets(config: MaskConfig) -> MaskConfig:
    """The flags of a run that kept no settings, as their defaults were at that time."""
    gate = config.gate or "topk"
    changes: dict[str, Any] = {
        "gate": gate,
        "penalty": config.penalty or ("none" if gate == "topk" else "price"),
        # edges were cut at all positions
        "positions": None if "edges" in units_of(config) else config.positions,
    }
    return replace(config, **changes)


def check_pairs(task: Task, ablation: str) -> None:
    """Refuse counterfactual ablation where a task's examples have no paired inputs.

    Raises:
        UserError: Saying what lacks them.
    """
    if ablation == "counterfactual" and task.no_pairs is not None:
        raise UserError(
            f"--ablation counterfactual needs paired inputs: {task.no_pairs}; use mean "
            "or zero"
        )


def _check_sizes(config: MaskConfig, units: Sequence[str], n_units: int) -> None:
    for name, sizes in (
        ("n_ablated", [config.n_ablated or 0]),
        ("curve_sizes", config.curve_sizes),
    ):
        if any(not 0 <= size <= n_units for size in sizes):
            raise UserError(
                f"--{name} must be at most the {n_units} units of {' and '.join(units)}"
                f" in {config.model_name}, got {', '.join(map(str, sizes))}"
            )


def _check_settings(settings: MaskSettings, task: Task, n_units: int) -> None:
    if not 0 < settings.k_min <= settings.k_max < n_units:
        raise UserError(
            f"--k_min and --k_max must satisfy 0 < k_min <= k_max < {n_units} (all "
            f"units), got {settings.k_min:g} and {settings.k_max:g}"
        )
    if settings.round_every and settings.gate != "clamped":
        raise UserError(
            f"--round_every needs --gate clamped, got {settings.gate}: other gates are "
            "no parameters that could be rounded"
        )
    if settings.start != "equal" and not GATES[settings.gate].ranks_freely:
        raise UserError(
            f"--start {settings.start} needs --gate hard_concrete or topk, got "
            f"{settings.gate}, whose scores are gates in [0, 1]"
        )
    check_pairs(task, settings.ablation)
    if settings.per_position and task.head == "image_classification":
        raise UserError(
            f"--per_position needs a sequence, which --task {task.name} has not; leave "
            "it out"
        )


def _check_asked(n_asked: int | None, n_trained: int) -> None:
    if n_asked is not None and n_asked > n_trained:
        raise UserError(
            "--n_ablated and --target_ablated must be at most the units that are "
            f"trained ({n_trained}), got {n_asked}"
        )


def _check_superset(superset: FrozenMask, sites: tuple[Site, ...]) -> None:
    if superset.sites != sites:
        check_one_graph([*superset.sites, *sites])
        raise UserError(
            "--superset must be a mask of the units that are trained, got one of "
            f"{', '.join(site.name for site in superset.sites)}; repeat its --units, "
            "--layers and --model"
        )
