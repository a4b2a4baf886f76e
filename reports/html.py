"""One self-contained report.html: findings, tables and figures of one or several runs."""

import base64
import html
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.figures import draw_all
from reports.load import Run, load_run
from reports.tables import (
    Row,
    condition_name,
    curve_rows,
    format_cell,
    limit_name,
    recovery_rows,
    relearning_rows,
    score_rows,
    site_rows,
)
from storage.atomic import write_text

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; display: block;
        overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th { border-bottom: 2px solid #888; }
td.number { text-align: right; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
.finding { background: #f2f6fa; border-left: 4px solid #0072b2; padding: .6rem 1rem; }
pre { background: #f5f5f5; padding: .6rem 1rem; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem;
     font-size: .9rem; } dt { color: #555; } dd { margin: 0; }
"""

CAPTIONS = {
    "mask_by_layer": "Units the frozen mask ablates in each layer.",
    "training_curves": "Mask training: losses, and how many units the gates ablate.",
    "score_by_size": "Scores on held-out data against the number of ablated units. "
    "Bands: 95 % bootstrap intervals, or lowest to highest seed.",
    "relearning_curves": "Held-out scores along relearning, mean over seeds. Bands: 95 % "
    "bootstrap intervals over seeds and documents.",
    "recovery_by_examples": "Recovery at the end of relearning: against the uncut model "
    "under the same fine-tuning (ratio), and from the score right after the cut "
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
    """One run: what it says, its tables, its figures, how to repeat it."""
    parts = [f"<h2>{html.escape(run.title)}</h2>"]
    parts += [f'<p class="finding">{html.escape(FINDINGS[run.kind](run))}</p>']
    for title, rows in TABLES[run.kind](run.results):
        if rows:
            parts += [f"<h3>{html.escape(title)}</h3>", table(rows)]
    parts += [_image(name, path) for name, path in figures.items()]
    parts += [_about(run)]
    return "\n".join(parts)


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
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = html.escape(CAPTIONS[name])
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _about(run: Run) -> str:
    config = run.path / "config.json"
    repeat = f"python scripts/{run.kind}.py --config {shlex.quote(str(config))}"
    facts = {"run": str(run.path), **_flat(run.environment)}
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    commands = [repeat, *filter(None, [run.results.get("next")])]
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


def mask_finding(run: Run) -> str:
    """What a train_mask run says, in one or two sentences of numbers."""
    results = run.results
    concept, retain = (
        results["concept_metric"]["name"],
        results["retain_metric"]["name"],
    )
    scores = results["scores"]
    n_ablated, n_units = results["n_ablated"], results["n_units"]
    text = (
        f"With {n_ablated:,} of {n_units:,} units ablated ({n_ablated / n_units:.2%}), "
        f"the concept's {concept} goes from {format_cell(scores['uncut'].get(concept))} "
        f"to {format_cell(scores['cut'].get(concept))} and the rest's {retain} from "
        f"{format_cell(scores['uncut'].get(retain))} to "
        f"{format_cell(scores['cut'].get(retain))} on held-out data."
    )
    controls = [entry.get(concept) for entry in scores.get("random") or []]
    known = [value for value in controls if value is not None]
    if known:
        mean = format_cell(sum(known) / len(known))
        text += f" Random cuts of the same counts leave the concept at {mean}."
    return text


def relearning_finding(run: Run) -> str:
    """What a relearn run says: recovery at the end, for every number of examples."""
    sentences = []
    for entry in run.results["recovery"]:
        if entry["condition"] != "cut":
            continue
        last = entry["points"][-1]
        ratio, normalised = last["ratio"], last["normalised"]
        shares = [
            f"{value:.0%} {words}"
            for value, words in (
                (ratio, "of the uncut model under the same fine-tuning"),
                (normalised, "normalised"),
            )
            if value is not None
        ]
        said = " and ".join(shares) or f"an undefined share ({last['reason']})"
        sentences.append(
            f"With {limit_name(entry['limit'])} examples and {last['step']} steps the "
            f"{condition_name(entry)} model's concept score recovers to {said}."
        )
    return " ".join(sentences) or "No recovery: cut and uncut models were not both run."


def curve_finding(run: Run) -> str:
    """What an evaluate or attribute run says: the best method at its largest size."""
    curve = run.results["curve"]
    if not curve:
        return "No mask sizes were measured."
    metric = run.results["concept_metric"]
    largest = max(entry["n_ablated"] for entry in curve)
    at_end = [e for e in curve if e["n_ablated"] == largest]
    listed = ", ".join(
        f"{e['method']} {format_cell(e['scores'].get(metric['name']))}" for e in at_end
    )
    return (
        f"With {largest:,} units ablated the concept's {metric['name']} is: {listed}."
    )


FINDINGS: dict[str, Callable[[Run], str]] = {
    "train_mask": mask_finding,
    "relearn": relearning_finding,
    "evaluate": curve_finding,
    "attribute": curve_finding,
}


def _mask_tables(results: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    unseen = results.get("unseen")
    tables = [("Scores on held-out data", score_rows(results))]
    if unseen:
        seen_less = {**results, "scores": unseen, "intervals": {}}
        tables.append(("Only entities unseen elsewhere", score_rows(seen_less)))
    return [
        *tables,
        ("Units ablated by layer", site_rows(results)),
        ("Score by number of units", curve_rows(results)),
    ]


def _relearn_tables(results: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    return [
        ("Scores before and after relearning", relearning_rows(results)),
        ("Recovery of the concept", recovery_rows(results)),
    ]


def _curve_tables(results: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    return [("Score by number of units", curve_rows(results))]


TABLES: dict[str, Callable[[Mapping[str, Any]], list[tuple[str, list[Row]]]]] = {
    "train_mask": _mask_tables,
    "relearn": _relearn_tables,
    "evaluate": _curve_tables,
    "attribute": _curve_tables,
}
