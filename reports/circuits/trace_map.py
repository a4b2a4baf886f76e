"""Causal tracing drawn: what each restored state brings back, layers by tokens."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from circuitcut.reports.drawing import WIDTH, layer_ticks
from circuitcut.reports.load import Run
from circuitcut.reports.words import format_cell

Results = Mapping[str, Any]
KINDS = {"hidden": "hidden state", "mlp": "MLPs", "attention": "attention"}


def trace_map(run: Run) -> Figure | None:
    """Normalised indirect effects by layer and tokens, a panel a restored kind."""
    effects = run.results["effects"]
    known = [row["normalised"] for row in effects if row["normalised"] is not None]
    if not known:
        return None
    kinds = list(dict.fromkeys(row["restored"] for row in effects))
    classes = list(dict.fromkeys(row["tokens"] for row in effects))
    layers = sorted({row["layer"] for row in effects})
    most = max(abs(value) for value in known) or 1.0
    figure = Figure(figsize=(WIDTH, 1.3 + 0.3 * len(classes)), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        table = np.full((len(classes), len(layers)), np.nan)
        for row in effects:
            if row["restored"] == kind and row["normalised"] is not None:
                place = classes.index(row["tokens"]), layers.index(row["layer"])
                table[place] = row["normalised"]
        image = axes.imshow(table, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        layer_ticks(axes, dict(enumerate(layers)), 8)
        axes.set_title(KINDS[kind])
        axes.grid(False)
        shown = axes is panels[0]
        axes.set_yticks(range(len(classes)), classes if shown else [])
    figure.colorbar(image, ax=panels, label="normalised\nindirect effect")
    return figure


def effect_rows(results: Results) -> list[dict[str, Any]]:
    """A row for each restored kind and class of tokens: the layer of the largest."""
    best: dict[tuple[str, str], Results] = {}
    for row in results["effects"]:
        key = row["restored"], row["tokens"]
        if key not in best or _size(row) > _size(best[key]):
            best[key] = row
    return [
        {
            "restored": KINDS[kind],
            "tokens": tokens,
            "prompts": row["n_prompts"],
            "layer": row["layer"],
            "indirect effect": row["indirect"],
            "normalised": _with_interval(row),
        }
        for (kind, tokens), row in sorted(
            best.items(), key=lambda pair: list(KINDS).index(pair[0][0])
        )
    ]


def _size(row: Results) -> float:
    return float(row["indirect"])


def _with_interval(row: Results) -> str:
    if row["normalised"] is None:
        return "undefined"
    value = format_cell(row["normalised"])
    if row["interval"] is None:
        return value
    low, high = map(format_cell, row["interval"])
    return f"{value} ({low} to {high})"


def trace_opening(run: Run) -> tuple[str, list[str]]:
    """A trace: what noise costs, and the state that brings most back."""
    results, tracing = run.results, run.results["tracing"]
    n_prompts = len(results["prompts"])
    parts = [
        f"Noise on the subject lowers the mean probability of the object from "
        f"{format_cell(tracing['clean'])} to {format_cell(tracing['corrupted'])} "
        f"({n_prompts} prompts)."
    ]
    sentences = []
    for kind, name in KINDS.items():
        rows = [row for row in results["effects"] if row["restored"] == kind]
        if not rows:
            continue
        best = max(rows, key=_size)
        sentences.append(
            f"Restoring {name} brings back most at the tokens {best['tokens']}, layer "
            f"{best['layer']}: {_with_interval(best)} of what noise takes away."
        )
    return parts[0], sentences
