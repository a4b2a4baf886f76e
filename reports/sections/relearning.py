"""Tables of relearning."""

from collections.abc import Mapping
from typing import Any

from circuitcut.reports.sections.scores import further_note, metric_note
from circuitcut.reports.sections.table import Table
from circuitcut.reports.tables import (
    RECOVERY_NOTE,
    further_relearning_rows,
    recovery_rows,
    relearning_rows,
)
from circuitcut.reports.whereabouts import location_rows, probe_rows, word_rows
from circuitcut.reports.words import format_cell, plural

Results = Mapping[str, Any]


def relearn_tables(results: Results) -> list[Table]:
    """Of a relearning run: recovery, scores, and where the concept is."""
    smallest = min((entry["minimum"] for entry in results["recovery"]), default=0.0)
    n_seeds = max((entry["n_seeds"] for entry in results["summary"]), default=1)
    over = "seeds and documents" if n_seeds > 1 else "documents"
    brackets = f"Brackets: 95 % bootstrap interval over {over}."
    metrics = metric_note(results)
    return [
        Table(
            "Recovery of the concept after the last step",
            recovery_rows(results),
            f"{brackets} {RECOVERY_NOTE} Smallest denominator: "
            f"{format_cell(smallest)}. Steps to 90 %: first measured step at which cut "
            "/ uncut is at least .9.",
        ),
        Table(
            "Scores before and after relearning",
            relearning_rows(results),
            f"Means over {plural(n_seeds, 'seed')}. {brackets} {metrics}",
        ),
        Table(
            "Further scores before and after relearning",
            further_relearning_rows(results),
            f"Means over {plural(n_seeds, 'seed')}. "
            + further_note(row["scores"] for row in results["rows"]),
        ),
        Table(
            "Linear probes right after the cut",
            probe_rows(results),
            "AUC: area under the ROC curve of a logistic regression on the hidden "
            "states; 1: the concept can be decoded, .5: chance. Shuffled labels: "
            "control.",
        ),
        Table(
            "Where the concept is after relearning",
            location_rows(results),
            "Top units: ranked by mean difference. Overlap: Jaccard index, from 0 to "
            "1. A held mask has overlap 0, since its units are constant.",
        ),
        Table(
            "Words to which the concept's top units respond",
            word_rows(results),
            "The words with the largest mean activation (in brackets) on held-out "
            "data. Cut model relearned from most examples, first seed.",
        ),
    ]
