"""The split rule and the epoch sampling: closed forms, and what users get wrong."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcut.data.sampling import draw, shuffled
from circuitcut.data.splits import split_records
from circuitcut.storage.errors import UserError

CUT_SPLITS = ("tune", "heldout", "mask", "relearn")


def test_groups_go_where_their_number_modulo_five_says():
    groups = [group for group in range(20) for _ in range(3)]
    splits = split_records(groups)
    in_groups = {name: {groups[i] for i in ids} for name, ids in splits.items()}
    assert in_groups == {
        "tune": {0, 5, 10, 15},
        "heldout": {1, 6, 11, 16},
        "base": {2, 3, 4, 7, 8, 9, 12, 13, 14, 17, 18, 19},
        "mask": {2, 3, 4, 12, 13, 14},
        "relearn": {7, 8, 9, 17, 18, 19},
    }


@given(
    groups=st.lists(st.integers(0, 12), min_size=12, max_size=60),
    seed=st.integers(0, 5),
    parts=st.booleans(),
)
def test_the_four_cut_splits_are_disjoint_and_cover_all_but_base(groups, seed, parts):
    sources = [("train", "tune", "heldout")[g % 3] for g in groups] if parts else None
    try:
        splits = split_records(groups, sources=sources, seed=seed)
    except UserError:
        assert parts  # an official part may be missing a second record
        return
    times = Counter(record for name in CUT_SPLITS for record in splits[name])
    assert set(times) == set(range(len(groups)))
    assert set(times.values()) == {1}
    assert sorted(splits["mask"] + splits["relearn"]) == splits["base"]


def test_groups_stay_whole_and_the_seed_decides_which():
    groups = [group for group in range(30) for _ in range(2)]
    first, second = split_records(groups, seed=1), split_records(groups, seed=2)
    for splits in (first, second):
        held_out = Counter(groups[i] for i in splits["heldout"])
        assert set(held_out.values()) == {2}
    assert first == split_records(groups, seed=1)
    assert first["heldout"] != second["heldout"]


def test_a_few_files_are_groups_and_their_sentences_alternate_for_the_mask():
    groups = [file for file in range(6) for _ in range(10)]
    splits = split_records(groups)
    assert {groups[i] for i in splits["heldout"]} == {1}
    assert {groups[i] for i in splits["tune"]} == {0, 5}
    assert splits["mask"][:3] == [20, 22, 24]
    assert splits["relearn"][:3] == [21, 23, 25]


def test_one_document_is_split_by_sentence():
    splits = split_records([7] * 50)
    assert splits["heldout"] == list(range(1, 50, 5))
    assert len(splits["mask"]) == len(splits["relearn"]) == 15


def test_official_parts_come_before_the_rule():
    sources = ["train"] * 20 + ["heldout"] * 5
    splits = split_records(range(25), sources=sources)
    assert splits["heldout"] == [20, 21, 22, 23, 24]
    assert splits["tune"] == [0, 5, 10, 15]
    assert 1 in splits["base"]


@pytest.mark.parametrize("n_records", [0, 1, 3])
def test_too_few_records_are_refused(n_records: int):
    with pytest.raises(UserError, match="must fill five splits"):
        split_records(range(n_records))


@given(n=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(0, 3))
def test_every_index_is_drawn_once_an_epoch(n, size, seed):
    if n <= size:
        assert sorted(draw(n, 5, size, seed)) == list(range(n))
        return
    row = [index for step in range(n) for index in draw(n, step, size, seed)]
    for start in range(0, len(row), n):
        assert sorted(row[start : start + n]) == list(range(n))


def test_a_batch_is_a_function_of_its_step_and_key():
    assert draw(100, 31, 8, "a", 0) == draw(100, 31, 8, "a", 0)
    assert draw(100, 31, 8, "a", 0) != draw(100, 31, 8, "a", 1)
    assert shuffled(5, "golden", 0) == shuffled(5, "golden", 0)
