"""Knowledge neurons in a report: sentences, tables and a figure of such a run."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from circuitcut.reports.drawing import BLUE, VERMILLION, WIDTH, layer_ticks, panels
from circuitcut.reports.load import Run
from circuitcut.reports.words import percent, percent_with_interval

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
            "units": SETS[row["units"]],
            "operation": row["operation"],
            "on": ON[row["on"]],
            "facts": row["n_facts"],
            "before": row["before"],
            "after": row["after"],
            "change": percent_with_interval(row["change"], row["change_interval"]),
        }
        for row in results["effects"]
    ]


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
