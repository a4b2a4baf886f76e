"""Measure a model with or without a mask, and its scores against the cut's size.

    python scripts/evaluate.py --mask runs/RUN
    python scripts/evaluate.py --task ioi --model path/to/model

With --mask, task, model and data are the run's unless a flag says otherwise. --sizes
draws concept and retain scores against the number of ablated units, by the ranking.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.circuit import circuit_of
from circuitcut.experiments.flags import TaskConfig, command, flag
from circuitcut.experiments.plan import methods_of
from circuitcut.experiments.published_circuit import published_overlap
from circuitcut.experiments.scores import (
    attribution_scores,
    ranking_of_run,
    score,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.mask_files import check_model
from circuitcut.reports.figures import draw_all
from circuitcut.reports.load import load_run
from circuitcut.reports.tables import format_table
from circuitcut.scripts.train_base import prepare
from circuitcut.storage.atomic import read_json
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory, is_run
from circuitcut.tasks.base import SPLITS
from circuitcut.training.config import config_dict, run_script


@dataclass(frozen=True)
class EvaluateConfig(TaskConfig):
    """What is measured, and on what."""

    mask: Path | None = flag(None, "run directory (or folder) that holds a mask")
    split: str = flag("heldout", f"one of {', '.join(SPLITS)}")
    sizes: list[int] = flag([], "numbers of ablated units to score the ranking at")
    methods: list[str] = flag(
        [], "attribution methods to draw beside the mask's ranking"
    )
    sampled: bool = flag(False, "score sampled continuations too (toxicity)")
    allow_other_weights: bool = flag(
        False, "apply the mask to other weights of the same shape"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in SPLITS:
            raise UserError(
                f"--split must be one of {list(SPLITS)}, got {self.split!r}"
            )
        if (self.sizes or self.methods) and self.mask is None:
            raise UserError("--sizes and --methods need --mask")
        if any(size < 0 for size in self.sizes):
            raise UserError(f"--sizes must be >= 0, got {self.sizes}")
        wrong = [method for method in self.methods if method not in METHODS]
        if wrong:
            raise UserError(f"--methods must be among {sorted(METHODS)}, got {wrong}")


def mask_at(path: Path) -> FrozenMask:
    """The mask in the folder `path`, not yet checked against a model.

    Raises:
        UserError: When there is none, telling by what lies there what to do, or when it
            is damaged.
    """
    if (path / "mask.json").exists():
        return FrozenMask.load(path)
    kind = read_json(path / "config.json").get("kind") if is_run(path) else None
    if kind == "train_mask":
        raise UserError(
            f"--mask {path} has not finished; continue it with python "
            f"scripts/train_mask.py --resume {path}"
        )
    found = f"{kind} run" if kind else "folder" if path.is_dir() else "missing folder"
    raise UserError(
        f"--mask must be a train_mask run or another folder with mask.json, got {found}"
        f" {path}"
    )


def from_run(config: Any, path: Path) -> Any:
    """`config` with the task flags of the run at `path` wherever no flag was given."""
    file = path / "config.json"
    if not file.exists():
        return config
    saved = read_json(file)
    defaults = {f.name: getattr(type(config)(), f.name) for f in fields(TaskConfig)}
    own = {"seed", "device", "run_dir", "mixed_precision"}
    taken = {
        key: Path(saved[key]) if key == "labels_file" and saved[key] else saved[key]
        for key, default in defaults.items()
        if key in saved and key not in own and getattr(config, key) == default
    }
    return replace(config, **taken)


def main(config: EvaluateConfig) -> Path:
    """Evaluate, print the table, write results.json and the figure."""
    mask = None
    if config.mask is not None:
        mask = mask_at(config.mask)
        if max(config.sizes, default=0) > mask.n_units:
            raise UserError(
                f"--sizes must be at most the {mask.n_units} units of {config.mask}, "
                f"got {max(config.sizes)}"
            )
        methods_of(config.methods or ["none"], [site.kind for site in mask.sites])
        config = from_run(config, config.mask)
    RunDirectory.check(config.run_dir)
    experiment = prepare(config)
    if mask is not None and config.mask is not None:
        check_model(
            mask.sites,
            mask.provenance,
            config.mask,
            experiment.loaded.model,
            config_hash=experiment.loaded.config_hash,
            allow_other_weights=config.allow_other_weights,
        )
    run = RunDirectory.create(
        config.run_dir,
        kind="evaluate",
        task=config.task,
        model=config.model_name,
        config=config_dict(config),
    )
    if not run.is_writer:  # one of several processes is enough
        return run.path
    split: Any = config.split
    scored = {"uncut": score(experiment, None, split=split)}
    if mask is not None:
        scored["cut"] = score(
            experiment, mask, split=split, sampled=config.sampled, seed=config.seed
        )
    curve: list[dict[str, Any]] = []
    if mask is not None and config.mask and (config.sizes or config.methods):
        ranking = ranking_of_run(config.mask, mask)
        _, curve = attribution_scores(
            experiment,
            mask,
            config.methods,
            sizes=config.sizes or [mask.n_ablated],
            seed=config.seed,
            rankings={"mask": ranking},
            split=split,
        )
    task = experiment.task
    results = {
        "kind": "evaluate",
        "task": config.task,
        "model": config.model_name,
        "split": config.split,
        "mask": str(config.mask) if config.mask else None,
        "n_ablated": mask.n_ablated if mask else 0,
        "n_units": mask.n_units if mask else None,
        "scores": {key: value.scores for key, value in scored.items()},
        "unseen": {key: value.unseen for key, value in scored.items()},
        "intervals": {key: value.intervals for key, value in scored.items()},
        "curve": curve,
        "circuit": circuit_of(mask) if mask else None,
        "published_circuit": published_overlap(
            config.task, config.model_name, experiment.loaded.model, mask
        )
        if mask
        else None,
        "concept_metric": vars(task.concept_metric),
        "retain_metric": vars(task.retain_metric),
    }
    run.write_results(results)
    names = list(scored["uncut"].scores)
    rows = [
        {
            "score": name,
            **{key: value.scores.get(name) for key, value in scored.items()},
        }
        for name in names
    ]
    print(format_table(rows, ["score", *scored]))
    if curve:
        _show_curve(results)
        for figure in draw_all(load_run(run.path)).values():
            print(f"figure: {figure}")
    runs = [config.mask, run.path] if config.mask else [run.path]
    print(f"run: {run.path}\nnext: {command('report', {'runs': runs})}")
    return run.path


def _show_curve(results: Mapping[str, Any]) -> None:
    names = [results[f"{which}_metric"]["name"] for which in ("concept", "retain")]
    rows = [{**row, **row["scores"]} for row in results["curve"]]
    print(f"\n{format_table(rows, ['method', 'n_ablated', *names])}")


if __name__ == "__main__":
    run_script(main, EvaluateConfig)
