"""What the report shows of every kind of run."""

from collections.abc import Callable, Mapping
from typing import Any

from circuitcut.reports.sections.circuits import (
    faithfulness_tables,
    stability_tables,
    trace_tables,
)
from circuitcut.reports.sections.facts import knowledge_tables
from circuitcut.reports.sections.relearning import relearn_tables
from circuitcut.reports.sections.scores import (
    import_tables,
    mask_tables,
    score_tables,
    site_table,
)
from circuitcut.reports.sections.stages import stages_tables
from circuitcut.reports.sections.table import Table
from circuitcut.reports.sections.weights import effect_tables, weight_tables

Results = Mapping[str, Any]
TABLES: dict[str, Callable[[Results], list[Table]]] = {
    "train_mask": mask_tables,
    "relearn": relearn_tables,
    "evaluate": score_tables,
    "attribute": score_tables,
    "import_mask": import_tables,
    "select_mask": site_table,
    "knowledge": knowledge_tables,
    "faithfulness": faithfulness_tables,
    "stability": stability_tables,
    "trace": trace_tables,
    "weight_classes": weight_tables,
    "class_effects": effect_tables,
    "relearn_stages": stages_tables,
}
"""Kind of run -> its tables in the order of the report."""
