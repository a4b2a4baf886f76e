"""Knowledge neurons in a report: sentences, tables and a figure of such a run."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from circuitcut.reports.drawing import BLUE, VERMILLION, WIDTH, layer_ticks, panels
from circuitcut.reports.load import Run
from circuitcut.reports.words import method_name, percent, percent_with_interval

Results = Mapping[str, Any]
Row = dict[str, Any]
ON = {"own": "the fact", "others": "facts of other relations"}
SETS = {
    "refined": "found",
    "one_prompt": "as many of one prompt",
    "random": "as many random ones",
}
TERMS = {
    "units of a fact": "Neurons with a high score in most prompts of the fact; its "
    "object's probability is attributed to all neurons by integrated gradients.",
    "suppress, enhance": "The activations of the units become 0, or twice as large, "
    "where the object is predicted.",
    "as many random ones": "Control: as many other neurons of the same layers.",
    "edit": "The values of the units, what they write, move from the embedding of the "
    "object to that of another one, the target; then they come back.",
}
CAPTION = (
    "Share of the found units that lies in each layer. Coarse: units of single "
    "prompts; refined: of facts, shared by their paraphrases."
)


def knowledge_opening(run: Run) -> tuple[str, list[str]]:
    """How much of a fact its units hold, beside the controls."""
    results = run.results
    facts, sizes = results["facts"], results["sizes"]
    done = (
        f"{facts['n_facts']:,} known facts of {facts['n_relations']} relations, "
        f"{facts['n_prompts']:,} prompts: {sizes['refined']['mean']:.1f} units a fact "
        f"(median {sizes['refined']['median']:g}; "
        f"{sizes['refined']['n_empty']} facts have none)."
    )
    found = _effect(results, "own", "refined", "suppress")
    if found is None:
        return "No fact has units.", [done]
    said = [done, _sentence(results, "suppress"), _sentence(results, "enhance")]
    if (edits := edit_sentence(results)) is not None:
        said.append(edits)
    change = percent(found["change"])
    return f"Suppressing a fact's units changes its probability by {change}.", said


def knowledge_findings(run: Run) -> list[str]:
    """How much found units of different facts overlap."""
    return [
        f"Units of two facts of {row['pairs'].replace('same', 'the same')}: Jaccard "
        f"index {row['jaccard']:.3f}, random sets {row['random']:.5f} "
        f"({row['n_pairs']:,} pairs)."
        for row in run.results["overlap"]
        if row["jaccard"] is not None
    ]


def effect_rows(results: Results) -> list[Row]:
    """Relative changes of the probability, with intervals over facts."""
    return [
        {
            "units": set_name(row["units"]),
            "operation": row["operation"],
            "on": ON[row["on"]],
            "facts": row["n_facts"],
            "before": row["before"],
            "after": row["after"],
            "change": percent_with_interval(row["change"], row["change_interval"]),
        }
        for row in results["effects"]
    ]


MEASURES = {
    "changed": "object lost rank 1",
    "success": "target has rank 1",
    "success_at_5": "target in the first 5",
    "prefers_target": "P(target) > P(object)",
    "probability": "P(target)",
    "rank": "rank of the target",
    "reciprocal_rank": "1 / rank",
    "paraphrase_success": "P(target) > P(object), paraphrases",
    "neighbourhood_success": "P(object) > P(target), neighbours",
    "perplexity_inside": "perplexity, other facts of the relation",
    "perplexity_outside": "perplexity, other relations",
}


def edit_rows(results: Results) -> list[Row]:
    """Measures of edited facts: before, and after an edit of each set of units."""
    edits = results.get("edits")
    if edits is None:
        return []  # a run before edits
    by_measure: dict[str, Row] = {}
    for row in edits["rows"]:
        found = by_measure.setdefault(
            row["measure"],
            {
                "measure": MEASURES[row["measure"]],
                "facts": row["n_facts"],
                "before": row["before"],
            },
        )
        found[set_name(row["units"])] = row["after"]
    return [by_measure[name] for name in MEASURES if name in by_measure]


def gain_rows(results: Results) -> list[Row]:
    """Gains of the edits with intervals over facts."""
    edits = results.get("edits") or {"rows": []}
    return [
        {
            "units": set_name(row["units"]),
            "measure": MEASURES[row["measure"]],
            "gain": f"{row['gain']:.3g} [{row['gain_interval'][0]:.3g}, "
            f"{row['gain_interval'][1]:.3g}]",
        }
        for row in edits["rows"]
    ]


def edit_sentence(results: Results) -> str | None:
    """How often an edit succeeds, beside random units; None without edits."""
    rows = {
        (row["units"], row["measure"]): row
        for row in (results.get("edits") or {"rows": []})["rows"]
    }
    if ("refined", "success") not in rows:
        return None
    found, random = (rows[units, "success"]["after"] for units in ("refined", "random"))
    top = rows["refined", "success_at_5"]["after"]
    inside = ""
    if ("refined", "perplexity_inside") in rows:
        change = rows["refined", "perplexity_inside"]["gain"]
        inside = "; the perplexity of the relation's other facts changes by "
        inside += percent(change)
    return (
        f"Edited ({results['edits']['n_edited']} facts), the target has rank 1 in "
        f"{percent(found)} and is in the first five in {percent(top)}; with random "
        f"units it has rank 1 in {percent(random)}{inside}."
    )


def set_name(units: str) -> str:
    """A set of units in words; of a mask its method."""
    return SETS.get(units, f"as many of {method_name(units)}")


def layer_rows(results: Results) -> list[Row]:
    """Shares of the units by layer."""
    return [
        {
            "layer": row["layer"],
            "neurons": row["n_units"],
            "coarse": percent(row["coarse"], 1),
            "refined": percent(row["refined"], 1),
        }
        for row in results["layers"]
    ]


def units_by_layer(run: Run) -> Figure:
    """Coarse and refined units, side by side in every layer."""
    layers = run.results["layers"]
    figure, (axes,) = panels(1, WIDTH, 3.6)
    for name, shift, colour in (("coarse", -0.2, BLUE), ("refined", 0.2, VERMILLION)):
        shares = [100 * layer[name] for layer in layers]
        places = [i + shift for i in range(len(layers))]
        axes.bar(places, shares, width=0.4, color=colour, label=name)
    layer_ticks(axes, {i: str(layer["layer"]) for i, layer in enumerate(layers)})
    axes.set_ylabel("% of the units")
    axes.set_title("Knowledge neurons by layer")
    axes.legend(frameon=False)
    return figure


def _effect(results: Results, on: str, units: str, operation: str) -> Row | None:
    wanted = {"on": on, "units": units, "operation": operation}
    return next(
        (
            row
            for row in results["effects"]
            if all(row[key] == value for key, value in wanted.items())
        ),
        None,
    )


def _sentence(results: Results, operation: str) -> str:
    said = []
    for on, units, what in (
        ("own", "refined", "of the fact"),
        ("others", "refined", "of other relations' facts"),
        ("own", "random", "of the fact, with random units of the same layers"),
    ):
        row = _effect(results, on, units, operation)
        if row is not None:
            change = percent_with_interval(row["change"], row["change_interval"])
            said.append(f"{change} {what}")
    verb = {"suppress": "Suppressed", "enhance": "Enhanced"}[operation]
    return f"{verb}, they change the object's probability by {'; '.join(said)}."
