"""What a mask run will do, resolved once and typed, every refusal in one place."""

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
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.budget import in_units
from circuitcut.masks.edges.sites import check_one_graph
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gate import Direction
from circuitcut.masks.hard_concrete import TEMPERATURE
from circuitcut.masks.registry import GATES
from circuitcut.models.architectures import sites_of
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.sites import Site
from circuitcut.storage.atomic import read_json, write_json
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.base import Task, can_have_pairs
from circuitcut.tasks.registry import TASKS

SETTINGS_FILE = "settings.json"
"""In a run directory: the resolved settings, which its flags alone do not tell."""
_NOT_YET: dict[str, Any] = {
    "opening": 0.0,
    "stretch_temperature": TEMPERATURE,
    "noise_start": 1.0,
    "noise_end": 1.0,
    "mean_positions": 10**9,
}
"""What settings that older runs did not have amount to in them."""
ISOLATED_SHARES = 0.0125, 0.25
"""Smallest and largest k drawn in `isolate`, as shares of all edges."""

ISOLATED_EDGES: dict[str, Any] = {
    "price": 0.01,
    "n_steps": 300,
    # a norm undoes what a gate scales: only a gate near zero shows that it is needed
    "power": 5.0,
    "temperature_end": 0.05,
    # the loss of an edge shows in a few steps and must not slow all later ones
    "beta2": 0.98,
}
"""Planted circuits (benchmarks/planted_circuits.py) were missed without them."""


@dataclass(frozen=True)
class Size:
    """How many units a mask ablates: asked for, by threshold, or by scores."""

    n_ablated: int | None = None
    """Exactly so many; None: by the gates' threshold, or by scores on `tune`."""
    concept_target: float = 0.05
    """Share of the way from no ability to the uncut score that may remain."""
    retain_cost: float = 0.02
    """Where the concept's score is a loss: growth of the retained text's loss."""


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
    n_batches: int = 32
    """Batches of 16 examples that attribution scores are averaged over."""

    @property
    def n_units(self) -> int:
        """Number of units at all sites."""
        return sum(site.n_units for site in self.sites)

    def save(self, run: RunDirectory) -> None:
        """Write the resolved settings into a run directory."""
        if run.is_writer:
            write_json(run.path / SETTINGS_FILE, asdict(self.settings))


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
    saved = None if resumed is None else saved_settings(resumed)
    paired = experiment.task.no_pairs is None
    settings = saved or settings_of(config, n_units, paired=paired)
    _check_settings(settings, experiment.task, n_units)
    superset = FrozenMask.load(config.superset) if config.superset else None
    if superset is not None:
        _check_superset(superset, sites)
    check_memory(
        model,
        sites,
        config.max_length,
        counterfactual=settings.ablation == "counterfactual",
    )
    n_trained = superset.n_ablated if superset else n_units
    GATES[settings.gate].check(n_trained, settings)
    return Plan(
        sites,
        settings,
        Size(config.n_ablated, config.concept_target, config.retain_cost),
        tuple(methods),
        config.n_random,
        tuple(config.curve_sizes),
        superset,
        config.n_batches,
    )


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
    recipe = defaults.of(config.model_name).mask or defaults.mask
    if edges and defaults.mask_on_edges is not None:
        recipe = defaults.mask_on_edges
    settings = adapted(
        MaskSettings(**recipe),
        gate=config.gate,
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
    settings = replace(settings, **given)
    # an edge carries all positions
    return replace(settings, positions="all") if edges else settings


def adapted(
    recipe: MaskSettings,
    *,
    gate: str | None,
    direction: Direction,
    edges: bool,
    paired: bool,
    n_units: int,
) -> MaskSettings:
    """A task's recipe, moved to another gate or direction, or to edges.

    Args:
        recipe: For a gate with a budget and `break`.
        gate: None stays with the recipe's.
        paired: The task has counterfactual inputs.
        n_units: All units; the range of k is made to fit.
    """
    gate_class = GATES[gate or recipe.gate]
    if gate is not None and gate != recipe.gate:
        recipe = replace(recipe, gate=gate, **gate_class.recipe)
    recipe = replace(recipe, direction=direction)
    if direction == "isolate":
        recipe = replace(recipe, concept_objective="kl", retain_weight=0.0)
    if edges and direction == "isolate":
        low, high = (share * n_units for share in ISOLATED_SHARES)
        recipe = replace(recipe, **ISOLATED_EDGES, k_min=low, k_max=max(high, 16.0))
        recipe = replace(recipe, **gate_class.recipe_isolating_edges)
        if paired:
            recipe = replace(recipe, ablation="counterfactual")
    return in_units(recipe, n_units)


def saved_settings(run: Path) -> MaskSettings | None:
    """The settings that a run was started with; None in runs that kept none."""
    path = run / SETTINGS_FILE
    if not path.exists():
        return None
    saved = read_json(path)
    if isinstance(saved, dict):
        saved = _NOT_YET | saved
    names = {f.name for f in fields(MaskSettings)}
    if not isinstance(saved, dict) or set(saved) != names:
        got = sorted(saved) if isinstance(saved, dict) else type(saved).__name__
        raise UserError(
            f"{path} must hold the settings {sorted(names)}, got {got}; the run is of "
            "another version of this program"
        )
    return MaskSettings(**saved)


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
    if settings.penalty == "lagrangian" and settings.target_ablated > n_units:
        raise UserError(
            f"--target_ablated must be at most the {n_units} units, got "
            f"{settings.target_ablated:g}"
        )
    check_pairs(task, settings.ablation)
    if settings.per_position and task.head == "image_classification":
        raise UserError(
            f"--per_position needs a sequence, which --task {task.name} has not; leave "
            "it out"
        )


def _check_superset(superset: FrozenMask, sites: tuple[Site, ...]) -> None:
    if superset.sites != sites:
        check_one_graph([*superset.sites, *sites])
        raise UserError(
            "--superset must be a mask of the units that are trained, got one of "
            f"{', '.join(site.name for site in superset.sites)}; repeat its --units, "
            "--layers and --model"
        )
