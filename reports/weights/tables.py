"""Tables of a classification by weights: counts, quartiles, regions, words."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.words import format_cell, percent

Row = dict[str, Any]
Results = Mapping[str, Any]
COSINES = {
    "gate_in": "cos(w_gate, w_in)",
    "gate_out": "cos(w_gate, w_out)",
    "in_out": "cos(w_in, w_out)",
}
"""Name of a cosine in results.json -> how a reader sees it."""
NORMS = {"norm_gate": "|w_gate|", "norm_in": "|w_in|", "norm_out": "|w_out|"}
NAMES = COSINES | NORMS
REGIONS = {
    "beta": "beta region",
    "mismatched": "mismatched pairs",
    "beta_corrected": "beta region, corrected",
}
WHOLE = "all"
"""Stands for a layer's number in the row of all layers."""


def total_rows(results: Results) -> list[Row]:
    """One row a class: neurons and their share of all."""
    counted, n_units = results["total"]["classes"], results["n_units"]
    return [
        {"class": name, "neurons": number, "share": percent(number / n_units, 1)}
        for name, number in counted.items()
    ]


def class_rows(results: Results, groups: str = "classes") -> list[Row]:
    """One row a layer: neurons of each class; the last row is their sum.

    Args:
        groups: `classes`, `half_coarse` or `coarse`.
    """
    return [
        {"layer": place, "neurons": entry["n_units"], **entry[groups]}
        for place, entry in _places(results)
    ]


def quartile_rows(results: Results) -> list[Row]:
    """One row a layer and cosine or norm: least, quartiles and greatest value."""
    names = ("least", "lower quartile", "median", "upper quartile", "greatest")
    return [
        {
            "layer": place,
            "value": NAMES[name],
            **dict(zip(names, entry["quartiles"][name], strict=True)),
        }
        for place, entry in _places(results)
        for name in entry["quartiles"]
    ]


def median_rows(results: Results) -> list[Row]:
    """One row a layer: the median of every cosine and norm."""
    return [
        {"layer": place}
        | {NAMES[name]: values[2] for name, values in entry["quartiles"].items()}
        for place, entry in _places(results)
    ]


def bin_rows(results: Results) -> list[Row]:
    """One row a bin: neurons of the model by cosine."""
    of_cosine, n_bins = results["total"]["bins"], results["weights"]["n_bins"]
    return [
        {"from": -1 + 2 * k / n_bins, "to": -1 + 2 * (k + 1) / n_bins}
        | {COSINES[name]: numbers[k] for name, numbers in of_cosine.items()}
        for k in range(n_bins)
    ]


def outside_rows(results: Results) -> list[Row]:
    """One row a layer: share of neurons outside each region, by cosine."""
    return [
        {"layer": place}
        | {
            f"{COSINES[name]}, {title}": number / entry["n_units"]
            for region, title in REGIONS.items()
            for name, number in entry["outside"][region].items()
        }
        for place, entry in _places(results)
    ]


def region_rows(results: Results) -> list[Row]:
    """One row a layer: ends of the mismatched pairs' regions, beside beta's."""
    beta = results["beta"]
    rows = [
        {"layer": f"beta, alpha {beta[alpha]:.2g}"} | _ends(beta[region])
        for alpha, region in (
            ("alpha", "region"),
            ("corrected_alpha", "corrected_region"),
        )
    ]
    return rows + [
        {"layer": layer["layer"]} | _ends(layer["mismatched_region"])
        for layer in results["layers"]
    ]


def series_rows(results: Results) -> list[Row]:
    """One row a revision: neurons of each class and medians of the cosines."""
    return [
        {"revision": entry["revision"]}
        | entry["classes"]
        | {
            f"median {COSINES[name]}": entry["quartiles"][name][2]
            for name in entry["bins"]
        }
        for entry in results["series"]
    ]


def change_rows(results: Results) -> list[Row]:
    """One row a layer: median cosine of a vector in the first and last revision."""
    titles = {"gate": "w_gate", "w_in": "w_in", "w_out": "w_out"}
    return [
        {"layer": entry["layer"]}
        | {titles[name]: values[2] for name, values in entry["quartiles"].items()}
        for entry in results["change"]
    ]


def count_rows(results: Results) -> list[Row]:
    """One row a set of neurons and class: how many, and how many by chance."""
    return [
        {
            "neurons of": entry["path"],
            "set": f"{entry['n']:,} {entry['kind']}",
            "class": counted["class"],
            "in the class": counted["n_class"],
            "chosen": counted["n"],
            "by chance": _of_chance(counted["expected"], counted["interval"]),
            "in the same layers": _of_chance(
                counted["expected_by_layer"], counted["interval_by_layer"]
            ),
            "p": counted["p"],
        }
        for entry in results.get("chosen", [])
        for counted in entry["classes"]
    ]


def _of_chance(expected: float, interval: Sequence[int]) -> str:
    low, high = interval
    return f"{expected:.1f} [{low}, {high}]"


def vocabulary_rows(results: Results) -> list[Row]:
    """One row a vector of every neuron that was asked for: its nearest tokens."""
    return [
        {
            "neuron": entry["unit"],
            "vector": vector["vector"],
            "tokens (score)": " ".join(_words(vector)),
        }
        for entry in results["vocabulary"]
        for vector in entry["vectors"]
    ]


def vocabulary_text(results: Results) -> str:
    """The same as text, a paragraph a neuron."""
    paragraphs = []
    for entry in results["vocabulary"]:
        lines = [f"neuron {entry['unit']} (layer.number)"]
        lines += [
            f"  {vector['vector']:>5}  {' '.join(_words(vector))}"
            for vector in entry["vectors"]
        ]
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs) + "\n"


def _words(vector: Mapping[str, Any]) -> Sequence[str]:
    """Tokens in quotes, since blanks belong to them, each with its score."""
    pairs = zip(vector["tokens"], vector["scores"], strict=True)
    return [f"{token!r} ({score:.2f})" for token, score in pairs]


def _places(results: Results) -> list[tuple[Any, Mapping[str, Any]]]:
    """The entries of all layers with their numbers, then that of the whole model."""
    layers = [(layer["layer"], layer) for layer in results["layers"]]
    return [*layers, (WHOLE, results["total"])]


def _ends(regions: Mapping[str, Sequence[float]]) -> Row:
    return {
        COSINES[name]: f"{format_cell(low)} to {format_cell(high)}"
        for name, (low, high) in regions.items()
    }
