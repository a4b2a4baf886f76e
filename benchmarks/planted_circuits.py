"""How often mask training finds the edges of circuits that were built by hand.

    python benchmarks/planted_circuits.py
    python benchmarks/planted_circuits.py --seeds 20 --gates hard_concrete topk

Each seed gives another model: the planted heads and MLPs have other places among random
ones, and the random weights differ. Masks are trained and frozen, and spare edges are
removed, as by `train_mask.py --units edges --direction isolate` with its default
settings. For every circuit and gate the table gives the number of seeds on which the
mask keeps exactly the true edges: `trained` before the removal of spare edges (by the
threshold; for topk as many edges as there are true ones), `found` after it.

    python benchmarks/planted_circuits.py --direction break

trains cuts of models with a second behaviour, which is retained. The table gives the
mean number of cut edges, the number of seeds on which only true edges are cut, and the
mean accuracy on both behaviours on new examples (chance: 1/6).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from circuitcut.benchmarks.planted.edges import (
    CIRCUITS,
    VARIATIONS,
    PlantedCircuit,
    two_behaviours,
)
from circuitcut.experiments.circuits.restore_edges import (
    can_restore_edges,
    with_edges_restored,
)
from circuitcut.experiments.circuits.spare_edges import (
    can_remove_spare_edges,
    without_spare_edges,
)
from circuitcut.experiments.defaults.of_mask import adapted
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.freeze import Frozen, freeze
from circuitcut.experiments.gate_optimisation import GateWatch
from circuitcut.experiments.gate_training import (
    ablation_values,
    cut_with,
    train_gates,
)
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.plan import Plan, Size
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gate_settings import Direction
from circuitcut.masks.registry import GATES
from circuitcut.models.architectures import sites_of
from circuitcut.models.loaded import LoadedModel, config_hash_of
from circuitcut.reports.tables import format_table
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.tasks.evaluation import evaluate
from circuitcut.training.config import run_script

ALL = CIRCUITS | VARIATIONS


@dataclass(frozen=True)
class PlantedConfig:
    """Settings of the benchmark."""

    circuits: list[str] = flag(list(CIRCUITS), f"any of {', '.join(ALL)}")
    gates: list[str] = flag(sorted(GATES), "gates to train")
    seeds: int = flag(20, "number of models of each circuit")
    first_seed: int = flag(0, "seed of the first model")
    direction: Direction = flag(
        "isolate", "isolate: keep one circuit; break: cut one of two circuits"
    )

    def __post_init__(self) -> None:
        for name, values, known in (
            ("circuits", self.circuits, ALL),
            ("gates", self.gates, GATES),
        ):
            if wrong := [value for value in values if value not in known]:
                raise UserError(f"--{name} must be among {list(known)}, got {wrong}")
        if self.seeds < 1:
            raise UserError(f"--seeds must be positive, got {self.seeds}")


@dataclass(frozen=True)
class SearchResult:
    """Kept edges of one trained mask."""

    trained: frozenset[str]
    """Kept edges before spare edges are removed."""
    kept: frozenset[str]
    """Kept edges afterwards."""
    n_steps: int
    seconds: float


def search(
    circuit: PlantedCircuit, gate: str, seed: int, *, n_steps: int | None = None
) -> SearchResult:
    """Train a mask on the edges of `circuit`, freeze it and remove spare edges.

    Args:
        n_steps: Training steps; None takes the default.
    """
    start = time.perf_counter()
    trained = _trained(circuit, gate, seed, "isolate", n_steps)
    mask = trained_mask = trained.mask
    if not GATES[gate].has_threshold(trained.settings):
        size = mask.n_units - len(circuit.truth)
        trained_mask = FrozenMask.exactly_k(
            trained.ranking, mask.sites, mask.ablated, n_ablated=size
        )
    if can_remove_spare_edges(mask, trained.settings):
        frozen = Frozen(mask, trained.ranking)
        mask = without_spare_edges(trained.experiment, trained.settings, frozen).mask
    return SearchResult(
        frozenset(trained_mask.edges(kept=True)),
        frozenset(mask.edges(kept=True)),
        trained.settings.n_steps,
        time.perf_counter() - start,
    )


@dataclass(frozen=True)
class BreakResult:
    """A cut and the accuracies of the cut model on new examples."""

    cut: frozenset[str]
    """Names of the ablated edges."""
    accuracy: float
    """Accuracy on the broken behaviour."""
    retained: float
    """Accuracy on the retained behaviour."""


def break_one(
    circuit: PlantedCircuit, gate: str, seed: int, *, n_steps: int | None = None
) -> BreakResult:
    """Train a cut of `circuit`, freeze it and restore edges that need not be cut.

    Args:
        n_steps: Training steps; None takes the default.
    """
    trained = _trained(circuit, gate, seed, "break", n_steps)
    mask, experiment, settings = trained.mask, trained.experiment, trained.settings
    task = experiment.task
    if can_restore_edges(mask, settings, task.concept_metric, None):
        frozen, target = Frozen(mask, trained.ranking), Size().concept_target
        mask = with_edges_restored(experiment, settings, frozen, target).mask
    cut = cut_with(experiment, mask)
    scores = evaluate(task, circuit.model, "heldout", cut=cut).scores
    cut_edges = frozenset(mask.edges(kept=False))
    return BreakResult(cut_edges, scores["accuracy"], scores["retained"])


@dataclass(frozen=True)
class _Trained:
    """A frozen mask before spare edges are removed or edges are restored."""

    experiment: Experiment
    settings: MaskSettings
    mask: FrozenMask
    ranking: Mapping[str, Tensor]


def _trained(
    circuit: PlantedCircuit,
    gate: str,
    seed: int,
    direction: Direction,
    n_steps: int | None,
) -> _Trained:
    experiment = experiment_on(circuit)
    sites = sites_of(circuit.model, ["edges"])
    n_units = sum(site.n_units for site in sites)
    settings = _settings(circuit, gate, seed, n_units, direction)
    if n_steps is not None:
        settings = replace(settings, n_steps=n_steps)
    ablated = ablation_values(experiment, sites, settings)
    masks = train_gates(
        experiment, sites, ablated, settings, watch=GateWatch(progress=None)
    )
    plan = Plan(sites, settings, Size(), methods=(), n_random=0, curve_sizes=())
    frozen = freeze(plan, experiment, masks, ablated)
    return _Trained(experiment, settings, frozen.mask, frozen.ranking)


def _settings(
    circuit: PlantedCircuit,
    gate: str,
    seed: int,
    n_units: int,
    direction: Direction,
) -> MaskSettings:
    """The default settings for a task without its own."""
    settings = adapted(
        MaskSettings(),
        gate=gate,
        direction=direction,
        edges=True,
        paired=circuit.ablation == "counterfactual",
        n_units=n_units,
    )
    settings = replace(settings, positions="all", mean_over="all")
    return replace(settings, ablation=circuit.ablation, seed=seed)


def experiment_on(circuit: PlantedCircuit) -> Experiment:
    """The circuit's task and model as an `Experiment` on the CPU."""
    loaded = LoadedModel(
        model=circuit.model,
        tokenizer=None,
        name="planted",
        revision=None,
        config_hash=config_hash_of(circuit.model.config),
        head_is_new=False,
        is_decoder=True,
        special_ids=(),
    )
    task = circuit.task(circuit.draw)
    corpus: Any = None  # the task draws its own examples
    return Experiment(TaskConfig(), task, corpus, loaded, Accelerator(cpu=True))


def precision_and_recall(
    kept: frozenset[str], truth: frozenset[str]
) -> tuple[float, float]:
    """Fraction of the kept edges that are true; fraction of the true edges kept."""
    hits = len(kept & truth)
    return hits / len(kept) if kept else 0.0, hits / len(truth)


def main(config: PlantedConfig) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = []
    if config.direction == "break":
        rows = [_break_row(gate, config) for gate in config.gates]
        print(format_table(rows, list(rows[0])))
        return
    for name in config.circuits:
        for gate in config.gates:
            rows.append(_row(name, gate, config))
            print(f"{name}, {gate}: found on {rows[-1]['found']} seeds", flush=True)
    print(format_table(rows, list(rows[0])))


def _break_row(gate: str, config: PlantedConfig) -> dict[str, str]:
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    circuits = [two_behaviours(seed) for seed in seeds]
    results = [
        break_one(circuit, gate, seed)
        for circuit, seed in zip(circuits, seeds, strict=True)
    ]
    only_true = sum(
        result.cut <= circuit.truth
        for result, circuit in zip(results, circuits, strict=True)
    )
    n = len(results)
    return {
        "gate": gate,
        "edges cut": f"{sum(len(result.cut) for result in results) / n:.1f}",
        "only true": f"{only_true}/{n}",
        "accuracy": f"{sum(result.accuracy for result in results) / n:.3f}",
        "retained": f"{sum(result.retained for result in results) / n:.3f}",
    }


def _row(name: str, gate: str, config: PlantedConfig) -> dict[str, str]:
    results, truths = [], []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        circuit = ALL[name](seed)
        truths.append(circuit.truth)
        results.append(search(circuit, gate, seed))
    n, pairs = len(results), list(zip(results, truths, strict=True))
    rates = [precision_and_recall(result.kept, truth) for result, truth in pairs]
    return {
        "circuit": name,
        "gate": gate,
        "trained": f"{sum(result.trained == truth for result, truth in pairs)}/{n}",
        "found": f"{sum(result.kept == truth for result, truth in pairs)}/{n}",
        "precision": f"{sum(precision for precision, _ in rates) / n:.3f}",
        "recall": f"{sum(recall for _, recall in rates) / n:.3f}",
        "steps": str(results[0].n_steps),
        "seconds": f"{sum(result.seconds for result in results) / n:.1f}",
    }


if __name__ == "__main__":
    run_script(main, PlantedConfig)
