"""Shares of a sweep, found by several processes, put together as one would write them.

Every share is a run with records of every n-th fact. A joined run begins with the
records of all shares in the order of the facts, and goes on as any other run.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from circuitcut.experiments.knowledge.activity import ACTIVITY_FILE
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.knowledge.records import (
    ActivityRecord,
    EffectRecord,
    FoundRecord,
    lines_for,
    read_records,
)
from circuitcut.experiments.knowledge.study import EFFECTS_FILE, FOUND_FILE
from circuitcut.experiments.load import OF_THE_PLACE
from circuitcut.experiments.saved_runs import typed_flags
from circuitcut.storage.atomic import write_text
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.provenance import PROVENANCE, differences
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import check_saved

_FILES = {
    FOUND_FILE: FoundRecord,
    EFFECTS_FILE: EffectRecord,
    ACTIVITY_FILE: ActivityRecord,
}
OF_THE_JOINED = frozenset(
    {
        *("processes", "share", "join", "to_mask", "n_ablated", "ablation"),
        *("mean_over", "positions", "bake"),
    }
)
"""Flags of the joined run alone; those of its shares have their default values."""
NOT_SHARED = OF_THE_JOINED | OF_THE_PLACE
"""Those, and flags that decide no number."""
Config = TypeVar("Config", bound=KnowledgeFlags)


def with_flags_of_shares(config: Config) -> Config:
    """The flags of a joined run: those of its shares, which must agree.

    Raises:
        UserError: When a run is no finished share, two have different flags or inputs,
            a share is missing or there twice, or a flag given here differs from theirs.
    """
    runs = [RunDirectory.open(path) for path in config.join]
    places = [_place(run) for run in runs]
    n_shares = places[0][1]
    expected = [(i, n_shares) for i in range(1, n_shares + 1)]
    if sorted(places) != expected:
        raise UserError(
            f"--join must name a run of each of the {n_shares} shares, got "
            f"{', '.join(f'{i}/{n}' for i, n in places)}"
        )
    flags = [typed_flags(type(config), run.config) for run in runs]
    for run, of in zip(runs, flags, strict=True):
        check_saved(type(config), run.config, run.path / "config.json")
        before = runs[0].config.get(PROVENANCE) or {}
        found = _different(flags[0], of)
        found += differences(
            _without_settings(before),
            _without_settings(run.config.get(PROVENANCE) or {}),
        )
        if found:
            raise UserError(
                f"--join {run.path} must be found as {runs[0].path} was; different: "
                f"{', '.join(found)}"
            )
    given = {
        name: getattr(config, name)
        for name, default in vars(type(config)()).items()
        if name not in NOT_SHARED and getattr(config, name) != default
    }
    if found := _different(given, flags[0]):
        raise UserError(
            f"--join takes the flags of its shares, got others: {', '.join(found)}; "
            "leave them out"
        )
    taken = {name: value for name, value in flags[0].items() if name not in NOT_SHARED}
    return replace(config, **taken)


def check_share(config: KnowledgeFlags, n_facts: int) -> None:
    """Refuse a share that has no fact.

    Raises:
        UserError: With the number of known facts.
    """
    place, n_shares = config.place_of_share
    if place > n_facts:
        raise UserError(
            f"--share {place}/{n_shares} must have a fact, got {n_facts} known facts "
            "in all; make fewer shares"
        )


def join_records(runs: Sequence[Path], n_facts: int, folder: Path) -> None:
    """Write the records of all shares in the order of the facts, where none are yet.

    What no share could measure alone is left out, and done by the joined run.

    Args:
        runs: Of the shares, in any order.
        n_facts: Of the whole run.
        folder: Of the joined run.

    Raises:
        UserError: When a file is damaged or incomplete.
    """
    shares = {_place(RunDirectory.open(path)): path for path in runs}
    for name, kind in _FILES.items():
        if (folder / name).exists():
            continue
        entries: list[Any] = []
        for (place, n_shares), path in shares.items():
            numbers = range(place - 1, n_facts, n_shares)
            if not (path / name).exists():
                break
            of_share = read_records(path / name, kind, numbers)
            if name == FOUND_FILE and len(of_share) < len(numbers):
                raise UserError(
                    f"{path / name} must have {len(numbers)} facts, got "
                    f"{len(of_share)}; restore it"
                )
            if len(of_share) < len(numbers):
                break
            entries += of_share
        else:
            entries.sort(key=lambda entry: entry["fact"])
            write_text(folder / name, lines_for(entries))


def _place(run: RunDirectory) -> tuple[int, int]:
    """The place and number of shares of a finished run."""
    if run.kind != "knowledge" or run.config.get("share") in (None, "none"):
        raise UserError(
            f"--join {run.path} must be a run of knowledge with --share i/n, got a "
            f"{run.kind} run without"
        )
    if not run.is_finished:
        again = command("knowledge", {"resume": run.path})
        raise UserError(f"--join {run.path} has not finished; continue it with {again}")
    return KnowledgeFlags(share=str(run.config["share"])).place_of_share


def _different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [
        f"{name} ({value} and {other[name]})"
        for name, value in one.items()
        if name not in NOT_SHARED and name in other and other[name] != value
    ]


def _without_settings(made_with: Any) -> dict[str, Any]:
    return {key: value for key, value in made_with.items() if key != "settings"}
