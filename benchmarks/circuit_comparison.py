"""Learned circuits against attribution at every size, on a decoder of four layers.

    python benchmarks/circuit_comparison.py --out build/circuits

The built-in deep decoder has four behaviours: it identifies indirect objects, copies
names, repeats words (induction), and completes spans of years with a later year. The
score of each behaviour is printed. For each seed (base model, batches and gates) the
edges are ranked for the indirect object by soft top-k gates, by hard-concrete gates
(300 steps each), by EAP and EAP-IG on the same graph with and without the signs of
their scores, and at random. Ablation values are counterfactual; scores are on held-out
names. Tables give means and ranges over seeds. An interrupted run continues where it
stopped. About 15 minutes on one core for three seeds.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuitcut.benchmarks.commands import run_verb
from circuitcut.data.ioi.behaviours_generated import (
    CENTURIES,
    EVENTS,
    LAST_YEAR,
    REPEATED,
    WORDS,
    years_prompt,
)
from circuitcut.experiments.base_model import prepare
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.load import Experiment
from circuitcut.reports.tables import format_table, mean, ranking_name, with_interval
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.evaluation import evaluate
from circuitcut.training.config import parse_config, run_script

GATES = ("topk", "hard_concrete")
N_PROMPTS = 200


@dataclass(frozen=True)
class ComparisonConfig:
    """Settings of the comparison."""

    out: Path = flag(Path("build/circuits"), "folder of the runs")
    seeds: list[int] = flag([0, 1, 2], "seeds of base model, batches and gates")
    n_random: int = flag(3, "random rankings per seed")


def main(config: ComparisonConfig) -> None:
    """Run what is not finished yet, then print the tables."""
    results = [_one_seed(config, seed) for seed in config.seeds]
    shares = sorted({row["fraction"] for row in results[0]["curve"]})
    methods = list(dict.fromkeys(map(ranking_name, results[0]["curve"])))
    for title, value in (
        ("faithfulness", lambda row: row["faithfulness"]),
        ("faithfulness without the circuit", _complement_faithfulness),
        ("top-1 accuracy", lambda row: row["scores"]["top1"]),
        ("KL to the uncut model, nats", lambda row: row["scores"]["kl_concept"]),
    ):
        print(f"\n{title}, mean (range over {len(results)} seeds)")
        rows = [
            {"edges kept": f"{100 * share:g} %"}
            | {method: _over_seeds(results, method, share, value) for method in methods}
            for share in shares
        ]
        print(format_table(rows, list(rows[0])))
    rows = [
        {"ranking": method}
        | {key.upper(): _area(results, method, key) for key in ("cpr", "cmd")}
        for method in methods
    ]
    print(f"\nareas\n{format_table(rows, list(rows[0]))}")


def _one_seed(config: ComparisonConfig, seed: int) -> Mapping[str, Any]:
    """Results of `faithfulness` on one base model."""
    model = ["--task", "ioi", "--model", "deep-decoder", "--data", "builtin:several"]
    shared = [*model, "--base_seed", str(seed), "--seed", str(seed)]
    where = ["--run_dir", str(config.out)]
    _show_behaviours(prepare(parse_config(TaskConfig, shared)), seed)
    masks = []
    for gate in GATES:
        path = config.out / f"{gate}-{seed}"
        masks.append(str(path))
        if not (path / "results.json").exists():
            flags = [*shared, *where, "--units", "edges", "--direction", "isolate"]
            flags += ["--gate", gate, "--n_random", "0", "--attribution", "none"]
            # an interrupted run is resumed; otherwise a new run is started
            target = ["--name", path.name]
            if path.exists():
                target = ["--resume", str(path)]
            run_verb("train_mask", [*flags, *target])
    name_file = config.out / f"faithfulness-{seed}.txt"
    if not name_file.exists():
        flags = [*where, "--mask", *masks, "--n_random", str(config.n_random)]
        flags += ["--seed", str(seed)]
        run_verb("faithfulness", flags)
        newest = RunDirectory.newest(config.out, "faithfulness")
        name_file.write_text(newest.path.name)
    return RunDirectory.open(config.out / name_file.read_text()).results


def _show_behaviours(experiment: Experiment, seed: int) -> None:
    """Print the uncut model's score on each of its behaviours."""
    scores = evaluate(experiment.task, experiment.loaded.model, "heldout").scores
    print(
        f"\nseed {seed}: indirect object {scores['top1']:.3f} top-1, "
        f"induction {_induction(experiment):.3f} top-1, "
        f"later years {_later_years(experiment):.3f} of the probability of all years"
    )


def _induction(experiment: Experiment) -> float:
    """Top-1 accuracy on the words of the second halves."""
    rng, hits, total = random.Random(1), 0, 0
    tokenizer: Any = experiment.loaded.tokenizer
    for _ in range(N_PROMPTS):
        words = rng.sample(WORDS, rng.randint(*REPEATED))
        ids = tokenizer(" ".join([*words, *words]), return_tensors="pt").input_ids
        with torch.no_grad():
            predictions = experiment.loaded.model(input_ids=ids).logits[0].argmax(-1)
        start = ids.shape[1] - len(words)
        hits += int((predictions[start:-1] == ids[0, start + 1 :]).sum())
        total += len(words) - 1
    return hits / total


def _later_years(experiment: Experiment) -> float:
    """Probability of the years after the start, as a share of all two-digit years."""
    rng, shares = random.Random(2), []
    tokenizer: Any = experiment.loaded.tokenizer
    years = tokenizer.convert_tokens_to_ids([f"{year:02d}" for year in range(3, 100)])
    for _ in range(N_PROMPTS):
        start = rng.randint(2, LAST_YEAR)
        text = years_prompt(rng.choice(EVENTS), rng.choice(CENTURIES), start)
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = experiment.loaded.model(input_ids=ids).logits[0, -1]
        probabilities = logits.softmax(-1)[torch.tensor(years)]
        share = probabilities[start - 2 :].sum() / probabilities.sum()
        shares.append(share.item())
    return sum(shares) / len(shares)


def _complement_faithfulness(row: Mapping[str, Any]) -> float | None:
    value: float | None = row["without"]["faithfulness"]
    return value


def _over_seeds(
    results: Sequence[Mapping[str, Any]], method: str, share: float, value: Any
) -> str:
    """Mean over seeds; several rankings of one seed are averaged first."""
    of_seed = [
        mean(
            [
                value(row)
                for row in result["curve"]
                if (ranking_name(row), row["fraction"]) == (method, share)
            ]
        )
        for result in results
    ]
    return _shown(of_seed)


def _area(results: Sequence[Mapping[str, Any]], method: str, key: str) -> str:
    return _shown(
        [
            mean([row[key] for row in result["areas"] if ranking_name(row) == method])
            for result in results
        ]
    )


def _shown(of_seed: Sequence[float | None]) -> str:
    known = [value for value in of_seed if value is not None]
    return with_interval(mean(known), [min(known), max(known)]) if known else ""


if __name__ == "__main__":
    run_script(main, ComparisonConfig)
