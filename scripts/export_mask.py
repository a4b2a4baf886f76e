"""Write a mask on edges for another program, or as a picture.

    python scripts/export_mask.py --mask runs/RUN --format svg --out circuit.svg

Formats: mib (EAP-IG, MIB), auto_circuit, edge_pruning, circuit_breaking, disco_gp,
edges (names and 0 or 1), dot, graphml, svg. docs/formats.md says what each holds, and
when it cannot say the same. Seconds; formats of other programs need the mask's model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import ClassVar, Literal

from circuitcut.experiments.flags import TaskConfig
from circuitcut.masks.formats.programs import FORMATS
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.run_directory import check_not_of_a_run
from circuitcut.training.config import parse_first, run_script

DRAWINGS = ("dot", "graphml", "svg")
KNOWN = (*FORMATS, *DRAWINGS)


@dataclass(frozen=True)
class ExportConfig(TaskConfig):
    """Which mask, in which format, where."""

    heading: ClassVar[str] = "mask and file"

    mask: Path | None = flag(None, "run directory (or folder) that holds a mask")
    format: str = flag("mib", f"one of {', '.join(KNOWN)}")
    out: Path | None = flag(None, "the file to write; it must not exist")
    circuit: Literal["auto", "kept", "ablated"] = flag(
        "auto",
        "the edges that are in the file's circuit: the kept ones, or the ablated ones "
        "(what a cut took out; scores change sign); auto: kept, in pictures the fewer",
    )
    scores: Path | None = flag(
        None, "ranking.safetensors of a run; default: the one beside the mask, if any"
    )
    shared: Literal["refuse", "keep", "ablate"] = flag(
        "refuse", "what an edge becomes that stands for several which differ"
    )
    allow_difference: bool = flag(
        False, "write the mask also where it is another cut in that program"
    )
    allow_other_weights: bool = flag(
        False, "the model has other weights of the same shape"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in KNOWN:
            raise UserError(f"--format must be one of {KNOWN}, got {self.format!r}")
        if self.circuit == "ablated" and self.format == "svg":
            raise UserError("--format svg draws the fewer edges; leave --circuit out")


parse_first(__name__, ExportConfig, __doc__)

from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.experiments.base_model import prepare
from circuitcut.experiments.circuits.edges_of_mask import (
    circuit_of,
    edges_of,
    scores_of,
)
from circuitcut.experiments.saved_runs import (
    RANKING_FILE,
    check_fit,
    checked_ranking,
    mask_at,
    with_flags_of_run,
)
from circuitcut.masks.formats.drawings import dot, graphml
from circuitcut.masks.formats.edge_files import write_edges, write_named_edges
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.models.spared import FIRST_POSITION
from circuitcut.reports.circuits.picture import circuit_svg
from circuitcut.storage.atomic import write_text


def main(config: ExportConfig) -> Path:
    """Write the file and say what is in it."""
    if config.mask is None or config.out is None:
        missing = "--mask" if config.mask is None else "--out"
        raise UserError(f"{missing} is needed: the mask and the file to write")
    if config.out.exists():
        raise UserError(f"--out {config.out} exists; choose another name")
    check_not_of_a_run(config.out, "--out")
    mask = mask_at(config.mask)
    graph, kept = edges_of(mask)
    ranking = _ranking(config, mask)
    scores = None if ranking is None else scores_of(mask, ranking)
    if config.circuit == "ablated":
        kept, scores = ~kept, None if scores is None else -scores
    if config.format in DRAWINGS:
        write_text(config.out, _drawn(config, mask, ranking, graph, kept, scores))
    elif config.format == "edges":
        write_named_edges(
            config.out,
            graph,
            kept,
            ablation=mask.ablated.kind_without_rule,
            allow_difference=config.allow_difference,
        )
    else:
        _check_positions(config, mask)
        _write_foreign(config, mask, graph, kept, scores)
    n_kept = int(kept.sum())
    print(f"{config.format}: {n_kept:,} of {graph.n_edges:,} edges in the circuit")
    print(f"file: {config.out}")
    if config.format in FORMATS:
        again = {"file": config.out, "format": config.format}
        print(f"next: {command('import_mask', again)}")
    return config.out


def _check_positions(config: ExportConfig, mask: FrozenMask) -> None:
    """Other programs cut at every position."""
    if FIRST_POSITION in mask.special_ids and not config.allow_difference:
        raise UserError(
            f"--format {config.format} means a cut at every position, and this mask "
            "spares the first one; train it with --positions all, or say "
            "--allow_difference"
        )


def _ranking(config: ExportConfig, mask: FrozenMask) -> Mapping[str, Tensor] | None:
    """The scores asked for, or those that lie beside the mask."""
    assert config.mask is not None
    beside = config.mask / RANKING_FILE
    path = config.scores or (beside if beside.exists() else None)
    return None if path is None else checked_ranking(path, mask)


def _write_foreign(
    config: ExportConfig,
    mask: FrozenMask,
    graph: ResidualGraph,
    kept: Bool[Tensor, "edge"],
    scores: Float[Tensor, "edge"] | None,
) -> None:
    """Write for another program, whose graph depends on what the model has."""
    assert config.mask is not None
    assert config.out is not None
    path = config.mask
    experiment = prepare(with_flags_of_run(config, path))
    check_fit(mask, path, experiment, config.allow_other_weights)
    write_edges(
        config.out,
        config.format,
        experiment.loaded.model,
        graph,
        kept,
        scores=scores,
        ablation=mask.ablated.kind_without_rule,
        shared=config.shared,
        allow_difference=config.allow_difference,
    )


def _drawn(
    config: ExportConfig,
    mask: FrozenMask,
    ranking: Mapping[str, Tensor] | None,
    graph: ResidualGraph,
    kept: Bool[Tensor, "edge"],
    scores: Float[Tensor, "edge"] | None,
) -> str:
    if config.format == "graphml":
        return graphml(graph, kept, scores)
    if config.format == "svg":
        circuit = circuit_of(mask, ranking)
        if circuit is None:
            raise UserError(_why_no_picture(bool(kept.any()), graph.n_edges))
        return circuit_svg(circuit, standalone=True)
    fewer = kept if config.circuit != "auto" or 2 * kept.sum() <= len(kept) else ~kept
    names = list(compress(graph.edges(), fewer.tolist()))
    known = [] if scores is None else zip(graph.edges(), scores.tolist(), strict=True)
    return dot(names, dict(known))


def _why_no_picture(keeps_all: bool, n_edges: int) -> str:
    return (
        f"--format svg draws the kept or the ablated edges, the fewer, but this mask "
        f"{'keeps' if keeps_all else 'ablates'} all {n_edges:,} edges: there is no "
        "circuit to draw; graphml lists the edges"
    )


if __name__ == "__main__":
    run_script(main, ExportConfig)
