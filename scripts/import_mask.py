"""Read another program's mask on edges: a run that evaluate and relearn accept.

    python scripts/import_mask.py --file circuit.json --format mib --task ioi

Formats: mib (EAP-IG, MIB), auto_circuit, edge_pruning, circuit_breaking, disco_gp,
edges (names and 0 or 1); docs/formats.md says what each holds and how to save one. The
mask gets that program's graph, so an edge cuts the same there and here. Writes a new
run under runs/ with mask.safetensors, mask.json and results.json; as long as it takes
to load the model and measure means.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.experiments.flags import TaskConfig, run_dir_flag
from circuitcut.masks.formats.programs import CONVENTIONS, FORMATS, Embeddings
from circuitcut.masks.gate_settings import AblationKind, Direction
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import UNITS_OR_0
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_first, run_script


@dataclass(frozen=True)
class ImportConfig(TaskConfig):
    """Which file, and for which task and model."""

    heading: ClassVar[str] = "file"
    headings: ClassVar[Headings] = {"what is cut": ("ablation", "mean_over")}

    file: Path | None = flag(None, "the file of the other program's mask")
    format: str = flag("mib", f"one of {', '.join(FORMATS)}")
    n_kept: int | None = flag(
        None,
        "the file holds scores: keep this many edges, the highest",
        within=UNITS_OR_0,
    )
    order: Literal["absolute", "signed"] | None = flag(
        None,
        "with --n_kept: the highest by size, or with their sign; default: absolute for "
        "mib and auto_circuit, as there, else signed",
    )
    shared: Literal["refuse", "keep", "ablate"] = flag(
        "refuse",
        "an edge that is several in the file which differ (grouped queries): refuse, "
        "or any of them keeps or ablates it; scores that differ are summed",
    )
    embeddings: Embeddings = flag(
        "auto", "edge_pruning's .json lists: embeddings are nodes, or always on"
    )
    ablation: Literal["zero", "mean", "counterfactual"] | None = flag(
        None, "what replaces an ablated activation; default: what the program does"
    )
    mean_over: Literal["retain", "all"] = flag(
        "retain", "positions over which means are taken"
    )
    name: Path | None = flag(None, "name of the run directory; default: generated")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in FORMATS:
            raise UserError(f"--format must be one of {FORMATS}, got {self.format!r}")


parse_first(__name__, ImportConfig, __doc__)

from torch import Tensor

from circuitcut.experiments.base_model import with_base_model
from circuitcut.experiments.circuits.edges_of_mask import circuit_of
from circuitcut.experiments.describe import header, per_site
from circuitcut.experiments.freeze import provenance
from circuitcut.experiments.gate_training import ablation_values
from circuitcut.experiments.load import Experiment, load, provenance_of
from circuitcut.experiments.plan import check_pairs
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.saved_runs import new_run, save_frozen
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.edges.sites import by_site, flat_gates
from circuitcut.masks.formats.conventions import as_evaluated
from circuitcut.masks.formats.edge_files import (
    EdgesOfFile,
    read_edges,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import edge_sites
from circuitcut.models.loading import LoadedModel


def main(config: ImportConfig) -> Path:
    """Read the file, measure ablation values, save the mask as a run."""
    if config.file is None or not config.file.is_file():
        raise UserError(f"--file must be a file with a mask, got {config.file}")
    RunDirectory.check(config.run_dir, config.name)
    experiment = load(config)
    check_pairs(experiment.task, _ablation(config))
    edges = _read(config, experiment.loaded)
    experiment = with_base_model(experiment)
    flags = {"ablation": _ablation(config), "order": _order(config)}
    experiment = resolved(experiment, config, **flags)
    mask, ranking = _frozen(config, experiment, edges)
    made_with = provenance_of(experiment)
    run = new_run(
        experiment, config, "import_mask", name=config.name, made_with=made_with
    )
    with run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        save_frozen(mask, ranking, run.path)
        results = header("import_mask", experiment, mask=mask) | {
            "file": config.file,
            "format": config.format,
            "per_site": per_site(mask),
            "circuit": circuit_of(mask, ranking),
            "next": command("evaluate", {"mask": run.path, **run_dir_flag(config)}),
        }
        run.write_results(results)
    print(f"{mask.n_ablated:,} of {mask.n_units:,} edges ablated: {_switches(edges)}")
    print(f"run: {run.path}\nnext: {results['next']}")
    return run.path


def _ablation(config: ImportConfig) -> AblationKind:
    """What was asked for, or what the program itself puts there."""
    convention = CONVENTIONS.get(config.format)
    usual: AblationKind = convention.ablation if convention else "zero"
    return config.ablation or usual


def _order(config: ImportConfig) -> str:
    """What was asked for, or what the program itself does."""
    usual = "absolute" if config.format in ("mib", "auto_circuit") else "signed"
    return config.order or usual


def _read(config: ImportConfig, loaded: LoadedModel) -> EdgesOfFile:
    assert config.file is not None
    edges = read_edges(
        config.file,
        config.format,
        loaded.model,
        scored=config.n_kept is not None,
        shared=config.shared,
        embeddings=config.embeddings,
        ablation=_ablation(config),
    )
    n_edges = edges.graph.n_edges
    if config.n_kept is not None and config.n_kept > n_edges:
        raise UserError(
            f"--n_kept must be at most the {n_edges} edges of {config.model_name}, got "
            f"{config.n_kept}"
        )
    return edges


def _frozen(
    config: ImportConfig, experiment: Experiment, edges: EdgesOfFile
) -> tuple[FrozenMask, dict[str, Tensor] | None]:
    """The mask, and the ranking that it was chosen by."""
    sites = edge_sites(experiment.loaded.model, edges.graph)
    settings = MaskSettings(
        gate="none",
        direction=_direction(config, edges),
        ablation=_ablation(config),
        mean_over=config.mean_over,
        positions="all",
        seed=config.seed,
    )
    source = {"file": str(config.file), "format": config.format}
    extra: dict[str, Any] = {"provenance": provenance(experiment, settings) | source}
    ablated = ablation_values(experiment, sites, settings)
    if edges.kept is not None:
        keep = by_site(sites, edges.kept)
        return FrozenMask(keep, sites, ablated, **extra), None
    assert edges.scores is not None
    assert config.n_kept is not None
    is_absolute = _order(config) == "absolute"
    scores = edges.scores.abs() if is_absolute else edges.scores
    ranking = by_site(sites, scores)
    n_ablated = edges.graph.n_edges - config.n_kept
    mask = FrozenMask.exactly_k(ranking, sites, ablated, n_ablated=n_ablated, **extra)
    flat = flat_gates(sites, mask.keep).bool()
    flat = as_evaluated(config.format, edges.graph, flat, settings.ablation)
    return replace(mask, keep=by_site(sites, flat)), ranking


def _direction(config: ImportConfig, edges: EdgesOfFile) -> Direction:
    """A file that keeps the fewer edges is a circuit, else it is a cut."""
    n_kept = config.n_kept if edges.kept is None else int(edges.kept.sum())
    assert n_kept is not None
    return "isolate" if n_kept <= edges.graph.n_edges / 2 else "break"


def _switches(edges: EdgesOfFile) -> str:
    graph = edges.graph
    return (
        f"position embedding {graph.position}, attention bias {graph.attention_bias}, "
        f"value bias {graph.value_bias}, "
        f"queries, keys and values {'separate' if graph.separate_qkv else 'merged'}"
    )


if __name__ == "__main__":
    run_script(main, ImportConfig)
