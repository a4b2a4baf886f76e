"""How faithful circuits of every size are, by learned and other rankings.

Mueller et al. (2025), "MIB: A Mechanistic Interpretability Benchmark",
https://arxiv.org/abs/2504.13151: the areas CPR and CMD over the shares of units kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.attribution.faithfulness import area, areas, faithfulness
from circuitcut.attribution.gate_gradients import position_margin
from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.describe import header
from circuitcut.experiments.gate_training import cuts_with
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.micro_batches import evaluation_size
from circuitcut.experiments.saved_runs import ranking_of_run
from circuitcut.experiments.scores import cut_by, responsibility
from circuitcut.masks.edges.sites import (
    by_site,
    flat_gates,
    graph_at,
    modules_and_edges,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.residual.connected_edges import connected
from circuitcut.models.sites import Site
from circuitcut.tasks.base import Split
from circuitcut.tasks.evaluation import evaluate_cuts

Rankings = dict[tuple[str, int, str], Mapping[str, Tensor]]
"""By method, seed and order (`signed` or `absolute`); the highest are kept."""
Complements = Literal["all", "learned", "none"]


@dataclass(frozen=True)
class Rankers:
    """Which rankings are measured."""

    methods: Sequence[str]
    """Attribution methods."""
    n_random: int
    """Rankings of the method `random`."""
    n_batches: int
    """Batches of 16 examples that scores are averaged over."""
    seed: int


def rankings(
    experiment: Experiment,
    empty: FrozenMask,
    rankers: Rankers,
    learned: Mapping[Path, FrozenMask],
) -> Rankings:
    """Learned rankings and those of attribution, the latter signed and absolute.

    Scores without a negative one (ACDC's ranks) have one order, `signed`.

    Args:
        empty: The mask that ablates every unit, with the ablation values of all.
        learned: Masks by the run that they and their rankings lie in.
    """
    ranked: Rankings = {}
    for path, mask in learned.items():
        gate = str(mask.provenance.get("gate") or "learned")
        number = sum(method == gate for method, *_ in ranked)
        ranked[gate, number, "signed"] = ranking_of_run(path, mask)
    for method in rankers.methods:
        for number in range(rankers.n_random if method == "random" else 1):
            scores = responsibility(
                experiment,
                empty,
                method,
                seed=rankers.seed + number,
                n_batches=rankers.n_batches,
            )
            ranked[method, number, "signed"] = scores
            has_signs = any(bool((values < 0).any()) for values in scores.values())
            if method != "random" and has_signs:
                ranked[method, number, "absolute"] = {
                    name: values.abs() for name, values in scores.items()
                }
    return ranked


def measured(
    experiment: Experiment,
    empty: FrozenMask,
    ranked: Rankings,
    *,
    fractions: Sequence[float],
    split: Split,
    counts: Int[Tensor, "unit"] | None = None,
    complements: Complements = "all",
) -> dict[str, Any]:
    """results.json of a faithfulness run, `masks` aside.

    Examples without a position of the concept are not run.

    Args:
        fractions: Shares of the units kept, rising.
        split: Of the task, which scores are measured on.
        counts: What every unit counts for in a share, in the order of the sites; None
            is 1.
        complements: Of which rankings the model without the circuit is measured too.
    """
    if counts is None:
        counts = torch.ones(empty.n_units, dtype=torch.int64)
    circuits = {
        (ranker, fraction): _circuit(empty, ranking, n_kept)
        for ranker, ranking in ranked.items()
        for fraction in fractions
        for n_kept in [n_within(ranking, empty.sites, counts, fraction)]
    }
    with_complement = {
        ranker
        for ranker in ranked
        if complements == "all"
        or (complements == "learned" and ranker[0] not in METHODS)
    }
    masks = [_complement(empty), empty]
    for (ranker, _), circuit in circuits.items():
        masks += [circuit, _complement(circuit)][: 1 + (ranker in with_complement)]
    measure = _Measured(experiment, split, masks)
    whole, none = measure.of(masks[0]), measure.of(empty)
    ends = whole["margin"], none["margin"]
    curve = []
    for (ranker, fraction), circuit in circuits.items():
        kept = measure.of(circuit)
        entry = dict(zip(("method", "seed", "order"), ranker, strict=True)) | {
            "fraction": fraction,
            "n_kept": n_within(ranked[ranker], empty.sites, counts, fraction),
            "n_connected": circuit.n_units - circuit.n_ablated,
            "n_counted": int(counts[_flat(circuit)].sum()),
            "faithfulness": faithfulness(kept["margin"], *ends),
            "scores": kept,
            "without": None,
        }
        if ranker in with_complement:
            cut = measure.of(_complement(circuit))
            entry["without"] = {
                "faithfulness": faithfulness(cut["margin"], *ends),
                "scores": cut,
            }
        curve.append(entry)
    metric = experiment.task.concept_metric.name
    return header("faithfulness", experiment, mask=empty) | {
        "split": split,
        "scores": {"uncut": whole, "nothing kept": none},
        "curve": curve,
        "areas": _areas(fractions, curve, metric),
    }


def nothing_kept(mask: FrozenMask) -> FrozenMask:
    """The same mask with every unit ablated."""
    keep = {
        site.name: torch.zeros(site.n_units, dtype=torch.bool) for site in mask.sites
    }
    return replace(mask, keep=keep)


class _Measured:
    """Scores of masks on the split: different masks once each, in one evaluation."""

    def __init__(self, experiment: Experiment, split: Split, masks: list[FrozenMask]):
        different = {_key(mask): mask for mask in masks}
        task, model = experiment.task, experiment.loaded.model
        evaluations = evaluate_cuts(
            task,
            model,
            split,
            cuts_with(experiment, list(different.values())),
            len(different),
            size=evaluation_size(task, model, masks[0].sites, split),
            reference=True,
            of_concept={"margin": position_margin},
            only_concept=True,
        )
        self._scores = {
            key: evaluation.scores
            for key, evaluation in zip(different, evaluations, strict=True)
        }

    def of(self, mask: FrozenMask) -> dict[str, float]:
        """Scores of one of the masks."""
        return self._scores[_key(mask)]


def _key(mask: FrozenMask) -> bytes:
    return _flat(mask).numpy().tobytes()


def _flat(mask: FrozenMask) -> Bool[Tensor, "unit"]:
    return torch.cat([mask.keep[site.name] for site in mask.sites])


def n_within(
    ranking: Mapping[str, Tensor],
    sites: Sequence[Site],
    counts: Int[Tensor, "unit"],
    fraction: float,
) -> int:
    """The units at the top of a ranking that count for `fraction` of all, at most."""
    scores = torch.cat([ranking[site.name].detach().cpu().double() for site in sites])
    order = scores.sort(stable=True).indices.flip(0)  # as `FrozenMask.exactly_k` keeps
    allowed = int(fraction * int(counts.sum()))
    return int((counts[order].cumsum(0) <= allowed).sum())


def _circuit(
    empty: FrozenMask, ranking: Mapping[str, Tensor], n_kept: int
) -> FrozenMask:
    """The top of a ranking; of edges those that connect an input to the logits."""
    mask = cut_by(empty, ranking, empty.n_units - n_kept)
    modules, edges = modules_and_edges(mask.sites)
    if modules or not edges or len(edges) <= graph_at(edges).n_layers:
        return mask  # what is in no site stays on, and may connect anything
    graph = graph_at(edges)
    flat = connected(graph, flat_gates(edges, mask.keep))
    return replace(mask, keep=by_site(edges, flat))


def _complement(mask: FrozenMask) -> FrozenMask:
    return replace(mask, keep={name: ~kept for name, kept in mask.keep.items()})


def _areas(
    fractions: Sequence[float], curve: Sequence[Mapping[str, Any]], metric: str
) -> list[dict[str, Any]]:
    """CPR, CMD and the area under the concept's score of every ranking."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for entry in curve:
        key = entry["method"], entry["order"], entry["seed"]
        groups.setdefault(key, []).append(entry)
    rows = []
    for (method, order, seed), entries in groups.items():
        cpr, cmd = areas(fractions, [entry["faithfulness"] for entry in entries])
        rows.append(
            {
                "method": method,
                "order": order,
                "seed": seed,
                "cpr": cpr,
                "cmd": cmd,
                "score_area": area(fractions, [e["scores"][metric] for e in entries]),
            }
        )
    return rows
