"""Shares of a sweep are joined to the bytes that one process writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.knowledge.records import FoundRecord, Records
from circuitcut.experiments.knowledge.shares import (
    check_share,
    join_records,
    with_flags_of_shares,
)
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import saved_flags

N_FACTS = 7
FILES = ("found.jsonl", "effects.jsonl", "activity.jsonl")


def entry(file: str, number: int) -> dict[str, Any]:
    words = {"subject": f"s{number}", "relation": "r", "object": "o", "prompts": []}
    return {
        "found.jsonl": {"fact": number, **words},
        "effects.jsonl": {"fact": number, "own": {"before": 1 / 3}, "others": {}},
        "activity.jsonl": {"fact": number, "refined": {"fact": 0.1}, "random": {}},
    }[file]


def lines(file: str, numbers: range) -> str:
    return "".join(json.dumps(entry(file, number)) + "\n" for number in numbers)


def share(parent: Path, place: int, n: int, **flags: Any) -> Path:
    """A finished run of a share."""
    config = KnowledgeFlags(task="facts", share=f"{place}/{n}", run_dir=parent, **flags)
    run = RunDirectory.create(
        parent,
        kind="knowledge",
        task="facts",
        model="m",
        config=saved_flags(config),
        name=Path(f"{place}of{n}"),
    )
    for file in FILES:
        numbers = range(place - 1, N_FACTS, n)
        (run.path / file).write_text(lines(file, numbers))
    (run.path / "results.json").write_text("{}")
    return run.path


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_records_of_all_shares_are_in_the_order_of_the_facts(
    n: int, tmp_path: Path
):
    runs = [share(tmp_path, place, n) for place in range(1, n + 1)]
    joined = tmp_path / "joined"
    joined.mkdir()
    join_records(runs[::-1], N_FACTS, joined)
    for file in FILES:
        assert (joined / file).read_text() == lines(file, range(N_FACTS))


def test_what_a_share_lacks_is_left_to_the_joined_run(tmp_path: Path):
    runs = [share(tmp_path, place, 2) for place in (1, 2)]
    (runs[1] / "effects.jsonl").write_text("")
    joined = tmp_path / "joined"
    joined.mkdir()
    join_records(runs, N_FACTS, joined)
    assert sorted(file.name for file in joined.iterdir()) == [
        "activity.jsonl",
        "found.jsonl",
    ]
    (runs[0] / "found.jsonl").write_text(lines("found.jsonl", range(0, 4, 2)))
    (joined / "found.jsonl").unlink()
    with pytest.raises(UserError, match=r"must have 4 facts, got 2"):
        join_records(runs, N_FACTS, joined)


def test_the_joined_run_takes_the_flags_of_its_shares(tmp_path: Path):
    runs = [share(tmp_path, place, 2, n_steps=7, word="predicted") for place in (1, 2)]
    asked = KnowledgeFlags(task="facts", join=runs, to_mask="facts")
    config = with_flags_of_shares(asked)
    assert (config.n_steps, config.word, config.share) == (7, "predicted", None)
    assert (config.to_mask, config.join) == ("facts", runs)
    assert config.place_of_share == (1, 1)
    with pytest.raises(UserError, match=r"got others: n_steps \(9 and 7\)"):
        with_flags_of_shares(KnowledgeFlags(task="facts", join=runs, n_steps=9))


def test_runs_that_are_not_all_shares_of_one_sweep_are_refused(tmp_path: Path):
    one, two = (share(tmp_path, place, 2) for place in (1, 2))

    def message(*runs: Path) -> str:
        with pytest.raises(UserError) as refused:
            with_flags_of_shares(KnowledgeFlags(task="facts", join=[*runs]))
        return str(refused.value)

    assert "a run of each of the 2 shares, got 1/2" in message(one)
    assert "name every value once" in message(one, one)
    other = share(tmp_path / "others", 2, 2, n_steps=7)
    assert "different: n_steps (20 and 7)" in message(one, other)
    (two / "results.json").unlink()
    assert "has not finished; continue it with" in message(one, two)
    whole = RunDirectory.create(
        tmp_path,
        kind="knowledge",
        task="facts",
        model="m",
        config=saved_flags(KnowledgeFlags(task="facts")),
        name=Path("whole"),
    )
    assert "with --share i/n" in message(whole.path)


@pytest.mark.parametrize("value", ["0/2", "3/2", "1", "a/b", "1/2000", "-1/2"])
def test_a_share_is_one_of_several(value: str):
    with pytest.raises(UserError, match="--share must be i/n"):
        KnowledgeFlags(task="facts", share=value)


def test_a_share_has_facts_and_no_products():
    check_share(KnowledgeFlags(task="facts", share="3/4"), 3)
    with pytest.raises(UserError, match="got 2 known facts in all"):
        check_share(KnowledgeFlags(task="facts", share="3/4"), 2)
    with pytest.raises(UserError, match="leave --to_mask"):
        KnowledgeFlags(task="facts", share="1/2", to_mask="facts")


def test_records_of_a_share_continue_behind_a_torn_line(tmp_path: Path):
    path = tmp_path / "found.jsonl"
    path.write_text(lines("found.jsonl", range(1, 5, 2)) + '{"fact": 5, "sub')
    records = Records(path, FoundRecord, range(1, 9, 2))
    assert list(records.left) == [5, 7]
    assert records.of(3)["subject"] == "s3"
    records.add(entry("found.jsonl", 5))
    assert path.read_text() == lines("found.jsonl", range(1, 7, 2))
    with pytest.raises(UserError, match="entry fact must be 0, got 1"):
        Records(path, FoundRecord, range(4))
