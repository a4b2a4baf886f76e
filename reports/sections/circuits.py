"""Tables of circuits: their faithfulness, the overlap of masks, causal tracing."""

from collections.abc import Mapping
from typing import Any

from circuitcut.reports.circuits.trace_map import effect_rows
from circuitcut.reports.sections.scores import metric_note
from circuitcut.reports.sections.table import Table
from circuitcut.reports.stages.unit_tables import flat
from circuitcut.reports.tables import area_rows, faithfulness_rows, stability_rows

Results = Mapping[str, Any]
MOST_SHARED = 40


def faithfulness_tables(results: Results) -> list[Table]:
    """Of rankings whose circuits of every size were measured."""
    kinds = " and ".join(results["units"])
    return [
        Table(
            "Areas under faithfulness",
            area_rows(results),
            "CPR: area under the faithfulness over the share kept. CMD: area between "
            "the faithfulness and 1. Last area: under the concept's score. "
            "Parentheses: lowest to highest seed.",
        ),
        Table(
            "Circuits of every size",
            faithfulness_rows(results),
            f"Means over seeds. Units are {kinds}. On a path: units left when those on "
            "no path from the input to the logits are dropped. Complement: the circuit "
            "is ablated and the rest is kept. KL: to the uncut model, on the concept. "
            + metric_note(results),
        ),
    ]


def stability_tables(results: Results) -> list[Table]:
    """Of several masks: how much they share."""
    shared = [
        {
            "unit": unit["unit"],
            "masks": f"{unit['n_masks']} of {len(results['masks'])}",
        }
        for unit in results["shared"][:MOST_SHARED]
    ]
    return [
        Table(
            "Overlap of the masks",
            stability_rows(results),
            "Jaccard: units in both masks divided by units in either. Random: exact "
            "expectation of random masks of the same sizes; brackets: central 95 %.",
        ),
        Table(
            f"Units {results['chosen']} in more than half of the masks",
            shared,
            f"At most {MOST_SHARED} units; results.json has the others.",
        ),
    ]


def trace_tables(results: Results) -> list[Table]:
    """Of causal tracing: effects by kind of state and token."""
    tracing = results["tracing"]
    return [
        Table(
            "Largest indirect effect of each kind of state and token",
            effect_rows(results),
            f"Noise of {tracing['noise']:g} standard deviations on the subject's "
            f"embeddings, {tracing['n_noise']} draws. MLPs and attention: windows of "
            f"{tracing['window']} layers. Normalised: share of what noise takes away; "
            "parentheses: 95 % interval over prompts, of the layer with the largest.",
            flat(results["effects"]),
        ),
        Table(
            "Prompts",
            results["prompts"],
            "P(object) of the clean run, and with a noisy subject (mean over draws).",
        ),
    ]
