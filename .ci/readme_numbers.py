"""Whether the demo's numbers are README's: its table, the figure's text and two runs.

    python .ci/readme_numbers.py README.md runs

Reads the results.json of the newest train_mask and relearn run under runs/, needs
nothing but Python, and exits with status 1 where a number parts from README's by more
than its tolerance. Counts have none. Scores differ between processors, which round
differently; docs/results/locations.md has the scores with three instruction sets.
"""

import json
import re
import sys
from pathlib import Path

ROW = re.compile(
    r"\| locations, built-in encoder \| (?P<ablated>[\d,]+) of (?P<units>[\d,]+) units "
    r"\| F1 (?P<uncut>\.\d+) → (?P<cut>\.\d+) "
    r"\| F1 (?P<rest_uncut>\.\d+) → (?P<rest_cut>\.\d+) \| `make demo` \|"
)
FIGURE = re.compile(
    r"!\[The demo: (?P<ablated>[\d,]+) of (?P<units>[\d,]+) units are ablated, "
    r"F1 of locations falls from (?P<uncut>\.\d+) to (?P<cut>\.\d+) and "
    r"that of other types from (?P<rest_uncut>\.\d+) to (?P<rest_cut>\.\d+); "
    r"fine-tuning on (?P<examples>\d+) sentences brings it back to "
    r"(?P<relearned>\.\d+)\]"
)
TOLERANCES = {
    "ablated": 0.0,
    "units": 0.0,
    "examples": 0.0,
    "uncut": 0.02,
    "cut": 0.02,
    "rest_uncut": 0.02,
    "rest_cut": 0.05,
    "relearned": 0.05,
}
"""Greatest difference from README's number: at least 1.5 times what was measured."""


def stated(readme: str) -> dict[str, float]:
    """README's numbers by name.

    Raises:
        ValueError: When table and figure are not found, or do not say the same.
    """
    text = " ".join(readme.split())
    found = [pattern.search(text) for pattern in (ROW, FIGURE)]
    if None in found:
        raise ValueError(
            "README's row of the demo or the text of its figure has another form than "
            f"{Path(__file__).name} reads; change both together"
        )
    row, figure = (
        {name: float(number.replace(",", "")) for name, number in m.groupdict().items()}
        for m in found
        if m is not None
    )
    parted = [name for name, number in row.items() if figure[name] != number]
    if parted:
        raise ValueError(f"README's table and figure part in {', '.join(parted)}")
    return figure


def measured(runs: Path) -> dict[str, float]:
    """The same numbers of the newest mask and of its relearning.

    Raises:
        ValueError: When a run is missing, or the relearning is of another mask.
    """
    mask_run, mask = _newest(runs, "train_mask")
    _, relearning = _newest(runs, "relearn")
    if Path(relearning["mask"]).name != mask_run.name:
        raise ValueError(f"the newest relearning is of {relearning['mask']}")
    scores = mask["scores"]
    limits = [row["limit"] for row in relearning["summary"] if row["limit"]]
    of_cut = [
        row
        for row in relearning["summary"]
        if (row["condition"], row["limit"]) == ("cut", min(limits))
    ]
    return {
        "ablated": mask["n_ablated"],
        "units": mask["n_units"],
        "uncut": scores["uncut"]["concept_f1"],
        "cut": scores["cut"]["concept_f1"],
        "rest_uncut": scores["uncut"]["retain_f1"],
        "rest_cut": scores["cut"]["retain_f1"],
        "examples": min(limits),
        "relearned": max(of_cut, key=lambda row: row["step"])["concept"],
    }


def parted(readme: dict[str, float], demo: dict[str, float]) -> list[str]:
    """The numbers that are not README's, in words."""
    return [
        f"{name}: README {number:g}, demo {demo[name]:.4g}, tolerance {tolerance:g}"
        for name, tolerance in TOLERANCES.items()
        if not abs(demo[name] - (number := readme[name])) <= tolerance + 5e-4
    ]


def _newest(runs: Path, kind: str) -> tuple[Path, dict]:
    folders = [
        path.parent
        for path in runs.glob("*/results.json")
        if json.loads((path.parent / "config.json").read_text())["kind"] == kind
    ]
    if not folders:
        raise ValueError(f"no finished {kind} run in {runs}")
    newest = max(folders, key=lambda folder: (folder / "results.json").stat().st_mtime)
    return newest, json.loads((newest / "results.json").read_text(encoding="utf-8"))


def main(readme: Path, runs: Path) -> int:
    """Compare and print; the exit status."""
    try:
        expected = stated(readme.read_text(encoding="utf-8"))
        demo = measured(runs)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = parted(expected, demo)
    for name, number in expected.items():
        print(f"{name}: README {number:g}, demo {demo[name]:.4g}")
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
