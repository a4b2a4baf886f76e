"""Tables of units of a study in stages: who took over, with words; overlaps."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.stages.arms import arm_name, arms_of, names, stage_name
from circuitcut.reports.tables import Row
from circuitcut.reports.words import (
    format_cell,
    mean,
    method_name,
    percent,
    with_interval,
)

Results = Mapping[str, Any]
N_SHOWN = 10
"""Units of a cut that the page shows; the files have all."""


def took_over_rows(results: Results, *, everything: bool = False) -> list[Row]:
    """One row a unit that ranks highest after the last stage: its words by stage.

    Args:
        everything: All seeds and places, words at every stage; else the first ones.
    """
    entries = results["took_over"]
    if not everything and entries:
        first = entries[0]["seed"]
        entries = [e for e in entries if e["seed"] == first and e["place"] < N_SHOWN]
    rows = []
    for entry in entries:
        row = _unit(entry)
        words = dict(zip(_stages(entry), entry.get("words") or [], strict=False))
        last = list(words)[-1:]
        shown = words if everything else [k for k in words if k in (None, 0, 1, *last)]
        row |= {f"words, {stage_name(k)}": said(words[k]) for k in shown}
        rows.append(row)
    return rows


def _unit(entry: Results) -> Row:
    saliency = entry["saliency"]
    return {
        "cut": arm_name((entry["share"], "cut", entry["holding"]), share=True),
        "seed": entry["seed"],
        "place": entry["place"] + 1,
        "level": entry["level"],
        "unit": entry["unit"],
        "saliency, base": saliency[0],
        "saliency, last stage": saliency[-1],
        "similarity": entry["similarity"],
    }


def said(words: Sequence[Results]) -> str:
    """Words in order, those of the concept with a star."""
    shown = [f"{w['word']}{'*' if w['concept'] else ''}" for w in words]
    return ", ".join(shown) or "none"


def _stages(entry: Results) -> list[int | None]:
    return [None, *range(len(entry["saliency"]) - 1)]


def polysemantic_rows(results: Results) -> list[Row]:
    """One row a cut and stage: what the units that took over respond to.

    Shares of the units that have words, over all seeds and units of `took_over`.
    """
    entries = [entry for entry in results["took_over"] if entry.get("words")]
    rows = []
    for share, holding in dict.fromkeys((e["share"], e["holding"]) for e in entries):
        same = [e for e in entries if (e["share"], e["holding"]) == (share, holding)]
        for k, stage in enumerate(_stages(same[0])):
            worded = [e["words"][k] for e in same if e["words"][k]]
            row: Row = {
                "cut": arm_name((share, "cut", holding), share=True),
                "stage": stage_name(stage),
                "units with words": len(worded),
            }
            rows.append(row | _kinds(worded))
    return rows


def _kinds(lists: Sequence[Sequence[Results]]) -> dict[str, float | None]:
    """Shares of lists with words of the concept alone, of both, of others alone."""
    counts = {"the concept alone": 0, "the concept and others": 0, "others alone": 0}
    for words in lists:
        of_concept = [word["concept"] for word in words]
        kind = 0 if all(of_concept) else 1 if any(of_concept) else 2
        counts[list(counts)[kind]] += 1
    n = len(lists)
    return {name: count / n if n else None for name, count in counts.items()}


def similarity_rows(results: Results) -> list[Row]:
    """One row an arm and stage: similarity of words to every earlier stage."""
    rows = []
    for arm in arms_of(results["similarity"]):
        entries = [row for row in results["similarity"] if names(row) == arm]
        for other in sorted({row["other"] for row in entries}):
            row: Row = {
                "model": arm_name(arm, share=True),
                "stage": stage_name(other),
            }
            for entry in entries:
                if entry["other"] == other:
                    value = with_interval(entry["similarity"], entry["interval"])
                    row[f"to {stage_name(entry['one'])}"] = value
            rows.append(row)
    return rows


OVERLAPS = {
    "with_base": "with the base model's",
    "with_pruned": "with the pruned ones",
    "fresh_with_score": "a new mask with the highest by score",
    "fresh_with_pruned": "a new mask with the pruned ones",
    "fresh_with_base": "new masks, now and at the base model",
}


def overlap_rows(results: Results) -> list[Row]:
    """One row an arm and stage: overlaps of its highest-ranked units."""
    return [
        {
            "model": arm_name(names(entry), share=True),
            "stage": stage_name(entry["stage"]),
            "units compared": entry["n_compared"],
        }
        | {
            label: with_interval(entry[key], entry.get(f"{key}_interval"))
            for key, label in OVERLAPS.items()
            if key in entry
        }
        for entry in results["overlap"]
    ]


def ranking_rows(results: Results) -> list[Row]:
    """One row a pair of rankings of the base model: overlap at every share."""
    overlap = results["rankings"]["overlap"]
    rows = []
    for one, other in dict.fromkeys((row["one"], row["other"]) for row in overlap):
        row: Row = {"ranking": method_name(one), "and": method_name(other)}
        for entry in overlap:
            if (entry["one"], entry["other"]) == (one, other):
                row[percent(entry["share"], 1)] = format_cell(entry["jaccard"])
        rows.append(row)
    return rows


def type_rows(results: Results) -> list[Row]:
    """One row an arm and score by type (`f1_PER`): means over seeds at every stage."""
    found: dict[tuple[Any, ...], dict[int, list[float | None]]] = {}
    for row in results["rows"]:
        for name, value in row["scores"].items():
            if name.startswith("f1_"):
                stages = found.setdefault((*names(row), name), {})
                stages.setdefault(row["stage"], []).append(value)
    rows = []
    for (*arm, name), stages in found.items():
        base = mean([entry["scores"].get(name) for entry in results["seeds"]])
        row = {
            "model": arm_name(tuple(arm), share=True),
            "type": name.removeprefix("f1_"),
            "base": base,
        }
        rows.append(row | {stage_name(s): mean(v) for s, v in sorted(stages.items())})
    return rows


def scan_data(results: Results) -> list[Row]:
    """One row a seed, share and way of pruning, with all scores on both splits."""
    return [
        {k: v for k, v in row.items() if not isinstance(v, Mapping)}
        | {
            f"{split}_{name}": value
            for split in ("tune", "heldout")
            for name, value in row[split].items()
        }
        for row in results["scan"]
    ]


def flat(rows: Sequence[Results]) -> list[Row]:
    """Entries of results.json as rows of a file: an interval as two columns.

    Both are empty where there is no interval.
    """
    flattened = []
    for entry in rows:
        row: Row = {}
        for name, value in entry.items():
            if name.endswith("interval"):
                row[f"{name}_low"], row[f"{name}_high"] = value or (None, None)
            elif not isinstance(value, Mapping | list):
                row[name] = value
        flattened.append(row)
    return flattened
