"""The same cuts by every gate, on the built-in model of each task.

    python benchmarks/gate_table.py
    python benchmarks/gate_table.py --cases mnist "ioi, edges" --seeds 0 1 2 3 4

A row is what `train_mask.py` gives with the default settings of task and gate at the
size of the row, on held-out examples: the mean over seeds of base model and mask, and
the range. The rankings without training and the random cut of the same size stand
beside them. An interrupted run continues where it stopped. About 40 minutes on one
core with three seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitcut.benchmarks.commands import run_verb
from circuitcut.masks.registry import GATES
from circuitcut.reports.tables import format_table, mean_and_range
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import run_script

CASES = {
    "locations": "--task locations --n_ablated 164",
    "mnist": "--task mnist --n_ablated 300",
    "ioi": "--task ioi --n_ablated 2",
    "ioi, edges": "--task ioi --units edges --n_ablated 4",
    "ioi, isolate": "--task ioi --units edges --direction isolate --n_ablated 292",
    "toxicity": "--task toxicity --n_ablated 112",
}


@dataclass(frozen=True)
class GateTableConfig:
    """Settings of the benchmark."""

    out: Path = flag(Path("build/gates"), "folder of the runs")
    cases: list[str] = flag(list(CASES), f"any of {', '.join(CASES)}")
    gates: list[str] = flag(["hard_concrete", "topk"], "gates to compare")
    seeds: list[int] = flag([0, 1, 2], "seeds of base model, batches and gates")

    def __post_init__(self) -> None:
        for given, known, name in (
            (self.cases, CASES, "cases"),
            (self.gates, GATES, "gates"),
        ):
            if unknown := set(given) - set(known):
                raise UserError(
                    f"--{name} must be among {', '.join(known)}, got {sorted(unknown)}"
                )


def main(config: GateTableConfig) -> None:
    """Train what is not finished yet, and print a table a case."""
    for case in config.cases:
        runs = {
            gate: [_results(config, case, gate, seed) for seed in config.seeds]
            for gate in config.gates
        }
        first = runs[config.gates[0]]
        print(f"\n{case}, {len(config.seeds)} seeds: {CASES[case]}")
        rows = [_row("uncut", [results["scores"]["uncut"] for results in first], first)]
        rows += [
            _row(gate, [results["scores"]["cut"] for results in of_gate], first)
            for gate, of_gate in runs.items()
        ]
        for method in first[0]["scores"]["attribution"]:
            scores = [results["scores"]["attribution"][method] for results in first]
            rows.append(_row(method, scores, first))
        drawn = [scores for results in first for scores in results["scores"]["random"]]
        rows.append(_row("random", drawn, first))
        print(format_table(rows, list(rows[1])), flush=True)


def _results(
    config: GateTableConfig, case: str, gate: str, seed: int
) -> Mapping[str, Any]:
    """What the finished run of this case, gate and seed says."""
    path = config.out / f"{case.replace(', ', '-')}-{gate}-{seed}"
    if not (path / "results.json").exists():
        flags = [*CASES[case].split(), "--gate", gate, "--run_dir", str(config.out)]
        flags += ["--seed", str(seed), "--base_seed", str(seed), "--n_random", "3"]
        flags += ["--resume", str(path)] if path.exists() else ["--name", path.name]
        run_verb("train_mask", flags)
    return RunDirectory.open(path).results


def _row(
    name: str, scores: Sequence[Mapping[str, float]], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The two scores of the task and both KL, over the seeds."""
    row: dict[str, Any] = {"ranking": name}
    for key in ("concept_metric", "retain_metric"):
        metric = runs[0][key]
        values = [of_seed[metric["name"]] for of_seed in scores]
        row[metric.get("label") or metric["name"]] = mean_and_range(values)
    for key in ("kl_concept", "kl_retain"):
        if key in scores[0]:
            row[key] = mean_and_range([of_seed[key] for of_seed in scores])
    return row


if __name__ == "__main__":
    run_script(main, GateTableConfig)
