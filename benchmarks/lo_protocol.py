"""Lo et al. (2024) on a real encoder: prune a share of all hidden units, then retrain.

    CIRCUITCUT_DATA=... python benchmarks/lo_protocol.py --out build/lo --epochs 2

Lo et al., "Large Language Models Relearn Removed Concepts", arXiv 2401.01814: hidden
units of all layers are ranked by the difference of mean vectors (probeless), the top
share is pruned, and the model is retrained in stages. At each share this benchmark also
retrains a random cut with the same counts and the uncut model, with the holdings
lasting and one_shot. Departures: the share is varied (pruning half of MiniLM's units
removes all its abilities), the bias is pruned too, and scores are on held-out
documents. Writes lo.json and a figure, and prints a table.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.base_model import prepare
from circuitcut.experiments.flags import TaskConfig
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.relearning.conditions import Condition, conditions
from circuitcut.relearning.protocol import RelearnSettings, relearn
from circuitcut.relearning.study import Study
from circuitcut.reports.tables import format_table
from circuitcut.storage.atomic import write_json
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.training.config import run_script

COLOURS = {"cut": "#D55E00", "random": "#009E73", "uncut": "#0072B2"}


@dataclass(frozen=True)
class LoConfig(TaskConfig):
    """Settings of the benchmark."""

    out: Path = flag(Path("build/lo"), "folder of lo.json and lo.png")
    shares: list[float] = flag(
        [0.005, 0.01, 0.02, 0.05, 0.1, 0.5], "pruned shares of the hidden units"
    )
    epochs: float = flag(2.0, "epochs of retraining over the relearn split")
    seeds: list[int] = flag([0], "seeds of the data order and the random cut")
    relearn_lr: float = flag(5e-5, "learning rate of retraining")
    holdings: list[str] = flag(
        ["lasting", "one_shot"],
        "lasting: the cut stays during retraining; one_shot: it is applied once before",
    )


def main(config: LoConfig) -> list[dict[str, Any]]:
    """Prune and retrain at every share; skip finished conditions."""
    folder = os.environ.get("CIRCUITCUT_DATA")
    if folder is None and config.data is None:
        raise UserError("set CIRCUITCUT_DATA to the data folder, or give --data")
    data = config.data or str(Path(folder or "") / "wikigold" / "wikigold.conll.txt")
    config = replace(
        config, task="locations", model=config.model or "minilm", data=data
    )
    experiment = prepare(config)
    task, loaded = experiment.task, experiment.loaded
    sites = sites_of(loaded.model, ["hidden"])
    zero = zero_values(sites)
    scores = METHODS["probeless"](
        task, loaded.model, sites, zero, split="mask", n_batches=60, size=16, seed=0
    )
    ranking = {name: -values for name, values in scores.items()}
    n_units = sum(site.n_units for site in sites)
    batch_size = 16
    n_steps = max(1, round(config.epochs * task.n_examples("relearn") / batch_size))
    settings = RelearnSettings(
        n_steps=n_steps, batch_size=batch_size, lr=config.relearn_lr, n_evaluations=4
    )
    rows: list[dict[str, Any]] = []
    holdings: Any = tuple(config.holdings)
    for share in config.shares:
        mask = FrozenMask.exactly_k(
            ranking, sites, zero, n_ablated=round(share * n_units)
        )
        cuts = conditions(("cut", "random"), holdings, tuple(config.seeds), (None,))
        rows += _run(config, experiment, mask, cuts, settings, share)
    uncut = conditions(("uncut",), ("lasting",), tuple(config.seeds), (None,))
    rows += _run(config, experiment, mask, uncut, settings, 0.0)
    write_json(config.out / "lo.json", rows)
    shown = [row for row in rows if row["step"] in (0, n_steps)]
    print(format_table(shown, list(shown[0])))
    print(f"figure: {draw(rows, n_steps, config.out / 'lo.png')}")
    return rows


def _run(
    config: LoConfig,
    experiment: Any,
    mask: FrozenMask,
    to_run: list[Condition],
    settings: RelearnSettings,
    share: float,
) -> list[dict[str, Any]]:
    study = Study(
        experiment.task,
        experiment.loaded,
        mask,
        settings,
        accelerator=experiment.accelerator,
    )
    runs = relearn(study, to_run, config.out / f"share-{share}", resume=True)
    return [
        {
            "share": share,
            "n_ablated": mask.n_ablated if share else 0,
            "condition": run.condition.name,
            "holding": run.condition.holding or "-",
            "seed": run.condition.seed,
            "step": measurement.step,
            "concept_f1": measurement.scores["concept_f1"],
            "retain_f1": measurement.scores["retain_f1"],
        }
        for run in runs
        for measurement in run.measurements
    ]


def draw(rows: list[dict[str, Any]], n_steps: int, path: Path) -> Path:
    """Plot F1 of concept and other types against the pruned share, before and after."""
    figure, panels = plt.subplots(
        1, 2, figsize=(11, 4.2), sharey=True, layout="constrained"
    )
    for axes, metric, title in zip(
        panels, ("concept_f1", "retain_f1"), ("locations", "other types"), strict=True
    ):
        for condition in ("cut", "random"):
            for holding in dict.fromkeys(r["holding"] for r in rows if r["share"]):
                for step, marker in ((0, "o"), (n_steps, "s")):
                    if step == 0 and holding != "lasting":
                        continue
                    points = _means(rows, condition, holding, step, metric)
                    when = f"retrained, {holding}" if step else "before retraining"
                    axes.plot(
                        *zip(*points, strict=True),
                        marker=marker,
                        color=COLOURS[condition],
                        linestyle={"-": "-", "lasting": "-", "one_shot": ":"}[holding]
                        if step
                        else "--",
                        label=f"{condition}: {when}",
                    )
        uncut = [r[metric] for r in rows if r["share"] == 0 and r["step"] == 0]
        axes.axhline(sum(uncut) / len(uncut), color=COLOURS["uncut"], label="uncut")
        axes.set_xscale("log")
        shares = sorted({row["share"] for row in rows if row["share"]})
        axes.set_xticks(shares, [f"{100 * share:g} %" for share in shares])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("share of hidden units pruned")
        axes.set_title(title)
    panels[0].set_ylabel("span F1 on held-out documents")
    panels[1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _means(
    rows: list[dict[str, Any]], condition: str, holding: str, step: int, metric: str
) -> list[tuple[float, float]]:
    points = []
    for share in dict.fromkeys(row["share"] for row in rows if row["share"]):
        key = (share, condition, holding, step)
        scores = [
            row[metric]
            for row in rows
            if (row["share"], row["condition"], row["holding"], row["step"]) == key
        ]
        points.append((share, sum(scores) / len(scores)))
    return points


if __name__ == "__main__":
    run_script(main, LoConfig)
