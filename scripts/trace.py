"""Trace facts causally: which hidden states bring a fact back from a noisy subject.

    python scripts/trace.py
    python scripts/trace.py --model smollm2 --data known_1000.json --n_traced 10

The prompts of facts that the model knows are run with noise on the embeddings of the
subject's tokens, and again with the clean state of one token restored in one layer: the
output of a block, or of the MLPs or the attentions in a window of layers. Writes a new
run under runs/ with results.json: the share of the lost probability of the object that
each restored state brings back, by layer and class of tokens, with 95 % intervals over
prompts. A prompt costs about one pass a layer and restored kind, of as many copies as
it has tokens times --n_noise; the built-in model takes a few seconds.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from circuitcut.experiments.flags import TaskConfig
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import COUNT, SCALE, Range
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_first, run_script

Restored = Literal["hidden", "mlp", "attention"]


@dataclass(frozen=True)
class TraceConfig(TaskConfig):
    """Which facts are traced, what is corrupted and what is restored."""

    heading: ClassVar[str] = "tracing"
    headings: ClassVar[Headings] = {
        "tracing": (
            *("traced", "n_traced", "restored", "layers", "window", "noise"),
            "n_noise",
        )
    }

    task: str = flag("facts", "facts: the only task that can be traced")
    traced: Literal["all", "concept"] = flag(
        "all", "the facts of the concept, or the other facts of the data as well"
    )
    n_traced: int = flag(
        20, "prompts, drawn with --seed among known ones", within=COUNT
    )
    restored: list[str] = flag(
        list(get_args(Restored)),
        "what is restored: hidden (the output of one block), mlp, attention",
    )
    layers: list[int] = flag(
        [], "layers, centres of the windows; default: all", within=Range(0, 10_000)
    )
    window: int | None = flag(
        None,
        "layers of MLPs and of attention that are restored together; default: a fifth "
        "of the layers, at least 1 (10 of 48 as published)",
        within=Range(1, 10_000),
    )
    noise: float = flag(
        3.0,
        "standard deviation of the noise, in those of the subjects' embeddings",
        within=SCALE,
    )
    n_noise: int = flag(10, "draws of noise a prompt", within=Range(1, 10_000))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task != "facts":
            raise UserError(f"--task must be facts, got {self.task!r}")
        wrong = [name for name in self.restored if name not in get_args(Restored)]
        if wrong or not self.restored:
            raise UserError(
                f"--restored must name some of {', '.join(get_args(Restored))}, got "
                f"{wrong or 'none'}"
            )


parse_first(__name__, TraceConfig, __doc__)

from circuitcut.attribution.tracing import (
    TraceSettings,
    effects_table,
    embedding_deviation,
    traces,
)
from circuitcut.experiments.base_model import with_base_model
from circuitcut.experiments.circuits.traced_facts import TracedFacts, traced_facts
from circuitcut.experiments.describe import header
from circuitcut.experiments.load import Experiment, load, provenance_of
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.saved_runs import new_run
from circuitcut.models.architectures import n_layers
from circuitcut.reports.circuits.trace_map import effect_rows
from circuitcut.reports.figures import draw_all
from circuitcut.reports.load import load_run
from circuitcut.reports.tables import format_table

logger = logging.getLogger(__name__)
WINDOW_SHARE = 0.2


def main(config: TraceConfig) -> Path:
    """Find known facts, trace them; table, figure and results.json."""
    RunDirectory.check(config.run_dir)
    experiment = load(config)
    settings = _settings(config, n_layers(experiment.loaded.model))
    experiment = resolved(
        with_base_model(experiment), config,
        window=settings.window, layers=list(settings.layers),
    )  # fmt: skip
    found = traced_facts(experiment, config, which=config.traced, n=config.n_traced)
    logger.info("%s", _cost(found, settings))
    run = new_run(experiment, config, "trace", made_with=provenance_of(experiment))
    with run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        results = header("trace", experiment) | _traced(experiment, found, settings)
        results["next"] = command("report", {"runs": run.path})
        run.write_results(results)
    _show(results)
    for figure in draw_all(load_run(run.path)).values():
        print(f"figure: {figure}")
    print(f"run: {run.path}\nnext: {results['next']}")
    return run.path


def _settings(config: TraceConfig, n_all: int) -> TraceSettings:
    wrong = [layer for layer in config.layers if layer >= n_all]
    if wrong:
        raise UserError(f"--layers must be 0 to {n_all - 1}, got {wrong}")
    restored: Any = tuple(config.restored)
    return TraceSettings(
        restored=restored,
        noise=config.noise,
        n_noise=config.n_noise,
        window=config.window or max(1, round(WINDOW_SHARE * n_all)),
        layers=tuple(sorted(config.layers)) or tuple(range(n_all)),
        seed=config.seed,
    )


def _cost(found: TracedFacts, settings: TraceSettings) -> str:
    """What is going to be run, in words."""
    n_tokens = sum(f.prompt.n_tokens * len(f.prompt.input_ids) for f in found.facts)
    n_passes = len(settings.layers) * len(settings.restored)
    return (
        f"tracing {len(found.facts):,} prompts: {settings.n_noise * n_tokens:,} tokens "
        f"for each of {n_passes:,} layers and restored kinds, through the layers above"
    )


def _traced(
    experiment: Experiment, found: TracedFacts, settings: TraceSettings
) -> dict[str, Any]:
    """The entries of results.json beside the header."""
    model, prompts = experiment.loaded.model, [f.prompt for f in found.facts]
    sigma = embedding_deviation(model, prompts)
    runs = traces(model, prompts, settings, sigma=sigma)
    n = len(runs)
    return {
        "tracing": {
            "noise": settings.noise,
            "sigma": sigma,
            "n_noise": settings.n_noise,
            "window": settings.window,
            "n_asked": found.n_asked,
            "left_out": found.left_out,
            "clean": sum(run.clean for run in runs) / n,
            "corrupted": sum(run.corrupted for run in runs) / n,
            "total_effect": sum(run.clean - run.corrupted for run in runs) / n,
        },
        "prompts": [
            {
                "text": traced.text,
                "subject": traced.fact.subject,
                "object": traced.fact.object,
                "clean": run.clean,
                "corrupted": run.corrupted,
            }
            for traced, run in zip(found.facts, runs, strict=True)
        ],
        "effects": effects_table(prompts, runs, settings, settings.layers),
    }


def _show(results: Mapping[str, Any]) -> None:
    tracing = results["tracing"]
    print(
        f"P(object), mean over {len(results['prompts'])} prompts: "
        f"{tracing['clean']:.3f}, with a noisy subject {tracing['corrupted']:.3f}"
    )
    rows = effect_rows(results)
    print(f"{format_table(rows, list(rows[0]))}\n")


if __name__ == "__main__":
    run_script(main, TraceConfig)
