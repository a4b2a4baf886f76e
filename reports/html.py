"""One self-contained report.html: findings, tables and figures of some runs."""

import base64
import html
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitcut.reports.circuit_picture import caption, circuit_svg
from circuitcut.reports.drawing import DPI, SHOWN_DPI
from circuitcut.reports.figures import draw_all
from circuitcut.reports.findings import FINDINGS
from circuitcut.reports.load import Run, load_run
from circuitcut.reports.tables import (
    Row,
    area_rows,
    curve_rows,
    faithfulness_rows,
    format_cell,
    location_rows,
    probe_rows,
    published_rows,
    recovery_rows,
    relearning_rows,
    score_rows,
    site_rows,
    word_rows,
)
from circuitcut.storage.atomic import write_text

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .85rem; display: block;
        overflow-x: auto; }
th, td { padding: .25rem .55rem; border-bottom: 1px solid #ddd; text-align: left;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th { border-bottom: 2px solid #888; }
td.number { text-align: right; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
.finding { background: #f2f6fa; border-left: 4px solid #0072b2; margin: 1rem 0;
           padding: .6rem 1rem .6rem 2.2rem; }
summary { cursor: pointer; padding: .3rem 0; color: #0072b2; }
pre { background: #f5f5f5; padding: .6rem 1rem; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem;
     font-size: .9rem; } dt { color: #555; } dd { margin: 0; }
"""

CAPTIONS = {
    "mask_by_layer": "Units the frozen mask ablates in each layer.",
    "training_curves": "Mask training: losses, and how many units the gates ablate.",
    "scores_by_method": "The uncut model, the cut and its controls with as many units "
    "ablated, on held-out data. Bars: 95 % bootstrap intervals over documents.",
    "score_by_size": "Scores on held-out data against the number of ablated units. "
    "Bands: 95 % bootstrap intervals, or lowest to highest seed.",
    "faithfulness": "Circuits of the top shares of each ranking, everything else "
    "ablated: the share of the concept's margin between the empty circuit (0) and the "
    "whole model (1), the concept's score, and the divergence from the uncut model; "
    "top right, the same share with the circuit ablated and the rest kept. Bands: "
    "lowest to highest seed.",
    "relearning_curves": "Held-out scores along relearning, mean over seeds. Bands: "
    "95 % bootstrap intervals over seeds and documents.",
    "recovery_by_examples": "Recovery at the end of relearning: against the uncut "
    "model under the same fine-tuning (ratio), and from the score right after the cut "
    "(normalised). 1 is fully recovered. Bars: 95 % intervals.",
    "redistribution_by_layer": "Layers of the units that rank highest for the concept "
    "before the cut and after relearning, and of the masks.",
    "probe_by_layer": "A linear probe on the hidden states right after the cut: is the "
    "concept still decodable? Dotted: the same probe with shuffled labels.",
}


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Draw the figures of every run and write one HTML file that needs nothing else.

    Args:
        runs: Run directories, in the order of the report.
        out: The HTML file.

    Raises:
        UserError: When a run is missing, unfinished or of an unknown kind; before
            anything is written.
    """
    loaded = [load_run(path) for path in runs]
    write_text(out, page([(run, draw_all(run)) for run in loaded]))
    return out


def page(runs: Sequence[tuple[Run, Mapping[str, Path]]]) -> str:
    """The report's HTML text."""
    heading = " and ".join(dict.fromkeys(run.title for run, _ in runs))
    sections = "\n".join(section(run, figures) for run, figures in runs)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>circuitcut: {html.escape(heading)}</title>\n<style>{CSS}</style>\n"
        f"</head>\n<body>\n<h1>circuitcut report</h1>\n{sections}\n</body>\n</html>\n"
    )


def section(run: Run, figures: Mapping[str, Path]) -> str:
    """One run: what it says, its main table, its figures, the other tables."""
    said = "".join(f"<li>{html.escape(text)}</li>" for text in FINDINGS[run.kind](run))
    tables = [(title, rows) for title, rows in TABLES[run.kind](run.results) if rows]
    parts = [f"<h2>{html.escape(run.title)}</h2>", f'<ul class="finding">{said}</ul>']
    for title, rows in tables[:1]:
        parts += [f"<h3>{html.escape(title)}</h3>", table(rows)]
    if run.results.get("circuit"):
        parts.append(_circuit(run.results["circuit"]))
    parts += [_image(name, path) for name, path in figures.items()]
    parts += [
        f"<details><summary>{html.escape(title)}</summary>{table(rows)}</details>"
        for title, rows in tables[1:]
    ]
    return "\n".join([*parts, _about(run)])


def table(rows: Sequence[Row]) -> str:
    """Rows as an HTML table; the first row's keys are the headings."""
    columns = list(rows[0])
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "\n".join(
        "<tr>" + "".join(_cell(row.get(column)) for column in columns) + "</tr>"
        for row in rows
    )
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _cell(value: Any) -> str:
    kind = ' class="number"' if isinstance(value, int | float) else ""
    return f"<td{kind}>{html.escape(format_cell(value))}</td>"


def _image(name: str, path: Path) -> str:
    image = path.read_bytes()
    n_pixels = int.from_bytes(image[16:20], "big")  # width in the header of a PNG
    data = base64.b64encode(image).decode("ascii")
    caption = html.escape(CAPTIONS[name])
    return (
        f'<figure><img width="{n_pixels * SHOWN_DPI // DPI}" alt="{caption}" '
        f'src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _circuit(circuit: Mapping[str, Any]) -> str:
    told = html.escape(caption(circuit))
    return f"<figure>{circuit_svg(circuit)}<figcaption>{told}</figcaption></figure>"


def _about(run: Run) -> str:
    config = shlex.quote(str(run.path / "config.json"))
    commands = [f"python scripts/{run.kind}.py --config {config}"]
    commands += [run.results["next"]] if run.results.get("next") else []
    facts = {"run": str(run.path), **_flat(run.environment)}
    if isinstance(facts.get("command"), list):
        facts["command"] = shlex.join(map(str, facts["command"]))
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    shown = html.escape("\n".join(commands))
    return f"<h3>Repeat and go on</h3>\n<pre>{shown}</pre>\n<dl>{listed}</dl>"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            facts |= _flat(value, f"{prefix}{name} ")
        else:
            facts[f"{prefix}{name}"] = value
    return facts


Table = tuple[str, list[Row]]


def _score_tables(results: Mapping[str, Any]) -> list[Table]:
    """Scores of the run's models, on all held-out data and on unseen entities alone."""
    tables = [("Scores on held-out data", score_rows(results))]
    if results.get("unseen"):
        unseen = {**results, "scores": results["unseen"], "intervals": {}}
        tables.append(
            (
                "The same on examples whose entities no other split has",
                score_rows(unseen),
            )
        )
    return [
        *tables,
        ("Scores by number of units ablated", curve_rows(results)),
        ("The published circuit of indirect objects", published_rows(results)),
    ]


def _mask_tables(results: Mapping[str, Any]) -> list[Table]:
    return [*_score_tables(results), *_site_table(results)]


def _site_table(results: Mapping[str, Any]) -> list[Table]:
    return [("Units ablated by layer", site_rows(results))]


def _relearn_tables(results: Mapping[str, Any]) -> list[Table]:
    smallest = min((entry["minimum"] for entry in results["recovery"]), default=0.0)
    undefined = f"undefined where the denominator is below {format_cell(smallest)}"
    return [
        (f"Recovery of the concept ({undefined})", recovery_rows(results)),
        ("Scores before and after relearning", relearning_rows(results)),
        ("Linear probes right after the cut", probe_rows(results)),
        ("Where the concept is after relearning", location_rows(results)),
        ("What the concept's top units respond to", word_rows(results)),
    ]


def _faithfulness_tables(results: Mapping[str, Any]) -> list[Table]:
    return [
        ("Areas under faithfulness", area_rows(results)),
        ("Circuits of every size", faithfulness_rows(results)),
    ]


TABLES: dict[str, Callable[[Mapping[str, Any]], list[Table]]] = {
    "train_mask": _mask_tables,
    "relearn": _relearn_tables,
    "evaluate": _score_tables,
    "attribute": _score_tables,
    "import_mask": _site_table,
    "faithfulness": _faithfulness_tables,
}
"""Kind of run -> its tables with their headings, in the order of the report."""
