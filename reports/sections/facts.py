"""Tables of knowledge neurons and of edited facts."""

from collections.abc import Mapping
from typing import Any

from circuitcut.reports import knowledge
from circuitcut.reports.facts import tables as of_facts
from circuitcut.reports.sections.table import Table
from circuitcut.reports.stages.unit_tables import flat

Results = Mapping[str, Any]


def knowledge_tables(results: Results) -> list[Table]:
    """Of knowledge neurons: effects, edits, layers and overlaps."""
    return [
        Table(
            "Probability of the object under scaled units",
            knowledge.effect_rows(results),
            "Change: mean over facts of after / before - 1; brackets: 95 % bootstrap "
            "interval over facts. Facts without units are left out.",
            flat(results["effects"]),
        ),
        *_edit_tables(results),
        Table(
            "Units by layer",
            knowledge.layer_rows(results),
            "Share of all units of all prompts (coarse) or facts (refined).",
            flat(results["layers"]),
        ),
        Table(
            "Overlap of the units of two facts",
            [dict(row) for row in results["overlap"]],
            "Mean Jaccard index, 0 to 1; random: of sets of the same sizes drawn from "
            "all neurons.",
        ),
        Table("Facts by language", of_facts.language_rows(results)),
        Table(
            "Groups of facts that share units",
            of_facts.group_rows(results),
            "The same by relation and by language, the largest overlap beyond random "
            "sets first.",
            of_facts.group_data(results),
        ),
        Table(
            "Activation of the units of a fact",
            of_facts.activity_rows(results),
            "Mean over units and prompts where the object is predicted; brackets: 95 % "
            "bootstrap interval over facts.",
            flat(results.get("activity") or []),
        ),
        Table(
            "Prompts that trigger a unit",
            of_facts.trigger_rows(results),
            "The units (LAYER.NUMBER) of the most facts, and the prompts of at most "
            "200 facts on which each is most active; median over these prompts.",
        ),
    ]


def _edit_tables(results: Results) -> list[Table]:
    rows = knowledge.edit_rows(results)
    if not rows:
        return []
    edits = results["edits"]
    given = edits.get("strengths")
    strengths = f" with l1 = {given[0]:g}, l2 = {given[1]:g}" if given else ""
    left_out = "; ".join(f"{why}: {n}" for why, n in edits["left_out"].items())
    return [
        Table(
            "Edited facts",
            rows,
            f"{edits['n_edited']} facts one at a time, formula {edits['formula']}"
            f"{strengths}, {edits['n_units']:.1f} units a fact. Shares of facts, means "
            "over facts. "
            f"Not edited: {left_out or 'none'}.",
            flat(edits["rows"]),
        ),
        Table(
            "Gains of the edits",
            knowledge.gain_rows(results),
            "After minus before (ranks: before minus after; perplexities: after / "
            "before - 1); brackets: 95 % bootstrap interval over facts.",
        ),
    ]
