"""What Lo et al. (2024) state about relearning, held against a study in stages.

"Large Language Models Relearn Removed Concepts", https://arxiv.org/abs/2401.01814. A
statement is *confirmed* where the 95 % interval over seeds lies on its side, *not
confirmed* where it does not, and *not testable here* where there is no interval (fewer
than two seeds), no random cut, or nothing that could be measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitcut.reports.stages.arms import arm_name, names
from circuitcut.reports.stages.change_tables import OTHERS, SHARE, signed
from circuitcut.reports.tables import Row
from circuitcut.reports.words import with_interval

Results = Mapping[str, Any]
Interval = Sequence[float | None]
ENOUGH = 0.95
"""Share of the base model's score that counts as recovered."""
CONFIRMED, NOT_CONFIRMED = "confirmed", "not confirmed"
NOT_TESTABLE = "not testable here"


@dataclass(frozen=True)
class _Found:
    """A measured number with its interval, and the side of `than` that confirms."""

    statement: str
    published: str
    number: float | None
    interval: Interval
    than: float
    is_above: bool
    times: float = 1.0
    unit: str = ""

    def row(self, cut: str) -> Row:
        shown = [None if end is None else self.times * end for end in self.interval]
        number = None if self.number is None else self.times * self.number
        text = with_interval if not self.unit else signed
        here = "" if number is None else f"{text(number, shown)} {self.unit}".strip()
        return {
            "statement": self.statement,
            "cut": cut,
            "published": self.published,
            "here": here,
            "verdict": self.verdict,
        }

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if self.number is None or low is None or high is None:
            return NOT_TESTABLE
        is_so = low > self.than if self.is_above else high < self.than
        return CONFIRMED if is_so else NOT_CONFIRMED


def statement_rows(results: Results) -> list[Row]:
    """One row a statement and cut, with the published number and that of this study."""
    rows = []
    relearned = [e for e in results.get("relearned", []) if e["condition"] == "cut"]
    for arm in dict.fromkeys(map(names, relearned)):
        of_arm = [entry for entry in relearned if names(entry) == arm]
        cut = arm_name(arm, share=True)
        rows += [found.row(cut) for found in _of_scores(of_arm)]
        changes = [e for e in results.get("changes", []) if names(e) == arm]
        last_level = results["levels"][-1]["level"]
        rows += [found.row(cut) for found in _of_units(changes, last_level)]
    return rows


def _of_scores(entries: Sequence[Results]) -> list[_Found]:
    """Recovery after the first stage, and whether the random cut is slower."""
    found = []
    for entry in entries:
        if entry["stage"] != 1 or entry["concept"] is None:
            continue
        found.append(
            _Found(
                f"The concept's score is at least {ENOUGH:.0%} of the base model's "
                "after stage 1",
                ".974 (all labels: .9142 of .9382), .985 (LOC: .946 of .960); 50 % cut",
                entry["concept"],
                entry["concept_interval"],
                ENOUGH,
                is_above=True,
            )
        )
        found.append(
            _Found(
                "After random pruning less of the lost score is back after stage 1 "
                "(cut minus random cut)",
                "stated, no number",
                entry.get("beyond_random"),
                entry.get("beyond_random_interval", (None, None)),
                0.0,
                is_above=True,
                times=100,
                unit="points",
            )
        )
    return found


def _of_units(entries: Sequence[Results], last_level: int) -> list[_Found]:
    """Changes up to the last stage: levels of the salient units, polysemantic units."""
    last = max((entry["stage"] for entry in entries), default=0)
    by_place = {
        (entry["measure"], entry["level"]): entry
        for entry in entries
        if entry["stage"] == last
    }
    found = []
    for statement, published, place, is_above in (
        (
            "More of the salient units are at level 0",
            "+17.4 points (DistilBERT, locations, 8 epochs: 10.7 → 28.1 %)",
            (SHARE, 0),
            True,
        ),
        (
            "Fewer of the salient units are at the last level",
            "-15.4 points (DistilBERT: 19.7 → 4.3 %); DistilGPT2 +1.5 (7.8 → 9.3 %)",
            (SHARE, last_level),
            False,
        ),
        (
            "More units respond to the concept and other words as well",
            "stated, no number",
            ("polysemantic", None),
            True,
        ),
    ):
        others = (OTHERS, place[1])
        for at, key, further in (
            (place, "change", ""),
            (place, "beyond_random", ", beyond the random cut"),
            (others, "change", ", among the units that were not pruned"),
        ):
            entry = by_place.get(at)
            if entry is None or (at == others and place[0] != SHARE):
                continue
            found.append(
                _Found(
                    statement + further,
                    "not measured" if further else published,
                    entry.get(key),
                    entry.get(f"{key}_interval", (None, None)),
                    0.0,
                    is_above,
                    times=100,
                    unit="points",
                )
            )
    return found
