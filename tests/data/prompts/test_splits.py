"""Splits of prompts: groups stay together, shares, unseen answers, built-in facts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcut.data.prompts.generated import CAPITAL_TEMPLATES, generate_facts
from circuitcut.data.prompts.records import PromptRecord
from circuitcut.data.prompts.splits import SPLIT_SHARES, split_prompts
from circuitcut.storage.errors import UserError


@given(st.lists(st.integers(1, 9), min_size=4, max_size=40), st.integers(0, 3))
def test_groups_stay_in_one_split_and_every_split_has_one(sizes: list[int], seed: int):
    prompts = [
        PromptRecord(f"{group} {i}", "a", group=str(group))
        for group, size in enumerate(sizes)
        for i in range(size)
    ]
    records = split_prompts(prompts, seed=seed).records
    groups = [{r.group for r in records[split]} for split in SPLIT_SHARES]
    assert all(groups)
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(sizes)
    assert sum(len(records[split]) for split in SPLIT_SHARES) == len(prompts)
    assert sorted(r.text for r in records["base"]) == sorted(r.text for r in prompts)


def test_single_prompts_are_divided_by_the_shares():
    prompts = [PromptRecord(f"p {i}", f"a{i % 150}") for i in range(200)]
    records = split_prompts(prompts, seed=0).records
    for split, share in SPLIT_SHARES.items():
        assert len(records[split]) == 200 * share
    seen = {r.answer for s in ("mask", "tune", "relearn") for r in records[s]}
    assert {r.unseen for r in records["heldout"]} == {True, False}
    assert all(r.unseen == (r.answer not in seen) for r in records["heldout"])
    assert split_prompts(prompts, seed=1).records["mask"] != records["mask"]


def test_too_few_groups_are_refused():
    prompts = [PromptRecord(f"p {i}", "a", group=str(i % 3)) for i in range(30)]
    with pytest.raises(UserError, match="30 prompts in 3 groups"):
        split_prompts(prompts, seed=0)


def test_built_in_countries_capitals_and_rivals_are_in_one_split():
    records = generate_facts(0).records
    words: list[set[str]] = []
    for split in SPLIT_SHARES:
        prompts = [r for r in records[split] if r.answer]
        assert len(prompts) % len(CAPITAL_TEMPLATES) == 0
        capitals = {r.group: r.answer for r in prompts}
        words.append({*capitals, *capitals.values()})
        for r in prompts:
            assert r.answer == capitals[r.group]
            assert set(r.rivals) < set(capitals.values()) - {r.answer}
            other = (r.counterfactual or "").split()
            (changed,) = (
                pair
                for pair in zip(r.text.split(), other, strict=True)
                if pair[0] != pair[1]
            )
            assert changed[0] == r.group
            assert changed[1] in capitals
        assert any(not r.answer for r in records[split])
    assert sum(map(len, words)) == len(set().union(*words)) == 200
