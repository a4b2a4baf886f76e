"""What a mask run will do, resolved once and typed, every refusal in one place."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from circuitcut.experiments.defaults.of_mask import (
    LARGE_GRAPH,
    methods_of,
    retain_kl_of,
    settings_of,
)
from circuitcut.experiments.flags import UnitsConfig, units_of
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.micro_batches import check_memory
from circuitcut.experiments.settings import (
    SETTINGS_FILE,
    MaskSettings,
    saved_settings,
)
from circuitcut.masks.edges.sites import check_one_graph
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.registry import GATES
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Task


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
    """Where the concept's score is a loss: most growth of the loss of any kind of
    retained text."""
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


def read_superset(config: MaskConfig) -> FrozenMask | None:
    """The mask that ablates the circuit of `--superset`; read before a model is loaded.

    Raises:
        UserError: When there is none, or it is damaged.
    """
    if config.superset is None:
        return None
    return circuit_ablated(FrozenMask.load(config.superset))


def plan(
    config: MaskConfig,
    experiment: Experiment,
    *,
    superset: FrozenMask | None = None,
    resumed: Path | None = None,
) -> Plan:
    """Resolve the flags for the model at hand; nothing is trained.

    Args:
        superset: Only the units that it ablates are trained: see `read_superset`.
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
    if superset is not None:
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


def sites_for(config: UnitsConfig, model: nn.Module) -> tuple[Site, ...]:
    """The sites that the flags ask for.

    Raises:
        UserError: When the model cannot be cut there.
    """
    return sites_of(
        model,
        units_of(config),
        config.layers or None,
        merged_qkv=config.merged_qkv,
        attention_bias=config.attention_bias,
        position_node=config.position_node,
        value_bias=config.value_bias,
    )


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
