"""Divide prompts among the splits, group by group."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from circuitcut.data.prompts.records import PromptRecord, PromptsCorpus
from circuitcut.storage.errors import UserError

T = TypeVar("T")
FEWEST = 10
"""Prompts below which no split says anything."""
SPLIT_SHARES = {"mask": 0.4, "heldout": 0.2, "tune": 0.15, "relearn": 0.25}
"""Share of the prompts in each split; they are filled in this order."""


def split_prompts(prompts: Sequence[PromptRecord], *, seed: int) -> PromptsCorpus:
    """Four disjoint splits of the prompts; the groups are ordered by a hash.

    `base` has all prompts: a model that is trained here has to know what is cut out of
    it later. A held-out prompt is unseen when its answer is not that of a prompt of
    `mask`, `tune` or `relearn`.

    Raises:
        UserError: When there are fewer groups than splits.
    """
    groups: dict[str, list[PromptRecord]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.group or prompt.text, []).append(prompt)
    if len(groups) < len(SPLIT_SHARES):
        raise UserError(
            f"the prompts must fill {len(SPLIT_SHARES)} splits, got {len(prompts)} "
            f"prompts in {len(groups)} groups; give at least {FEWEST} prompts in "
            f"{len(SPLIT_SHARES)} groups"
        )
    splits = fill_splits(sorted(groups.values(), key=lambda g: _digest(g[0], seed)))
    seen = {p.answer for name in ("mask", "tune", "relearn") for p in splits[name]}
    splits["heldout"] = [
        replace(prompt, unseen=prompt.answer not in seen)
        for prompt in splits["heldout"]
    ]
    everything = [prompt for rows in splits.values() for prompt in rows]
    by_split = {"base": everything, **splits}
    return PromptsCorpus({name: tuple(rows) for name, rows in by_split.items()})


def fill_splits(groups: Sequence[list[T]]) -> dict[str, list[T]]:
    """Whole groups in order, until a split has its share and the rest its groups.

    Args:
        groups: At least as many as there are splits, so that each gets one.
    """
    n = sum(map(len, groups))
    splits: dict[str, list[T]] = {name: [] for name in SPLIT_SHARES}
    remaining = iter(groups)
    n_left = len(groups)
    for after, (name, share) in enumerate(SPLIT_SHARES.items(), start=1):
        is_last = after == len(SPLIT_SHARES)
        while n_left > len(SPLIT_SHARES) - after and (
            is_last or not splits[name] or len(splits[name]) < round(share * n)
        ):
            splits[name] += next(remaining)
            n_left -= 1
    return splits


def _digest(prompt: PromptRecord, seed: int) -> bytes:
    name = prompt.group or prompt.text
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
