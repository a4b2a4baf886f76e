"""Tables of changes in a study in stages: the cut beside the random cut, by level."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.stages.arms import Names, arm_name, arms_of, names, stage_name
from circuitcut.reports.tables import Row
from circuitcut.reports.words import percent, with_interval

Results = Mapping[str, Any]
SHARE, OTHERS = "salient_share", "salient_share_of_others"


def relearned_rows(results: Results) -> list[Row]:
    """One row an arm and side: score at every stage, of 1 for the base model's."""
    entries = results.get("relearned", [])
    rows = []
    for arm in arms_of(entries):
        of_arm = [entry for entry in entries if names(entry) == arm]
        for side, label in (("concept", "concept"), ("retain", "others")):
            if all(entry[side] is None for entry in of_arm):
                continue
            row: Row = {"model": arm_name(arm, share=True), "score": label}
            for entry in of_arm:
                value = with_interval(entry[side], entry[f"{side}_interval"])
                row[stage_name(entry["stage"])] = value
            rows.append(row)
    return rows


def level_change_rows(results: Results) -> list[Row]:
    """One row a cut and level: its share of the salient units, cut and random cut."""
    rows = []
    for share, holding in _cuts(results):
        cut, random = (share, "cut", holding), (share, "random", holding)
        for level in [*(entry["level"] for entry in results["levels"]), None]:
            of_cut = _entries(results, cut, SHARE, level)
            of_random = _entries(results, random, SHARE, level)
            of_others = _entries(results, cut, OTHERS, level)
            if not of_cut:
                continue
            row: Row = {
                "cut": arm_name(cut, share=True),
                "level": "mean level" if level is None else level,
                "base": _shown(_base(of_cut[0]), level),
            }
            for name, entries in (("cut", of_cut), ("random", of_random)):
                for entry in _ends(entries):
                    column = f"{name}, {stage_name(entry['stage'])}"
                    row[column] = _shown(entry["value"], level)
            row |= _last_changes(of_cut[-1], level)
            if of_others:
                among = _last_changes(of_others[-1], level)["change"]
                row["change among units not pruned"] = among
            rows.append(row)
    return rows


def polysemantic_change_rows(results: Results) -> list[Row]:
    """One row an arm: share of units with words of the concept and others, by stage."""
    entries = results.get("changes", [])
    rows = []
    for arm in arms_of(entries):
        of_arm = _entries(results, arm, "polysemantic", None)
        if not of_arm or of_arm[0]["value"] is None:
            continue
        row: Row = {
            "model": arm_name(arm, share=True),
            "base": _shown(_base(of_arm[0])),
        }
        for entry in of_arm:
            value = _shown(entry["value"])
            row[stage_name(entry["stage"])] = value
        rows.append(row | _last_changes(of_arm[-1]))
    return rows


def _cuts(results: Results) -> list[tuple[float, str]]:
    arms = arms_of(results.get("changes", []))
    return [
        (share, holding) for share, condition, holding in arms if condition == "cut"
    ]


def _entries(
    results: Results, arm: Names, measure: str, level: int | None
) -> list[Results]:
    """The entries of `changes` of an arm, measure and level, in order of stages."""
    found = [
        entry
        for entry in results.get("changes", [])
        if names(entry) == arm
        and (entry["measure"], entry["level"]) == (measure, level)
    ]
    return sorted(found, key=lambda entry: entry["stage"])


def _ends(entries: Sequence[Results]) -> list[Results]:
    """Right after pruning, and the last stage."""
    return [entries[0], entries[-1]] if len(entries) > 1 else list(entries)


def _base(entry: Results) -> float | None:
    """The base model's value: value minus change."""
    if entry["value"] is None or entry["change"] is None:
        return None
    return float(entry["value"] - entry["change"])


def _last_changes(entry: Results, level: int | None = 0) -> Row:
    """Changes up to the last stage, with intervals over seeds."""
    titles = {"change": "change", "beyond_random": "change beyond the random cut's"}
    return {
        title: signed(
            _times(entry[key], level),
            [_times(end, level) for end in entry[f"{key}_interval"]],
        )
        for key, title in titles.items()
        if key in entry
    }


def signed(value: float | None, interval: Sequence[float | None]) -> str:
    """`+1.20 [+0.30, +2.10]`, without brackets where no interval is known."""
    if value is None:
        return ""
    ends = [f"{end:+.2f}" for end in interval if end is not None]
    return f"{value:+.2f}" + (f" [{', '.join(ends)}]" if len(ends) == 2 else "")


def _times(value: float | None, level: int | None) -> float | None:
    """A share in percentage points; without a level it is a mean level."""
    return value if value is None or level is None else 100 * value


def _shown(value: float | None, level: int | None = 0) -> str | float | None:
    return value if value is None or level is None else percent(value, 1)
