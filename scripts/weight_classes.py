"""Classify the neurons of a model by their weights alone: no data, no forward pass.

    python scripts/weight_classes.py --model smollm2
    python scripts/weight_classes.py --model smollm2 --show 29.1317 3.120
    python scripts/weight_classes.py --model owner/name --revisions step1000 main
    python scripts/weight_classes.py --model gpt2 --check published

A gated neuron has three vectors: it reads with w_gate and w_in and writes w_out. Their
three cosines give one of eleven classes (Gerstner & Schuetze 2025): strengthening,
weakening, conditional, proportional, orthogonal, typical or not. Plain neurons have one
cosine and three classes. Weights are read from the safetensors files tensor by tensor,
so that one layer is in memory at a time; SmolLM2 takes ten seconds. Writes a run with
tables (Markdown, CSV, LaTeX), figures, the cosines of every neuron, report.html and of
gated neurons geometry.html, an interactive page of their cosines.
--check published prints the counts beside those of the paper, for the models it has.
--units_of RUN ... counts the neurons of masks and knowledge neurons by class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag, flags_of
from circuitcut.storage.flag_ranges import SEED, Range, check_flags
from circuitcut.storage.run_directory import DEFAULT_PARENT, RunDirectory
from circuitcut.training.config import parse_first, run_script
from circuitcut.weight_classes.names import CLASSES, PLAIN
from circuitcut.weight_classes.settings import WeightSettings


@dataclass(frozen=True)
class WeightClassesConfig(flags_of(WeightSettings)):  # type: ignore[misc]
    """Which model, thresholds and further output."""

    heading: ClassVar[str] = "classes"
    headings: ClassVar[Headings] = {
        "model": ("model", "revision", "revisions", "beside"),
        "vocabulary": ("show", "n_words"),
        "classes": ("check", "units_of"),
        "run": ("seed", "run_dir", "name"),
    }

    model: str = flag(
        "smollm2",
        "smollm2 and minilm (PyPI), a local folder, a GGUF file or a hub name",
    )
    revision: str | None = flag(
        None, "revision of a hub model, or a folder in a local one"
    )
    revisions: list[str] = flag(
        [],
        "a training series, first to last: classes of each of these revisions, and how "
        "far vectors turn from the first to the last, which is the one classified",
    )
    beside: list[Path] = flag(
        [], "earlier weight_classes runs, whose medians are drawn beside this model's"
    )
    show: list[str] = flag(
        [], "neurons (LAYER.NUMBER) whose vectors are projected on the vocabulary"
    )
    check: Literal["none", "published"] = flag(
        "none", "published: print the counts beside the published ones of the model"
    )
    units_of: list[Path] = flag(
        [],
        "runs, folders with mask.json, or neurons.json of knowledge runs: how many of "
        "their neurons are in every class, beside chance",
    )
    n_words: int = flag(12, "tokens of each vector of --show", within=Range(1, 1000))
    seed: int = flag(0, "seed of the mismatched pairs", within=SEED)
    run_dir: Path = flag(DEFAULT_PARENT, "parent folder of the run directories")
    name: Path | None = flag(None, "name of the run directory; default: generated")

    def __post_init__(self) -> None:
        check_flags(self)
        self.weight_settings()  # checks them
        if self.revisions and self.revision is not None:
            raise UserError(
                f"--revision {self.revision!r} and --revisions cannot both be given; "
                "the last of --revisions is the one classified"
            )
        if len(self.revisions) == 1:
            raise UserError(
                f"--revisions must be two or more, got {self.revisions[0]}; for one "
                "there is --revision"
            )

    def weight_settings(self) -> WeightSettings:
        """The part that the classification reads."""
        return WeightSettings(
            self.convention, self.tau, self.alpha, self.n_bins, self.n_pairs
        )


parse_first(__name__, WeightClassesConfig, __doc__)

from circuitcut.experiments.runs.chosen_neurons import ChosenNeurons, chosen_neurons
from circuitcut.experiments.runs.without_task import begin, header, made_with
from circuitcut.models.loading import load_tokenizer
from circuitcut.reports.figures import FIGURE_FOLDER, FIGURES
from circuitcut.reports.html import write_report
from circuitcut.reports.load import load_run
from circuitcut.reports.sections.table import Table
from circuitcut.reports.table_files import write_tables
from circuitcut.reports.tables import format_table
from circuitcut.reports.weights.geometry import GEOMETRY_FILE
from circuitcut.reports.weights.published import (
    CONVENTION,
    TAU,
    Published,
    check_rows,
    published_of,
)
from circuitcut.reports.weights.tables import count_rows, total_rows, vocabulary_text
from circuitcut.storage.atomic import write_tensors, write_text
from circuitcut.weight_classes.analysis import Analysis, analyse
from circuitcut.weight_classes.change import change_of_layers, check_one_model
from circuitcut.weight_classes.checkpoint import Checkpoint, open_checkpoint
from circuitcut.weight_classes.class_counts import count_by_class
from circuitcut.weight_classes.layouts import n_layers_of
from circuitcut.weight_classes.mlp_weights import n_units_at
from circuitcut.weight_classes.vocabulary import (
    projections,
    tying,
    unembedding,
    unit_numbers,
    weights_of_unit,
)


def main(config: WeightClassesConfig) -> Path:
    """Read, classify, write tables, figures and report; print the table of counts."""
    RunDirectory.check(config.run_dir, config.name)
    published = _published(config)
    beside = [_beside(path) for path in config.beside]
    unit_numbers(config.show)  # checks them
    revisions: Sequence[str | None] = config.revisions or [config.revision]
    series = [open_checkpoint(config.model, revision) for revision in revisions]
    check_one_model(series)
    chosen = _chosen(config, series[-1])
    shown = _shown(config, series[-1])
    analyses = [analyse(c, config.weight_settings(), seed=config.seed) for c in series]
    provenance = made_with(config, series[-1].commit)
    results = {
        **header(config, "weight_classes", provenance, n_units=analyses[-1].n_units),
        **_results(config, series, analyses),
        "beside": beside,
        "vocabulary": shown,
        "chosen": [_counted(analyses[-1], one) for one in chosen],
    }
    run = begin(config, "weight_classes", "weights", provenance)
    with run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        write_tensors(run.path / "units.safetensors", analyses[-1].units())
        results["next"] = command("report", {"runs": run.path})
        run.write_results(results)
    _show(run.path, results)
    if published is not None:
        _compare(run.path, results, published)
    return run.path


def _published(config: WeightClassesConfig) -> Published | None:
    """The numbers to compare with, if they were asked for.

    Raises:
        UserError: When there are none of this model, or they are of other settings.
    """
    if config.check == "none":
        return None
    needed = {"convention": CONVENTION, "tau": TAU}
    if any(getattr(config, name) != value for name, value in needed.items()):
        raise UserError(
            f"--check published needs --convention {CONVENTION} and --tau {TAU}, of "
            f"which the published counts are, got {config.convention} and {config.tau}"
        )
    published = published_of(config.model)
    if published.bins and config.n_bins != len(published.bins):
        raise UserError(
            f"--check published needs --n_bins {len(published.bins)} for this model, "
            f"got {config.n_bins}"
        )
    return published


def _compare(run: Path, results: dict[str, Any], published: Published) -> None:
    """Print and write the counts beside the published ones."""
    rows = check_rows(results, published)
    write_tables(run, [Table("Counts beside the published ones", rows)])
    print(f"\n{format_table(rows, list(rows[0]))}")
    n_equal = sum(not row["difference"] for row in rows)
    print(f"{n_equal} of {len(rows)} published numbers are equal")


def _show(run: Path, results: dict[str, Any]) -> None:
    """Print the counts, and write what can be read from results.json."""
    rows = total_rows(results)
    print(format_table(rows, list(rows[0])))
    weights = results["weights"]
    if not weights["gated"]:
        print(
            f"{weights['family']} has no gated MLPs: its neurons are classified by "
            "cos(w_in, w_out) alone"
        )
    if results["vocabulary"]:
        text = vocabulary_text(results)
        write_text(run / "vocabulary.txt", text)
        print(text)
    if results["chosen"]:
        rows = count_rows(results)
        print(f"\n{format_table(rows, list(rows[0]))}")
    report = write_report([run], run / "report.html")  # draws the figures
    for name in FIGURES["weight_classes"]:
        figure = run / FIGURE_FOLDER / f"{name}.png"
        if figure.exists():  # some need several revisions or models
            print(f"figure: {figure}")
    if (run / GEOMETRY_FILE).exists():  # gated neurons alone
        print(f"interactive page: {run / GEOMETRY_FILE}")
    print(f"report: {report}")
    print(f"run: {run}\nnext: {results['next']}")


def _results(
    config: WeightClassesConfig,
    series: Sequence[Checkpoint],
    analyses: Sequence[Analysis],
) -> dict[str, Any]:
    last, analysis = series[-1], analyses[-1]
    layers = analysis.of_layers()
    total = analysis.total()
    total["outside"]["mismatched"] = {
        name: sum(layer["outside"]["mismatched"][name] for layer in layers)
        for name in total["bins"]
    }
    return {
        "weights": {
            "family": last.config["model_type"],
            "revision": config.revisions[-1] if config.revisions else config.revision,
            "commit": last.commit,
            "gated": analysis.is_gated,
            "centred": analysis.is_centred,
            "d_model": analysis.layers[0].d_model,
            "convention": config.convention,
            "tau": config.tau,
            "classes": list(CLASSES if analysis.is_gated else PLAIN),
            "n_bins": config.n_bins,
            "n_pairs": config.n_pairs,
        },
        "beta": analysis.beta(),
        "layers": layers,
        "total": total,
        "tying": tying(last),
        "series": [
            {"revision": revision, "commit": checkpoint.commit, **one.total()}
            for revision, checkpoint, one in zip(
                config.revisions, series, analyses, strict=False
            )
        ],
        "change": change_of_layers(series[0], last, config.convention)
        if len(series) > 1
        else [],
    }


def _chosen(config: WeightClassesConfig, checkpoint: Checkpoint) -> list[ChosenNeurons]:
    """The neurons of --units_of, checked against the model before it is read."""
    if not config.units_of:
        return []
    layers = range(n_layers_of(checkpoint.config))
    sizes = [n_units_at(checkpoint, layer) for layer in layers]
    return [chosen_neurons(path, sizes) for path in config.units_of]


def _counted(analysis: Analysis, of_path: ChosenNeurons) -> dict[str, Any]:
    """The neurons of one path by class."""
    names = CLASSES if analysis.is_gated else PLAIN
    counted = count_by_class(analysis.classes(), list(of_path.chosen), names)
    return {
        "path": str(of_path.path),
        "kind": of_path.kind,
        "n": sum(one.n for one in counted),
        "n_others": of_path.n_others,
        "classes": [
            {
                "class": one.name,
                "n_class": one.n_class,
                "n": one.n,
                "expected": one.by_chance.expected,
                "interval": list(one.by_chance.interval),
                "expected_by_layer": one.by_layer.expected,
                "interval_by_layer": list(one.by_layer.interval),
                "p": one.p,
            }
            for one in counted
        ],
    }


def _shown(config: WeightClassesConfig, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The vocabulary of every neuron that is asked for."""
    if not config.show:
        return []
    vocabulary = unembedding(checkpoint, config.convention)
    units = [
        weights_of_unit(checkpoint, layer, unit, config.convention)
        for layer, unit in unit_numbers(config.show)
    ]
    assert checkpoint.source is not None  # it was opened from files
    tokenizer = load_tokenizer(checkpoint.source, len(vocabulary))
    return [
        {
            "unit": name,
            "vectors": [
                {
                    "vector": projection.vector,
                    "tokens": [tokenizer.decode([t]) for t in projection.tokens],
                    "scores": list(projection.scores),
                }
                for projection in projections(weights, vocabulary, config.n_words)
            ],
        }
        for name, weights in zip(config.show, units, strict=True)
    ]


def _beside(path: Path) -> dict[str, Any]:
    """Medians by layer of an earlier run."""
    run = load_run(path)
    if run.kind != "weight_classes":
        raise UserError(
            f"--beside must name weight_classes runs, got {run.kind} {path}"
        )
    weights = run.results["weights"]
    return {
        "model": run.results["model"],
        "revision": weights["revision"],
        "convention": weights["convention"],
        "layers": [
            {key: layer[key] for key in ("layer", "n_units", "quartiles")}
            for layer in run.results["layers"]
        ],
    }


if __name__ == "__main__":
    run_script(main, WeightClassesConfig)
