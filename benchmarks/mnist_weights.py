"""Forgetting the digit 3 by cutting input weights or neurons of an MNIST classifier.

    CIRCUITCUT_DATA=... python benchmarks/mnist_weights.py --out build/mnist

Four settings. `published`: the published experiment (784-50-5 units; classes 2/8, 4/9,
1/6, 7/3, 0/5; 30 test images of a 3; 39,200 input weights; mean ablation) with its own
method, its greedy baselines, our gates and attribution. `grouped`: the same with all 3s
of the training images. `digits`: ten classes, weights. `neurons`: ten classes, neurons.
Each (setting, seed, method, number of cut units) is one line of curve.jsonl; an
interrupted run continues where it stopped. About 2 hours on one core for three seeds.
At the end it prints a table per setting.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.attribution.registry import METHODS, able
from circuitcut.benchmarks.curve import Curve
from circuitcut.benchmarks.greedy_edges import Images, greedy_edges
from circuitcut.benchmarks.mnist_models import base_model, without_concept
from circuitcut.benchmarks.published_mask import published_mask
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.gate_optimisation import GateWatch
from circuitcut.experiments.gate_training import ablation_values, train_gates
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.scores import cut_by
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.loaded import LoadedModel
from circuitcut.reports.tables import format_table
from circuitcut.storage.atomic import write_json
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.tasks.base import TaskOptions
from circuitcut.tasks.evaluation import evaluate
from circuitcut.tasks.mnist import MnistTask, with_test_behaviour
from circuitcut.training.config import run_script
from circuitcut.training.schedules import Schedule

SOFT_TOPK = MaskSettings(
    ablation="mean",
    margin_floor=6.0,
    retain_weight=6.0,
    batch_size=128,
    n_steps=1500,
)
HARD_CONCRETE = replace(
    SOFT_TOPK,
    gate="hard_concrete",
    keep_prob=0.95,
    penalty="price",
    price=5e-3,
    n_steps=3000,
)
EXACT_GREEDY = {"greedy_exact": 1.0, "greedy_exact_with_rest": 0.1}
"""Weight of the loss on the forgotten images; the second method also uses the loss on
retained images, with weight 1."""
N_GREEDY = 400
N_EPOCHS_WITHOUT = 5


@dataclass(frozen=True)
class Setting:
    """One network, concept and kind of unit."""

    concept: str
    units: str
    d_hidden: int
    n_base_steps: int
    schedule: Schedule
    sizes: tuple[int, ...]
    k_range: tuple[float, float]
    n_shown: int | None = None
    """Number of test images of the concept for mask training; None: training images."""
    further_methods: tuple[str, ...] = ()
    """Methods that only this setting has."""


PUBLISHED = Setting(
    "grouped:3",
    "weights",
    50,
    21_094,  # 25 epochs of 54,000 images
    "constant",
    (50, 100, 200, 300, 400, 600, 800, 1000, 1200),
    (100.0, 1500.0),
    n_shown=30,
    further_methods=("published", *EXACT_GREEDY),
)
DIGITS = Setting(
    "3",
    "weights",
    128,
    12_000,
    "linear",
    (*PUBLISHED.sizes, 1600, 2000, 2500),
    (100.0, 3000.0),
)
SETTINGS = {
    "published": PUBLISHED,
    "grouped": replace(PUBLISHED, n_shown=None, further_methods=()),
    "digits": DIGITS,
    "neurons": replace(
        DIGITS,
        units="neurons",
        d_hidden=512,
        sizes=(16, 32, 64, 100, 128, 150, 200),
        k_range=(6.0, 250.0),
    ),
}


@dataclass(frozen=True)
class MnistConfig:
    """Settings of the comparison."""

    out: Path = flag(Path("build/mnist"), "folder of curve.jsonl and the models")
    data: Path | None = flag(None, "MNIST folder; default: mnist in CIRCUITCUT_DATA")
    settings: list[str] = flag(list(SETTINGS), f"any of {', '.join(SETTINGS)}")
    seeds: list[int] = flag([0, 1, 2], "seeds of models, batches and gates")
    methods: list[str] = flag(
        ["topk", "hard_concrete", *able(["weights"]), *PUBLISHED.further_methods],
        "rankings",
    )

    def __post_init__(self) -> None:
        unknown = sorted(set(self.settings) - set(SETTINGS))
        if unknown:
            raise UserError(f"--settings must be among {list(SETTINGS)}, got {unknown}")


@dataclass(frozen=True)
class Case:
    """One setting and seed, with the trained network."""

    setting: Setting
    task: MnistTask
    experiment: Experiment
    empty: FrozenMask
    """A mask that ablates nothing, with the sites and ablation values."""
    without_concept: LoadedModel | None
    """The same network trained without the concept; only for grouped classes."""
    seed: int


def prepare_case(config: MnistConfig, data: Path, name: str, seed: int) -> Case:
    """Data, network and ablation values of one setting and seed."""
    setting, accelerator = SETTINGS[name], Accelerator(cpu=True)
    corpus = MnistTask.read(TaskOptions(data=str(data), concept=setting.concept))
    train = partial(
        base_model,
        d_hidden=setting.d_hidden,
        schedule=setting.schedule,
        seed=seed,
        accelerator=accelerator,
    )
    stem = f"{setting.concept.replace(':', '-')}-{setting.d_hidden}-{seed}"
    loaded = train(
        corpus, config.out / f"{stem}.safetensors", n_steps=setting.n_base_steps
    )
    trained_without = None
    if corpus.is_grouped:
        trained_without = train(
            without_concept(corpus),
            config.out / f"{stem}-without.safetensors",
            n_steps=setting.n_base_steps // 25 * N_EPOCHS_WITHOUT,
        )
    if setting.n_shown is not None:
        corpus = with_test_behaviour(corpus, setting.n_shown)
    task = MnistTask(corpus)
    experiment = Experiment(TaskConfig(task="mnist"), task, corpus, loaded, accelerator)
    sites = sites_of(loaded.model, [setting.units])
    empty = FrozenMask.exactly_k(
        {site.name: torch.zeros(site.n_units) for site in sites},
        sites,
        ablation_values(experiment, sites, SOFT_TOPK),
        n_ablated=0,
    )
    return Case(setting, task, experiment, empty, trained_without, seed)


def masks_of(case: Case, method: str) -> Iterator[FrozenMask]:
    """The cuts of one method: one per size; `published` gives one of its own size."""
    sites, ablated, seed = case.empty.sites, case.empty.ablated, case.seed
    if method == "published":
        yield published_mask(case.experiment, case.task, sites, ablated, seed)
        return
    order = ranking(case, method)
    for n_ablated in case.setting.sizes:
        if method not in EXACT_GREEDY or n_ablated <= N_GREEDY:
            yield cut_by(case.empty, order, n_ablated)


def ranking(case: Case, method: str) -> dict[str, Tensor]:
    """Scores of all units; the units with the lowest scores are cut first."""
    sites = case.empty.sites
    if method in METHODS:
        scores = METHODS[method](
            case.task,
            case.experiment.loaded.model,
            sites,
            case.empty.ablated,
            n_batches=32,
            size=64,
            seed=case.seed,
        )
        return {name: -values for name, values in scores.items()}
    if method in EXACT_GREEDY:
        return exact_greedy_ranking(case, EXACT_GREEDY[method])
    low, high = case.setting.k_range
    settings = replace(
        SOFT_TOPK if method == "topk" else HARD_CONCRETE,
        k_min=low,
        k_max=high,
        seed=case.seed,
    )
    masks = train_gates(
        case.experiment,
        sites,
        case.empty.ablated,
        settings,
        watch=GateWatch(progress=method),
    )
    return masks.split(masks.ranking().cpu())


def exact_greedy_ranking(case: Case, forget_weight: float) -> dict[str, Tensor]:
    """The published greedy baselines, which cut `N_GREEDY` weights."""
    task, [site] = case.task, case.empty.sites
    concept = task.concept_batch("mask")

    def retained(step: int) -> Images:
        batch = task.finetune_batch("base", step, size=64, seed=case.seed)
        return batch["pixels"], batch["targets"]

    model = case.experiment.loaded.model
    first, last = (model.get_submodule(path) for path in ("blocks.0.linear", "output"))
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    order = greedy_edges(
        (first, last),
        case.empty.ablated.values[site.name],
        (concept["pixels"], concept["targets"]),
        N_GREEDY,
        retained=None if forget_weight == 1.0 else retained,
        forget_weight=forget_weight,
    )
    scores = torch.full((site.n_units,), torch.inf)
    scores[order] = torch.arange(len(order), dtype=scores.dtype)
    return {site.name: scores}


def measure(case: Case, mask: FrozenMask) -> dict[str, float]:
    """Scores on the test images that were not used in mask training."""
    model, task = case.experiment.loaded.model, case.task
    scores = evaluate(
        task, model, "heldout", size=1000, cut=lambda _: mask.applied(model)
    ).scores
    if case.without_concept is not None:
        pixels = task.concept_batch("heldout")["pixels"]
        expected = case.without_concept.model(pixels).logits.argmax(-1)
        with mask.applied(model):
            predictions = model(pixels).logits.argmax(-1)
        agreement = (predictions == expected).double().mean()
        scores["as_if_never_known"] = agreement.item()
    return scores


def one_case(config: MnistConfig, curve: Curve, case: Case, name: str) -> None:
    """Run every method and size of one setting and seed that is not finished yet."""
    key = {"setting": name, "seed": case.seed}
    if not curve.has(**key, method="uncut"):
        curve.add(
            key | {"method": "uncut", "n": 0, "scores": measure(case, case.empty)}
        )
    for method in config.methods:
        is_for_published = method in PUBLISHED.further_methods
        if is_for_published and method not in case.setting.further_methods:
            continue
        if curve.has(**key, method=method):
            continue
        rows = [
            key | {"method": method, "n": mask.n_ablated, "scores": measure(case, mask)}
            for mask in masks_of(case, method)
        ]
        for row in rows:
            curve.add(row)


def table(rows: list[dict[str, Any]], setting: str) -> list[dict[str, Any]]:
    """Means over seeds; `others_fall` is relative to the uncut network of each seed."""
    rows = [row for row in rows if row["setting"] == setting]
    uncut = {row["seed"]: row["scores"] for row in rows if row["method"] == "uncut"}
    published = [row["n"] for row in rows if row["method"] == "published"]
    by_cut: dict[tuple[str, int], list[dict[str, float]]] = {}
    for row in rows:
        fall = uncut[row["seed"]]["retain_accuracy"] - row["scores"]["retain_accuracy"]
        n = row["n"]
        if row["method"] == "published":  # its number of cut weights varies with seeds
            n = round(sum(published) / len(published))
        scores = row["scores"] | {"others_fall": fall}
        by_cut.setdefault((row["method"], n), []).append(scores)
    names = [
        *("concept_accuracy", "others_fall", "retain_accuracy"),
        *("class_mate_accuracy", "as_if_never_known"),
    ]
    return [
        {"method": method, "cut": n, "seeds": len(of_seeds)}
        | {
            name: sum(scores[name] for scores in of_seeds) / len(of_seeds)
            for name in names
            if name in of_seeds[0]
        }
        for (method, n), of_seeds in by_cut.items()
    ]


def main(config: MnistConfig) -> None:
    """Run what is not finished yet, then print one table per setting."""
    folder = os.environ.get("CIRCUITCUT_DATA")
    if folder is None and config.data is None:
        raise UserError("set CIRCUITCUT_DATA to the data folder, or give --data")
    data = config.data or Path(folder or "") / "mnist"
    config.out.mkdir(parents=True, exist_ok=True)
    curve = Curve(config.out / "curve.jsonl")
    for name in config.settings:
        for seed in config.seeds:
            one_case(config, curve, prepare_case(config, data, name, seed), name)
    tables = {name: table(curve.rows(), name) for name in config.settings}
    write_json(config.out / "tables.json", tables)
    for name, rows in tables.items():
        print(f"\n{name}")
        print(format_table(rows, list(rows[0])))


if __name__ == "__main__":
    run_script(main, MnistConfig)
