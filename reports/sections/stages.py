"""Tables of relearning in stages."""

from collections.abc import Mapping
from typing import Any

from circuitcut.reports.sections.scores import metric_note
from circuitcut.reports.sections.table import Table
from circuitcut.reports.stages.change_tables import (
    level_change_rows,
    polysemantic_change_rows,
    relearned_rows,
)
from circuitcut.reports.stages.statements import statement_rows
from circuitcut.reports.stages.tables import level_rows, scan_rows, stage_rows
from circuitcut.reports.stages.unit_tables import (
    flat,
    overlap_rows,
    polysemantic_rows,
    ranking_rows,
    scan_data,
    similarity_rows,
    took_over_rows,
    type_rows,
)

Results = Mapping[str, Any]
OVER_SEEDS = "Means over seeds; brackets: 95 % intervals over seeds by Student's t."


def stages_tables(results: Results) -> list[Table]:
    """Of a study in stages: scores, statements, units and rankings."""
    scores = metric_note(results)
    return [
        Table(
            "Scores at every stage",
            stage_rows(results, intervals=True),
            "Held-out data, means over seeds; in brackets 95 % bootstrap intervals "
            f"over seeds and documents. {scores}",
            flat(results["summary"]),
        ),
        Table(
            "Statements of Lo et al. (2024), and what is found here",
            statement_rows(results),
            "Confirmed: the 95 % interval over seeds (Student's t) lies on the "
            "statement's side; not testable: no interval, no random cut, or the random "
            "cut takes less than 5 % of the score. Points: percentage points, from the "
            "base model to the last stage where no stage is named.",
        ),
        Table(
            "Abilities as a share of the base model's",
            relearned_rows(results),
            "Held-out data, 1: the seed's base model. A score above a guess; of a loss "
            f"the probability per token, exp(-loss). {OVER_SEEDS}",
            flat(results.get("relearned", [])),
        ),
        Table(
            "Units that took over, with their words",
            took_over_rows(results),
            "The units that rank highest after the last stage, pruned ones left out: "
            "the first ten of every cut, first seed. Words: at most five to which the "
            "unit responds most strongly; a star marks the concept's. Similarity: of "
            "the words after the last stage to those of the base model.",
            took_over_rows(results, everything=True),
        ),
        Table(
            "What the units that took over respond to",
            polysemantic_rows(results),
            "Share of the units of the table above, all seeds, whose words are the "
            "concept's alone, the concept's and others (polysemantic), others alone.",
        ),
        Table(
            "Scores by type at every stage",
            type_rows(results),
            "Span F1 of each type on held-out data, 0 to 1, means over seeds.",
        ),
        Table(
            "Pruned, not retrained",
            scan_rows(results),
            f"Held-out data, means over seeds. {scores}",
            scan_data(results),
        ),
        Table(
            "Where the salient units are",
            level_rows(results),
            "Share of the units with a saliency above .5 that lies at each level; 0 is "
            "the embedding level. Means over seeds; units that are held constant are "
            "left out.",
            flat(results["stages"]),
        ),
        Table(
            "Where the salient units went, cut beside random cut",
            level_change_rows(results),
            "Share of the salient units at each level at the base model, right after "
            "pruning and after the last stage; the last row is their mean level. "
            "Change: from the base model to the cut's last stage, in percentage points "
            "(levels in the last row). Beyond the random cut's: the cut minus the "
            "random cut after the last stage, paired by seed. Among units not pruned: "
            "the pruned units have no rank, neither at the base model nor later. "
            f"{OVER_SEEDS}",
            flat(results.get("changes", [])),
        ),
        Table(
            "Polysemantic units at every stage",
            polysemantic_change_rows(results),
            "Share of all units with words that have words of the concept and others. "
            f"Changes in percentage points. {OVER_SEEDS}",
        ),
        Table(
            "Similarity of words between stages",
            similarity_rows(results),
            f"Mean cosine over the units whose words differ. {OVER_SEEDS}",
            flat(results["similarity"]),
        ),
        Table(
            "Overlap of the highest-ranked units",
            overlap_rows(results),
            "Jaccard index of the units that rank highest at a stage, as many as were "
            f"pruned, 0 to 1. {OVER_SEEDS}",
            flat(results["overlap"]),
        ),
        Table(
            "Rankings of the base model compared",
            ranking_rows(results),
            "Jaccard index of the highest units of two rankings at every share of the "
            "hidden units, 0 to 1, means over seeds.",
            flat(results["rankings"]["overlap"]),
        ),
    ]
