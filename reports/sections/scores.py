"""Tables of runs that score models: masks, attribution and their units."""

from collections.abc import Iterable, Mapping
from typing import Any

from circuitcut.reports.circuits.edge_names import edge_rows, head_rows
from circuitcut.reports.sections.table import Table
from circuitcut.reports.tables import (
    all_score_rows,
    curve_rows,
    named_scores,
    published_rows,
    score_rows,
    site_rows,
)
from circuitcut.reports.words import format_cell, metric_name, metric_unit

Results = Mapping[str, Any]
OVER_DOCUMENTS = "Brackets: 95 % bootstrap interval over documents."


def metric_note(results: Results) -> str:
    """Names, units and directions of both scores."""
    said = []
    for side, name in (("concept", "concept"), ("retain", "rest")):
        metric = results[f"{side}_metric"]
        unit = metric_unit(metric)
        better = "higher" if metric["higher_is_better"] else "lower"
        said.append(
            f"Score of the {name}: {metric_name(metric)}{f', {unit}' if unit else ''}; "
            f"{better} means more ability{_guess(metric)}."
        )
    return " ".join(said)


def _guess(metric: Results) -> str:
    """What a guess scores, where it is not 0."""
    chance = metric.get("chance")
    return f"; chance: {format_cell(chance)}" if chance else ""


FURTHER_NOTES = {
    "logit_difference": "Logit difference: logit of the right answer minus that of the "
    "best wrong one, in nats; 0 at chance.",
    "margin": "Margin: how far the right answer is preferred, in nats; 0 at chance.",
    "top1": "Top-1 accuracy: share of prompts whose most probable token, of the whole "
    "vocabulary, is the right one, 0 to 1; chance is near 0.",
    "other_accuracy": "Accuracy on other facts: share of the prompts about known facts "
    "of other relations whose object beats the other objects of its relation, 0 to 1.",
    "near_accuracy": "Accuracy on neighbours: the same of prompts about other subjects "
    "of which the concept's objects are true, 0 to 1.",
    "kl_retain": "KL: mean KL(uncut \u2016 cut) per position, in nats; 0 is no change "
    "of the predictions.",
}
"""Score -> what it is, its unit and its value at chance."""


def further_note(scored: Iterable[Results]) -> str:
    """What the tables' further scores are, of those that were measured."""
    known = {key for scores in scored for key in scores}
    return " ".join(note for key, note in FURTHER_NOTES.items() if key in known)


def score_tables(results: Results) -> list[Table]:
    """Scores of the run's models, on all held-out data and on unseen entities alone."""
    models = [scores for _, scores in named_scores(results["scores"])]
    models += [entry["scores"] for entry in results.get("curve") or []]
    note = f"{metric_note(results)} {further_note(models)}".strip()
    tables = [Table("Scores on held-out data", score_rows(results), note)]
    if results.get("intervals"):
        tables[0] = Table(tables[0].title, tables[0].rows, f"{OVER_DOCUMENTS} {note}")
    if results.get("unseen"):
        unseen = {**results, "scores": results["unseen"], "intervals": {}}
        title = "Scores on held-out examples whose entities occur in no other split"
        tables.append(Table(title, score_rows(unseen), note))
    return [
        *tables,
        Table(
            "Scores by number of units ablated",
            curve_rows(results),
            f"{note} {OVER_DOCUMENTS}",
        ),
        Table("All scores on held-out data", all_score_rows(results), note),
        *_name_tables(results),
        Table(
            "Heads of the published circuit (Wang et al. 2022) in the mask",
            published_rows(results),
        ),
    ]


def mask_tables(results: Results) -> list[Table]:
    """Of a trained mask: scores, names, and units by layer."""
    return [*score_tables(results), *site_table(results)]


def _name_tables(results: Results) -> list[Table]:
    """Every edge and head that the mask is about, by name."""
    order = "Strongest first: the edges that the ranking chose first, of those shown."
    scored = (results.get("circuit") or {}).get("scores")
    return [
        Table("Edges by name", edge_rows(results), order if scored else ""),
        Table("Heads by name", head_rows(results)),
    ]


def import_tables(results: Results) -> list[Table]:
    """Of an imported mask: its units by layer and by name."""
    return [*site_table(results), *_name_tables(results)]


def site_table(results: Results) -> list[Table]:
    """How many units of each layer are ablated."""
    note = "Of edges: those that the layer's heads and MLP read."
    edges = any(site["kind"] == "edges" for site in results["per_site"])
    return [Table("Units ablated by layer", site_rows(results), note if edges else "")]
