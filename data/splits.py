"""The five splits: records to train the model or the mask, tune, relearn, and report.

`base` trains the model, `mask` trains the mask, `tune` chooses settings, `relearn`
fine-tunes the cut model, and `heldout` gives the reported scores.
"""

from collections.abc import Sequence
from typing import Literal

from circuitcut.data.sampling import shuffled
from circuitcut.storage.errors import UserError

Split = Literal["base", "mask", "tune", "relearn", "heldout"]
Source = Literal["train", "tune", "heldout"]
"""An official part of a data set: training, validation or test records."""

SOURCES: dict[str, Source] = {
    "train": "train",
    "training": "train",
    "dev": "tune",
    "devel": "tune",
    "valid": "tune",
    "validation": "tune",
    "val": "tune",
    "test": "heldout",
    "eval": "heldout",
}
"""Official part for each name of a file or of a hub split."""
_FEWEST_GROUPS = 3


def split_records(
    groups: Sequence[int], *, sources: Sequence[Source] | None = None, seed: int = 0
) -> dict[Split, list[int]]:
    """Record numbers of every split; all but `base` are disjoint.

    The records of a group (a document, a file) stay in one split. Groups are numbered
    in order of appearance; a `seed` other than 0 shuffles the numbers. Group g goes to
    `tune` when g mod 5 is 0, to `heldout` when it is 1, else to `base`. A group of
    `base` is also in `mask` when g // 5 is even, and in `relearn` when it is odd. With
    fewer than three groups, or when a split would be empty, every record is its own
    group. When `mask` or `relearn` would be empty, the records of `base` go to them in
    turn. A record with an official part in `sources` ("tune", "heldout") goes there.

    Raises:
        UserError: When there are too few records for five splits.
    """
    sources = sources or ["train"] * len(groups)
    in_training = {g for g, s in zip(groups, sources, strict=True) if s == "train"}
    if len(in_training) < _FEWEST_GROUPS:
        groups = range(len(groups))
    numbers = _numbered(groups, seed)
    splits: dict[Split, list[int]] = {"base": [], "tune": [], "heldout": []}
    official = set(sources)
    for record, (number, source) in enumerate(zip(numbers, sources, strict=True)):
        splits[_place(number, source, official)].append(record)
    base = splits["base"]
    splits["mask"] = [record for record in base if numbers[record] // 5 % 2 == 0]
    splits["relearn"] = [record for record in base if numbers[record] // 5 % 2 == 1]
    if not splits["mask"] or not splits["relearn"]:
        splits["mask"], splits["relearn"] = base[::2], base[1::2]
    empty = sorted(name for name, records in splits.items() if not records)
    if empty and len(set(groups)) < len(groups):  # nearly all are in one document
        return split_records(range(len(groups)), sources=sources, seed=seed)
    if empty:
        raise UserError(
            f"the data must fill five splits, got {len(groups)} records and none for "
            f"{', '.join(empty)}; give at least 10 sentences or documents"
        )
    return splits


def _place(number: int, source: Source, official: set[Source]) -> Split:
    if source != "train":
        return source
    if number % 5 == 0 and "tune" not in official:
        return "tune"
    if number % 5 == 1 and "heldout" not in official:
        return "heldout"
    return "base"


def _numbered(groups: Sequence[int], seed: int) -> list[int]:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if seed:
        order = shuffled(len(numbers), "split", seed)
        numbers = {group: order[number] for group, number in numbers.items()}
    return [numbers[group] for group in groups]
