"""A sweep on one machine: a local process for each share, then the runs to join.

Every process is the script with `--share i/n`, in a run directory of its own, so that
the same command goes on where a stopped one was: finished shares are taken as they are,
unfinished ones continue.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.knowledge.shares import NOT_SHARED, OF_THE_JOINED
from circuitcut.experiments.load import deciding
from circuitcut.storage.atomic import write_json
from circuitcut.storage.errors import UserError
from circuitcut.storage.processes import PARENT
from circuitcut.storage.provenance import setting_differences
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import as_given, config_dict, saved_flags

Config = TypeVar("Config", bound=KnowledgeFlags)
THREADS = "OMP_NUM_THREADS"


def runs_of_shares(config: Config, name: Path, script: Sequence[str]) -> list[Path]:
    """Run every share in a process of its own; all have ended when this returns.

    Args:
        config: Flags of the whole sweep, with the number of `processes`.
        name: Of the joined run; those of the shares begin with it.
        script: The command that takes the flags of one share.

    Returns:
        The finished runs, to be joined.

    Raises:
        UserError: When the run of a share has other flags, or a process has failed.
    """
    shares = [of_share(config, place) for place in range(1, config.processes + 1)]
    names = [
        name.with_name(f"{name.name}-{place}-of-{config.processes}")
        for place in range(1, config.processes + 1)
    ]
    runs = [config.run_dir / of for of in names]
    with TemporaryDirectory() as folder:
        flags = [
            _flags(share, of, run, Path(folder) / f"{place}.json")
            for place, (share, of, run) in enumerate(
                zip(shares, names, runs, strict=True), 1
            )
        ]
        codes = _ended([[*script, *given] for given in flags if given])
    failed = [run for run in runs if not (run / "results.json").is_file()]
    if failed or any(codes):
        raise UserError(
            f"--processes: {len(failed)} of {len(runs)} shares have not finished "
            f"({', '.join(map(str, failed))}), their messages are above; the same "
            "command continues them"
        )
    return runs


def of_share(config: Config, place: int) -> Config:
    """The flags of one share: those of the whole sweep without what is done at its end.

    Args:
        place: From 1 to the number of processes.
    """
    usual = vars(type(config)())
    products: dict[str, Any] = {name: usual[name] for name in OF_THE_JOINED}
    return replace(config, **products | {"share": f"{place}/{config.processes}"})


def of_joined(config: Config, runs: Sequence[Path]) -> Config:
    """The flags of the run that joins these, which has all others from them."""
    own = {name: getattr(config, name) for name in NOT_SHARED if hasattr(config, name)}
    return type(config)(**{**own, "processes": 1, "join": list(runs)})


def environment(n_processes: int, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process, in which all of them share the processors.

    Where `OMP_NUM_THREADS` is set, every process has so many threads.
    """
    threads = max(1, (os.cpu_count() or 1) // n_processes)
    return {THREADS: str(threads), **given}


def _flags(share: KnowledgeFlags, name: Path, run: Path, file: Path) -> list[str]:
    """What the script is given; nothing for a finished share.

    Raises:
        UserError: When the share was begun with other flags.
    """
    if not (run / "config.json").is_file():
        write_json(file, {"kind": "knowledge", **saved_flags(share)})
        return ["--config", str(file), "--name", str(name)]
    begun = RunDirectory.open(run)
    saved = deciding(as_given(begun.config))
    if found := setting_differences(saved, deciding(config_dict(share))):
        raise UserError(
            f"--processes goes on with {run}, which was begun with other flags: "
            f"{', '.join(found)}; give those, or another --name"
        )
    if begun.is_finished:
        return []
    return ["--resume", str(run), "--run_dir", str(share.run_dir)]


def _ended(commands: Sequence[Sequence[str]]) -> list[int]:
    """The exit codes of processes that run side by side.

    An exception, such as that of Ctrl-C, stops them all; so does the end of this
    process (`storage.processes.end_with_parent`).
    """
    given = environment(max(1, len(commands)), os.environ)
    given[PARENT] = str(os.getpid())
    processes = []
    try:
        for command in commands:
            processes.append(subprocess.Popen([*command], env=given))
        return [process.wait() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()


def this_script(module: str) -> list[str]:
    """The command that runs a module of this package with this interpreter."""
    return [sys.executable, "-m", module]
