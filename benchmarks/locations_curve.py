"""Learned masks against every attribution baseline on a real encoder and real text.

    CIRCUITCUT_DATA=... python benchmarks/locations_curve.py --out build/curve

Model: MiniLM fine-tuned on WikiGold (split by document). Units: neurons, of which
exactly N are cut, with zero and mean ablation. Scores: on held-out documents. Each
(base seed, ablation value, method, N) is one line of curve.jsonl; an interrupted run
continues where it stopped. About 2 hours on one core for three seeds. At the end it
prints a table per size, and the Jaccard overlap of the units cut with two seeds. Both
use all rows and rankings in --out, also those of earlier runs.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuitcut.attribution.registry import able
from circuitcut.benchmarks.curve import Curve
from circuitcut.experiments.base_model import prepare
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.gate_optimisation import GateWatch
from circuitcut.experiments.gate_training import (
    ablation_values,
    special_ids,
    train_gates,
)
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.scores import attribution_ranking, cut_by, score
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.reports.tables import format_table
from circuitcut.storage.atomic import read_tensors, write_json, write_tensors
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.training.config import run_script

PRICED = {"gate": "hard_concrete", "penalty": "price", "lr": 0.15, "price": 2e-3}
# Methods with many passes per batch get fewer batches (16 sentences each).
N_BATCHES = {"integrated_gradients_margin": 20, "greedy_margin": 20}
LEARNED: dict[str, dict[str, Any]] = {
    "hard_concrete": {},
    "hard_concrete_price": PRICED,
    "topk": {"gate": "topk"},
}


@dataclass(frozen=True)
class CurveConfig(TaskConfig):
    """Settings of the comparison."""

    out: Path = flag(Path("build/curve"), "folder of curve.jsonl and the rankings")
    seeds: list[int] = flag([0, 1, 2], "seeds of base model, batches and gates")
    sizes: list[int] = flag([8, 12, 24, 50, 100, 200], "numbers of units to cut")
    ablations: list[str] = flag(["zero", "mean"], "ablation values: zero, mean")
    methods: list[str] = flag(
        [*LEARNED, *(m for m in able(["neurons"]) if m != "random"), "random"],
        "rankings",
    )


def ranking(
    experiment: Experiment, empty: FrozenMask, settings: MaskSettings, method: str
) -> dict[str, torch.Tensor]:
    """Scores of all units, learned or attributed; the highest units are kept."""
    if method not in LEARNED:
        return attribution_ranking(
            experiment,
            empty,
            method,
            seed=settings.seed,
            n_batches=N_BATCHES.get(method, 60),
        )
    settings = replace(settings, **LEARNED[method])
    masks = train_gates(
        experiment,
        empty.sites,
        empty.ablated,
        settings,
        watch=GateWatch(progress=method),
    )
    return masks.split(masks.ranking().cpu())


def one_seed(config: CurveConfig, curve: Curve, seed: int) -> None:
    """Run all ablation values, methods and sizes on one base model."""
    experiment = prepare(replace(config, base_seed=seed, seed=seed))
    sites = sites_of(experiment.loaded.model, ["neurons"])
    if not curve.has(seed=seed, method="uncut"):
        scored = score(experiment, None)
        curve.add({"seed": seed, "method": "uncut", "n": 0, "scores": scored.scores})
    for ablation in config.ablations:
        kind: Any = ablation  # checked in `main`
        settings = replace(MaskSettings(), ablation=kind, mean_over="retain", seed=seed)
        empty = FrozenMask.exactly_k(
            {site.name: torch.zeros(site.n_units) for site in sites},
            sites,
            ablation_values(experiment, sites, settings),
            n_ablated=0,
            special_ids=special_ids(experiment, settings),
        )
        for method in config.methods:
            key = {"seed": seed, "ablation": ablation, "method": method}
            if all(curve.has(**key, n=n) for n in config.sizes):
                continue
            order = ranking(experiment, empty, settings, method)
            write_tensors(
                config.out / f"{method}-{ablation}-{seed}.safetensors", order, None
            )
            for n in config.sizes:
                if not curve.has(**key, n=n):
                    scored = score(experiment, cut_by(empty, order, n))
                    curve.add(
                        key
                        | {
                            "n": n,
                            "scores": scored.scores,
                            "intervals": scored.intervals,
                        }
                    )


def table(rows: list[dict[str, Any]], n: int) -> Iterator[dict[str, Any]]:
    """Mean and range over seeds at one size, a row per method and ablation value."""
    names = ("concept_f1", "retain_f1", "retain_f1_clean", "kl_retain")
    for ablation in ("zero", "mean"):
        for method in dict.fromkeys(row["method"] for row in rows):
            of_seeds = [
                row["scores"]
                for row in rows
                if (row["method"], row.get("ablation"), row["n"])
                == (method, ablation, n)
            ]
            if of_seeds:
                key = {"method": method, "ablation": ablation, "seeds": len(of_seeds)}
                yield key | {
                    name: _mean_and_range([scores[name] for scores in of_seeds])
                    for name in names
                }


def overlaps(folder: Path, n: int) -> Iterator[dict[str, Any]]:
    """Jaccard index of the `n` units cut with two seeds, a row per method and value."""
    cuts: dict[tuple[str, str], dict[int, FrozenMask]] = {}
    for file in sorted(folder.glob("*-*-*.safetensors")):
        method, ablation, seed = file.stem.rsplit("-", 2)
        cuts.setdefault((method, ablation), {})[int(seed)] = _lowest(file, n)
    for (method, ablation), of_seed in cuts.items():
        pairs = {
            f"{a} and {b}": of_seed[a].overlap(of_seed[b])
            for a, b in combinations(sorted(of_seed), 2)
        }
        if pairs:
            mean = np.mean(list(pairs.values())).item()
            yield {"method": method, "ablation": ablation, "mean": mean} | pairs


def _lowest(file: Path, n: int) -> FrozenMask:
    """The cut of a saved ranking; MiniLM's six layers are sorted by their names."""
    order = read_tensors(file)
    sites = [
        Site("neurons", name.removesuffix(":neurons"), layer, len(order[name]))
        for layer, name in enumerate(sorted(order))
    ]
    return FrozenMask.exactly_k(order, sites, zero_values(sites), n_ablated=n)


def _mean_and_range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{np.mean(values):.3f} ({low:.3f}-{high:.3f})"


def main(config: CurveConfig) -> None:
    """Run what is not finished yet, then print tables of all rows in the folder."""
    folder = os.environ.get("CIRCUITCUT_DATA")
    if folder is None and config.data is None:
        raise UserError("set CIRCUITCUT_DATA to the data folder, or give --data")
    if wrong := set(config.ablations) - {"zero", "mean"}:
        raise UserError(f"--ablations must be zero or mean, got {sorted(wrong)}")
    data = config.data or str(Path(folder or "") / "wikigold" / "wikigold.conll.txt")
    config = replace(config, task="locations", model="minilm", data=data)
    config.out.mkdir(parents=True, exist_ok=True)
    curve = Curve(config.out / "curve.jsonl")
    for seed in config.seeds:
        one_seed(config, curve, seed)
    rows = curve.rows()
    write_json(config.out / "curve.json", rows)
    uncut = [row["scores"] for row in rows if row["method"] == "uncut"]
    print("uncut:", {k: _mean_and_range([s[k] for s in uncut]) for k in uncut[0]})
    for n in config.sizes:
        print(f"\nN = {n}")
        shown = list(table(rows, n))
        print(format_table(shown, list(shown[0])))
    for n in config.sizes:
        if shown := list(overlaps(config.out, n)):
            print(f"\noverlap of the units cut with two seeds, N = {n}")
            columns = dict.fromkeys(name for row in shown for name in row)
            print(format_table(shown, list(columns)))


if __name__ == "__main__":
    run_script(main, CurveConfig)
