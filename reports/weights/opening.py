"""What a classification by weights says, in sentences made of its numbers."""

from collections.abc import Mapping
from typing import Any

from circuitcut.reports.load import Run
from circuitcut.reports.weights.effect_tables import MEASURES, SETS
from circuitcut.reports.weights.tables import COSINES
from circuitcut.reports.words import count_of, format_cell, percent, with_interval

EVERYWHERE = "all"
"""The condition of an ablation at all tokens."""


def weight_opening(run: Run) -> tuple[str, list[str]]:
    """How many neurons write what they read, its opposite, or something else."""
    results = run.results
    coarse, n_units = results["total"]["coarse"], results["n_units"]
    if results["weights"]["gated"]:
        kind, note = "gated neurons", ""
    else:
        kind, note = "neurons", "They have no gates: one cosine classifies them. "
    return (
        f"{percent(coarse['strengthening'] / n_units, 1)} of {n_units:,} {kind} "
        f"strengthen and {percent(coarse['weakening'] / n_units, 1)} weaken what they "
        "read.",
        [
            f"{note}Their cos(w_in, w_out) is above {results['weights']['tau']:g}, or "
            f"below -{results['weights']['tau']:g}; of the others it is in between."
        ],
    )


def selection_opening(run: Run) -> tuple[str, list[str]]:
    """A select_mask run: which neurons it ablates."""
    results, selection = run.results, run.results["selection"]
    n_ablated, n_units = results["n_ablated"], results["n_units"]
    names = " and ".join(selection["classes"])
    of_class = f"of the class {names}, which has {selection['n_of_classes']:,}"
    of_control = f"as many in each layer as were chosen of the class {names}, all " + (
        f"outside it and on about as often (within {selection['tolerance']:g})"
        if selection["control"] == "frequency"
        else "outside it"
    )
    which = of_class if selection["control"] == "none" else of_control
    when = selection.get("when", EVERYWHERE)
    if when != EVERYWHERE:
        which += f", at tokens with {when}"
    return "Neurons were chosen by their weights; the effect was not measured.", [
        f"The mask ablates {count_of(n_ablated, n_units)} neurons "
        f"({percent(n_ablated / n_units, 1)}): {which} (tau {selection['tau']:g}, "
        f"weights {selection['convention']})."
    ]


def effects_opening(run: Run) -> tuple[str, list[str]]:
    """A class_effects run: the change of the entropy beside that of the controls."""
    results, said = run.results, []
    for entry in results["summary"]:
        where = "" if entry["when"] == EVERYWHERE else f" at {entry['when']}"
        draws = f" ({entry['n_draws']} draws)" if entry["n_draws"] else ""
        numbers = [
            f"{MEASURES[name]} {_signed(entry['measures'][name])}"
            for name in ("entropy", "loss", "rank")
        ]
        said.append(f"{SETS[entry['set']]}{where}{draws}: {', '.join(numbers)}.")
    names = " and ".join(results["selection"]["classes"])
    verdict = (
        f"{count_of(results['n_ablated'], results['n_units'])} neurons of the class "
        f"{names} were ablated ({results['ablation']}) on "
        f"{results['corpus']['n_tokens']:,} tokens. Ablated minus clean:"
    )
    return verdict, said


def _signed(measure: Mapping[str, Any]) -> str:
    text = with_interval(measure["mean"], measure["interval"])
    return f"+{text}" if measure["mean"] > 0 else text


def weight_findings(run: Run) -> list[str]:
    """Shares outside chance, the layer of most weakening neurons, tied embeddings."""
    results = run.results
    total, n_units = results["total"], results["n_units"]
    alpha = percent(results["beta"]["alpha"], 1)
    found = [
        f"{COSINES[name]}: {percent(number / n_units, 1)} of the neurons lie outside "
        f"the region of independent Gaussian vectors (chance: {alpha}), "
        f"{percent(total['outside']['mismatched'][name] / n_units, 1)} outside that of "
        f"mismatched pairs of their layer, and "
        f"{percent(total['outside']['beta_corrected'][name] / n_units, 1)} outside the "
        f"first one after correction for {n_units:,} neurons."
        for name, number in total["outside"]["beta"].items()
    ]
    found += [_most(results, name) for name in ("strengthening", "weakening")]
    tying = results["tying"]
    if tying is not None and not tying["tied"]:
        found.append(
            "Embedding and unembedding of a token have a median cosine of "
            f"{format_cell(tying['quartiles'][1])}."
        )
    elif tying is not None:
        found.append("Embeddings and unembeddings are tied: one matrix.")
    return found


def _most(results: Mapping[str, Any], name: str) -> str:
    """The layer that has most neurons of one of the coarse classes."""
    numbers = {layer["layer"]: layer["coarse"][name] for layer in results["layers"]}
    layer = max(numbers, key=numbers.__getitem__)
    total = results["total"]["coarse"][name]
    return (
        f"Most {name} neurons are in layer {layer}: {numbers[layer]:,} of {total:,}."
        if total
        else f"There are no {name} neurons."
    )
