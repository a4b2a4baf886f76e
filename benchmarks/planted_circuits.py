"""How often training finds the edges of circuits that were built by hand.

    python benchmarks/planted_circuits.py
    python benchmarks/planted_circuits.py --seeds 20 --gates hard_concrete topk

Each seed is another model: other places of the planted heads and MLPs among random
ones, other random weights. Masks are trained, frozen and tried as
`train_mask.py --units edges --direction isolate` does with its defaults. The table
gives, for every circuit and gate, on how many seeds the mask keeps exactly the true
edges, before the last step (`trained`: the threshold, and for topk as many as there
are) and after it (`found`).

    python benchmarks/planted_circuits.py --direction break

trains cuts instead, of models with a second behaviour that is retained, and gives how
many edges are cut, on how many seeds only true ones, and what the cut leaves of both
behaviours on new examples (means; a guess is right once in six).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from circuitcut.benchmarks.planted_edges import (
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
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.freeze import Frozen, freeze
from circuitcut.experiments.gate_optimisation import GateWatch
from circuitcut.experiments.gate_training import (
    ablation_values,
    cut_with,
    train_gates,
)
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.plan import Plan, Size, adapted
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gate import Direction
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
    """What is tried how often."""

    circuits: list[str] = flag(list(CIRCUITS), f"any of {', '.join(ALL)}")
    gates: list[str] = flag(sorted(GATES), "gates to train")
    seeds: int = flag(20, "models of each circuit")
    first_seed: int = flag(0, "seed of the first of them")
    direction: Direction = flag("isolate", "isolate a circuit, or break one of two")

    def __post_init__(self) -> None:
        for name, given, known in (
            ("circuits", self.circuits, ALL),
            ("gates", self.gates, GATES),
        ):
            if wrong := [each for each in given if each not in known]:
                raise UserError(f"--{name} must be among {list(known)}, got {wrong}")
        if self.seeds < 1:
            raise UserError(f"--seeds must be positive, got {self.seeds}")


@dataclass(frozen=True)
class Found:
    """Kept edges of one trained mask."""

    trained: frozenset[str]
    """Before the last step."""
    kept: frozenset[str]
    n_steps: int
    seconds: float


def search(
    circuit: PlantedCircuit, gate: str, seed: int, *, n_steps: int | None = None
) -> Found:
    """Train, freeze and try a mask on the edges of `circuit`, with the defaults.

    Args:
        n_steps: Instead of as many as are usual.
    """
    start = time.perf_counter()
    done = _trained(circuit, gate, seed, "isolate", n_steps)
    mask = raw = done.mask
    if gate == "topk":
        size = mask.n_units - len(circuit.truth)
        raw = FrozenMask.exactly_k(
            done.ranking, mask.sites, mask.ablated, n_ablated=size
        )
    if can_remove_spare_edges(mask, done.settings):
        frozen = Frozen(mask, done.ranking)
        mask = without_spare_edges(done.experiment, done.settings, frozen).mask
    return Found(
        frozenset(raw.edges(kept=True)),
        frozenset(mask.edges(kept=True)),
        done.settings.n_steps,
        time.perf_counter() - start,
    )


@dataclass(frozen=True)
class Broken:
    """A cut, and what it leaves on new examples."""

    cut: frozenset[str]
    accuracy: float
    retained: float


def break_one(
    circuit: PlantedCircuit, gate: str, seed: int, *, n_steps: int | None = None
) -> Broken:
    """Train, freeze and try a cut of `circuit`, with the defaults.

    Args:
        n_steps: Instead of as many as are usual.
    """
    done = _trained(circuit, gate, seed, "break", n_steps)
    mask, task = done.mask, done.experiment.task
    if can_restore_edges(mask, done.settings, task.concept_metric, None):
        frozen, target = Frozen(mask, done.ranking), Size().concept_target
        mask = with_edges_restored(done.experiment, done.settings, frozen, target).mask
    cut = cut_with(done.experiment, mask)
    scores = evaluate(task, circuit.model, "heldout", cut=cut).scores
    cut_edges = frozenset(mask.edges(kept=False))
    return Broken(cut_edges, scores["accuracy"], scores["retained"])


@dataclass(frozen=True)
class _Trained:
    """A mask as it is frozen, before spare edges are removed or edges restored."""

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
    planned = Plan(sites, settings, Size(), methods=(), n_random=0, curve_sizes=())
    frozen = freeze(planned, experiment, masks, ablated)
    return _Trained(experiment, settings, frozen.mask, frozen.ranking)


def _settings(
    circuit: PlantedCircuit,
    gate: str,
    seed: int,
    n_units: int,
    direction: Direction,
) -> MaskSettings:
    """The defaults of an unknown task."""
    recipe = adapted(
        MaskSettings(),
        gate=gate,
        direction=direction,
        edges=True,
        paired=circuit.ablation == "counterfactual",
        n_units=n_units,
    )
    recipe = replace(recipe, positions="all", mean_over="all")
    return replace(recipe, ablation=circuit.ablation, seed=seed)


def experiment_on(circuit: PlantedCircuit) -> Experiment:
    """What scripts work on: the circuit's task and model, on the CPU."""
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
    """Fractions of the kept edges that are true, and of the true ones kept."""
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
            print(f"{name}, {gate}: found {rows[-1]['found']}", flush=True)
    print(format_table(rows, list(rows[0])))


def _break_row(gate: str, config: PlantedConfig) -> dict[str, str]:
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    circuits = [two_behaviours(seed) for seed in seeds]
    found = [
        break_one(circuit, gate, seed)
        for circuit, seed in zip(circuits, seeds, strict=True)
    ]
    only_true = sum(
        f.cut <= circuit.truth for f, circuit in zip(found, circuits, strict=True)
    )
    n = len(found)
    return {
        "gate": gate,
        "edges cut": f"{sum(len(f.cut) for f in found) / n:.1f}",
        "only true": f"{only_true}/{n}",
        "accuracy": f"{sum(f.accuracy for f in found) / n:.3f}",
        "retained": f"{sum(f.retained for f in found) / n:.3f}",
    }


def _row(name: str, gate: str, config: PlantedConfig) -> dict[str, str]:
    found, truths = [], []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        circuit = ALL[name](seed)
        truths.append(circuit.truth)
        found.append(search(circuit, gate, seed))
    pairs = [
        precision_and_recall(f.kept, truth)
        for f, truth in zip(found, truths, strict=True)
    ]
    n, both = len(found), list(zip(found, truths, strict=True))
    return {
        "circuit": name,
        "gate": gate,
        "trained": f"{sum(f.trained == truth for f, truth in both)}/{n}",
        "found": f"{sum(f.kept == truth for f, truth in both)}/{n}",
        "precision": f"{sum(p for p, _ in pairs) / n:.3f}",
        "recall": f"{sum(r for _, r in pairs) / n:.3f}",
        "steps": str(found[0].n_steps),
        "seconds": f"{sum(f.seconds for f in found) / n:.1f}",
    }


if __name__ == "__main__":
    run_script(main, PlantedConfig)
