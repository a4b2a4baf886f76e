"""One self-contained report.html: first paragraph, tables and figures of some runs."""

import base64
import html
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from circuitcut.reports.circuits.picture import caption, circuit_svg
from circuitcut.reports.drawing import DPI, SHOWN_DPI
from circuitcut.reports.figures import CAPTIONS, FIGURE_FOLDER, draw_all
from circuitcut.reports.findings import FINDINGS
from circuitcut.reports.load import Run, load_run
from circuitcut.reports.opening import OPENINGS
from circuitcut.reports.sections.registry import TABLES
from circuitcut.reports.sections.table import Table
from circuitcut.reports.sections.terms import terms
from circuitcut.reports.stages.tables import concept_rows
from circuitcut.reports.table_files import TABLE_FOLDER, write_tables
from circuitcut.reports.tables import Row
from circuitcut.reports.weights.geometry import GEOMETRY_FILE, write_geometry
from circuitcut.reports.weights.relearned import (
    check_comparable,
    relearned_class_rows,
)
from circuitcut.reports.words import format_cell
from circuitcut.storage.atomic import write_text
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import check_not_of_a_run

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h2 small { display: block; font-size: .9rem; font-weight: 400; color: #555; }
.scroll { overflow-x: auto; margin: 1rem 0 .3rem; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .5rem .25rem 0; border-bottom: 1px solid #ddd;
         text-align: left; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; max-width: 12rem;
     min-width: 3.5rem; }
td.number { text-align: right; }
.name { white-space: nowrap; }
td.words { white-space: normal; min-width: 14rem; }
.note, figcaption { color: #555; font-size: .9rem; margin: .3rem 0 1rem;
                    max-width: 55rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
@media (max-width: 45rem) { figure img { max-width: none; } }
.opening { background: #f2f6fa; border-left: 4px solid #0072b2; margin: 1rem 0;
           padding: .4rem 1rem; }
.opening p { margin: .5rem 0; }
summary { cursor: pointer; padding: .3rem 0; color: #0072b2; }
pre { background: #f5f5f5; padding: .6rem 1rem; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem;
     font-size: .9rem; } dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 45rem) { dl { grid-template-columns: minmax(0, 1fr); }
                            dt { font-weight: 600; } }
"""
FEW_RUNS = 2
"""Up to so many runs of different kinds, the report opens with one paragraph."""
MARK, LONGEST_HEAD = "<title>circuitcut: ", 4000
"""How a report is known again: a text within its first so many bytes."""
REPORT_COMMAND = re.compile(r"scripts/report\.py\b|\bcircuitcut report\b")
EDGE_NAME = re.compile(r"(\w[\w.]*->\w[\w.]*(?:<[qkv]>)?)")
LONG_CELL = 60
"""Characters from which the text of a cell is wrapped."""


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Draw the figures of every run and write one HTML file that needs nothing else.

    Beside it, every run gets its figures (PNG, SVG) and its tables (CSV, LaTeX,
    Markdown).

    Args:
        runs: Run directories, in the order of the report.
        out: The HTML file.

    Raises:
        UserError: When a run is missing, unfinished or of an unknown kind, or `out` is
            a file that is no report; before anything is written.
    """
    _check_replaceable(out)
    loaded = [load_run(path) for path in runs]
    with consistent(loaded):
        text = page([(run, draw_all(run)) for run in loaded])
        for run in loaded:
            write_tables(run.path, TABLES[run.kind](run.results))
            if run.kind == "weight_classes":
                write_geometry(run)
        write_tables(loaded[-1].path, _compared(loaded))
    write_text(out, text)
    return out


@contextmanager
def consistent(runs: Sequence[Run]) -> Iterator[None]:
    """Turn the errors of a results.json whose entries contradict each other into one.

    Their types are checked before; that a condition of `recovery` stands in `summary`,
    or that no list is empty, shows where they are used.

    Raises:
        UserError: Naming the file.
    """
    try:
        yield
    except UserError:
        raise
    except (
        *(ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration),
        *(TypeError, ValueError),
    ) as error:
        said = " ".join(f"{type(error).__name__} {error}".split())[:100]
        files = " or ".join(str(run.path / "results.json") for run in runs)
        raise UserError(
            f"{files} cannot be shown: entries contradict each other or are incomplete "
            f"({said}); restore it, or repeat the run with --config RUN/config.json"
        ) from error


def _check_replaceable(out: Path) -> None:
    """Refuse to write over a file, unless it is an earlier report."""
    check_not_of_a_run(out, "--out")
    if not out.is_file():
        return
    with out.open("rb") as file:
        beginning = file.read(LONGEST_HEAD)
    if MARK.encode() not in beginning:
        raise UserError(
            f"--out must be a new file or an earlier report, got {out}, which is "
            "neither; name another file"
        )


def page(runs: Sequence[tuple[Run, Mapping[str, Path]]]) -> str:
    """The report's HTML text."""
    heading = " and ".join(dict.fromkeys(run.title for run, _ in runs))
    parts = [_opening([run for run, _ in runs]), _how_to_read([run for run, _ in runs])]
    for table in _compared([run for run, _ in runs]):
        parts += [f"<h2>{html.escape(table.title)}</h2>", table_html(table)]
    parts += [section(run, figures, i) for i, (run, figures) in enumerate(runs, 1)]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{MARK}{html.escape(heading)}</title>\n<style>{CSS}</style>\n"
        f"</head>\n<body>\n<h1>circuitcut report</h1>\n{body}\n</body>\n</html>\n"
    )


def _opening(runs: Sequence[Run]) -> str:
    """Verdicts and their numbers: a mask and its relearning in one paragraph.

    Of other runs, each has a paragraph of its own that begins with its name.
    """
    paragraphs, warnings = [], set()
    belong = len(runs) <= FEW_RUNS and len({run.kind for run in runs}) == len(runs)
    for number, run in enumerate(runs, 1):
        verdict, sentences = OPENINGS[run.kind](run)
        warning = run.results.get("warning")
        if warning in warnings:  # the relearning of a mask has that of the mask
            verdict = verdict.replace(f"Warning: {warning} ", "")
        warnings.add(warning)
        rest = html.escape(" ".join(sentences))
        name = f'<a href="#run-{number}">{html.escape(run.name)}</a>: '
        paragraphs.append(
            f"{'' if belong else name}<strong>{html.escape(verdict)}</strong> {rest}"
        )
    if belong:
        paragraphs = [" ".join(paragraphs)]
    shown = "".join(f"<p>{text}</p>" for text in paragraphs)
    return f'<div class="opening">{shown}</div>'


def _how_to_read(runs: Sequence[Run]) -> str:
    """The words of this report, explained."""
    listed = _definitions(terms(runs).items())
    return f"<details open><summary>How to read this report</summary>{listed}</details>"


def _concepts(runs: Sequence[Run]) -> list[Table]:
    """The table of several studies in stages; nothing of fewer than two."""
    studies = [run.results for run in runs if run.kind == "relearn_stages"]
    if len(studies) < 2:
        return []
    note = "Held-out data, means over seeds. Salient units before and after retraining."
    return [Table("Concepts compared", concept_rows(studies), note)]


def _compared(runs: Sequence[Run]) -> list[Table]:
    """Tables over several runs: concepts of studies in stages, classes of neurons."""
    return [*_concepts(runs), *_classes(runs)]


def _classes(runs: Sequence[Run]) -> list[Table]:
    """The table of several relearned classes of neurons; nothing of fewer than two."""
    results = [run.results for run in runs if run.kind == "relearn"]
    chosen = [one for one in results if one.get("selection")]
    if len(chosen) < 2:
        return []
    check_comparable(chosen)
    note = (
        "Cut models, fastest relearned first, by the area under the recovery over "
        "steps. Held-out data, means over seeds; brackets: 95 % bootstrap intervals."
    )
    return [Table("Classes relearned", relearned_class_rows(chosen), note)]


def section(run: Run, figures: Mapping[str, Path], number: int) -> str:
    """One run: its main table, its further findings, its figures, the other tables.

    Args:
        number: Place of the run in the report, from 1.
    """
    tables = [table for table in TABLES[run.kind](run.results) if table.rows]
    parts = [
        f'<h2 id="run-{number}">{html.escape(run.title)}'
        f"<small>run {html.escape(run.name)}</small></h2>"
    ]
    for table in tables[:1]:
        parts += [f"<h3>{html.escape(table.title)}</h3>", table_html(table)]
    if said := FINDINGS[run.kind](run):
        items = "".join(f"<li>{_with_whole_names(text)}</li>" for text in said)
        parts.append(f"<ul>{items}</ul>")
    if run.results.get("circuit"):
        parts.append(_circuit(run.results["circuit"]))
    parts += [_image(name, path) for name, path in figures.items()]
    parts += [
        f"<details><summary>{html.escape(table.title)}</summary>"
        f"{table_html(table)}</details>"
        for table in tables[1:]
    ]
    files = (
        f"Files of the run: figures as PNG and SVG in {run.path / FIGURE_FOLDER}, "
        f"tables as CSV, LaTeX and Markdown in {run.path / TABLE_FOLDER}."
    )
    if run.kind == "weight_classes" and run.results["weights"]["gated"]:
        files += f" Interactive page of the cosines: {run.path / GEOMETRY_FILE}."
    parts.append(f'<p class="note">{html.escape(files)}</p>')
    return "\n".join([*parts, _about(run)])


def table_html(table: Table) -> str:
    """Rows as an HTML table that scrolls sideways; its note below."""
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f'<div class="scroll">{_rows(table.rows)}</div>{note}'


def _rows(rows: Sequence[Row]) -> str:
    """The keys of all rows in order are the headings."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "\n".join(
        "<tr>" + "".join(_cell(row.get(column)) for column in columns) + "</tr>"
        for row in rows
    )
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _cell(value: Any) -> str:
    text = _with_whole_names(format_cell(value))
    if isinstance(value, int | float):
        return f'<td class="number">{text}</td>'
    kind = ' class="words"' if len(format_cell(value)) > LONG_CELL else ""
    return f"<td{kind}>{text}</td>"


def _with_whole_names(text: str) -> str:
    """The text escaped, with no line break inside the name of an edge."""
    parts = EDGE_NAME.split(text)  # every other part is a name
    return "".join(
        f'<span class="name">{html.escape(part)}</span>' if k % 2 else html.escape(part)
        for k, part in enumerate(parts)
    )


def _image(name: str, path: Path) -> str:
    image = path.read_bytes()
    n_pixels = int.from_bytes(image[16:20], "big")  # width in the header of a PNG
    data = base64.b64encode(image).decode("ascii")
    text = html.escape(CAPTIONS[name])
    return (
        f'<figure><div class="scroll"><img width="{n_pixels * SHOWN_DPI // DPI}" '
        f'alt="{text}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _circuit(circuit: Mapping[str, Any]) -> str:
    text = html.escape(caption(circuit))
    return (
        f'<figure><div class="scroll">{circuit_svg(circuit)}</div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _about(run: Run) -> str:
    """Commands to repeat and continue, and the environment of the run."""
    commands = [command(run.kind, {"config": run.path / "config.json"})]
    following = run.results.get("next") or ""
    is_report = bool(
        REPORT_COMMAND.search(following)
    )  # which the reader has before them
    commands += [following] if following and not is_report else []
    facts = {"run": str(run.path), **_flat(run.environment)}
    if isinstance(facts.get("command"), list):
        facts["command"] = shlex.join(map(str, facts["command"]))
    shown = html.escape("\n".join(commands))
    return (
        f"<h3>{'Command' if len(commands) == 1 else 'Commands'}: repeat this run"
        f"{', and the next step' if len(commands) > 1 else ''}</h3>\n"
        f"<pre>{shown}</pre>\n<details><summary>Environment of the run</summary>"
        f"{_definitions(facts.items())}</details>"
    )


def _definitions(pairs: Iterable[tuple[str, Any]]) -> str:
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in pairs
    )
    return f"<dl>{listed}</dl>"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            facts |= _flat(value, f"{prefix}{name} ")
        else:
            facts[f"{prefix}{name}"] = value
    return facts
