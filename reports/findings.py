"""What else a run says, beyond its first paragraph: sentences made of its numbers."""

from collections.abc import Callable, Mapping
from typing import Any

from circuitcut.reports.circuits.edge_names import name_sentences
from circuitcut.reports.knowledge import knowledge_findings
from circuitcut.reports.load import SIDES, Run
from circuitcut.reports.opening import (
    FAITHFUL,
    faithful_shares,
    first_recoveries,
    last_entry,
    recovery_sentence,
)
from circuitcut.reports.tables import first_and_last
from circuitcut.reports.weights.opening import weight_findings
from circuitcut.reports.words import (
    examples,
    format_cell,
    method_name,
    metric_name,
    percent,
)

Results = Mapping[str, Any]
CONTROLS = {
    "retain_only": "Control without any concept example, cut model",
    "never_learned": "Control that never learned the concept",
}


def mask_findings(run: Run) -> list[str]:
    """A train_mask run: attribution cuts of the same size, the published circuit."""
    results = run.results
    names = [results[f"{side}_metric"]["name"] for side in SIDES]
    cuts = [
        f"{method_name(method)} {format_cell(scores.get(names[0]))} and "
        f"{format_cell(scores.get(names[1]))}"
        for method, scores in (results["scores"].get("attribution") or {}).items()
    ]
    said = name_sentences(results)
    if cuts:
        said.append(
            "Attribution cuts of the same size (no mask trained) give for the concept "
            f"and the rest: {'; '.join(cuts)}."
        )
    return said + published_findings(run)


def published_findings(run: Run) -> list[str]:
    """Agreement with the circuit of Wang et al. (2022), where it was measured."""
    overlap = run.results.get("published_circuit")
    if not overlap:
        return []
    return [
        f"{overlap['n_shared']} of the mask's {overlap['n_heads']} heads are among the "
        f"{overlap['n_published']} heads of the published circuit (Wang et al. 2022); "
        f"as many random heads share {overlap['expected']:.1f} on average."
    ]


def named_findings(run: Run) -> list[str]:
    """A measured mask: its edges and heads by name, the published circuit."""
    return name_sentences(run.results) + published_findings(run)


def relearning_findings(run: Run) -> list[str]:
    """A relearn run: random cuts, controls, and what the first paragraph leaves out."""
    results = run.results
    said, in_opening = [], first_recoveries(results)
    for entry in results["recovery"]:
        condition = entry["condition"]
        if condition == "cut" and entry not in in_opening:
            said.append(recovery_sentence(results, entry))
        elif condition in CONTROLS:
            said.append(_control(results, entry))
    for first, last in first_and_last(results["summary"]):
        if last["condition"] == "random":
            said.append(
                f"Random cut, {examples(last['limit'])}: "
                f"{metric_name(results['concept_metric'])} is "
                f"{format_cell(first['concept'])} at step 0 and "
                f"{format_cell(last['concept'])} at step {last['step']}."
            )
    if note := results.get("words_note"):
        said.append(note)
    return said


def _control(results: Results, entry: Results) -> str:
    """Concept score of a control at both ends of the run."""
    key = tuple(entry[name] for name in ("condition", "holding", "limit"))
    last = last_entry(results, *key)
    first = next(
        first for first, end in first_and_last(results["summary"]) if end is last
    )
    return (
        f"{CONTROLS[entry['condition']]}, {examples(entry['limit'])}: "
        f"{metric_name(results['concept_metric'])} is {format_cell(first['concept'])} "
        f"at step 0 and {format_cell(last['concept'])} at step {last['step']}."
    )


def faithfulness_findings(run: Run) -> list[str]:
    """The smallest circuit of each ranking that keeps nearly all of the margin."""
    results = run.results
    kinds = " and ".join(results["units"])
    return [
        f"{name}: no circuit measured keeps {percent(FAITHFUL)} of the margin."
        if share is None
        else f"{name}: {percent(share, 1)} of {results['n_units']:,} {kinds} keep at "
        f"least {percent(FAITHFUL)} of the concept's margin."
        for name, share in faithful_shares(results).items()
    ]


FINDINGS: dict[str, Callable[[Run], list[str]]] = {
    "train_mask": mask_findings,
    "relearn": relearning_findings,
    "evaluate": named_findings,
    "attribute": published_findings,
    "import_mask": named_findings,
    "select_mask": lambda _: [],
    "knowledge": knowledge_findings,
    "faithfulness": faithfulness_findings,
    "stability": lambda _: [],
    "weight_classes": weight_findings,
    "class_effects": lambda _: [],
    "relearn_stages": lambda _: [],
}
"""Kind of run -> its further sentences."""
