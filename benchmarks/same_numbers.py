"""Record runs under fixed seeds, and compare two recordings bit for bit.

    python benchmarks/same_numbers.py --checkout ../earlier --out build/before
    python benchmarks/same_numbers.py --out build/after
    python benchmarks/same_numbers.py --compare build/before build/after

The first two run the commands of `RUNS` with the scripts of a checkout, one thread,
with a cache of its own, so that base models are trained again: four minutes on two
quiet cores. `--compare` reads results.json and the tensors of every run. Paths, times
and fields that only the second recording has are left out; anything else that differs
is named, and the exit code is 1. A refactor that says "same numbers" is shown by it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.training.config import run_script

RUNS: dict[str, list[list[str]]] = {
    "locations": [
        ["train_mask", "--task", "locations", "--name", "locations"],
        ["relearn", "--mask", "{out}/locations"],
        ["report", "--runs", "{out}/locations", "--out", "{out}/locations/r.html"],
    ],
    "ioi": [
        ["train_mask", "--task", "ioi", "--units", "edges", "--name", "ioi_break"],
        [
            *("train_mask", "--task", "ioi", "--units", "edges"),
            *("--direction", "isolate", "--name", "ioi_isolate"),
        ],
        [
            *("relearn", "--mask", "{out}/ioi_break", "--limits", "16"),
            *("--seeds", "0", "--n_steps", "20"),
        ],
        ["faithfulness", "--mask", "{out}/ioi_isolate", "--n_random", "1"],
    ],
    "toxicity": [["train_mask", "--task", "toxicity", "--name", "toxicity"]],
    "mnist": [["train_mask", "--task", "mnist", "--name", "mnist"]],
}
"""Chains of commands; a chain's commands run one after the other."""
TIMES = ("seconds",)
PATHS = ("folder", "mask", "masks", "next", "run", "file")
"""Fields of results.json that hold times and paths."""


def record(checkout: Path, out: Path, names: list[str]) -> None:
    """Run the chains, two at a time, with the scripts of `checkout`."""
    out.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: _record(checkout, out.resolve(), name), names))


def _record(checkout: Path, out: Path, chain: str) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CIRCUITCUT_CACHE": str(out / "cache" / chain),
    }
    for verb, *flags in RUNS[chain]:
        words = [flag.replace("{out}", str(out)) for flag in flags]
        if verb != "report":
            words += ["--run_dir", str(out)]
        with (out / f"{chain}.log").open("a") as log:
            subprocess.run(
                [sys.executable, f"scripts/{verb}.py", *words],
                cwd=checkout,
                env=environment,
                stdout=log,
                stderr=log,
                check=True,
            )


def compare(before: Path, after: Path) -> list[str]:
    """What differs between two recordings, a line each."""
    differences: list[str] = []
    runs_before, runs_after = _runs(before), _runs(after)
    for name in sorted(runs_before | runs_after):
        if name not in runs_before or name not in runs_after:
            differences.append(f"{name}: in one recording only")
            continue
        first, second = runs_before[name], runs_after[name]
        differences += [
            f"{name}/results.json {line}"
            for line in _different(
                json.loads((first / "results.json").read_text()),
                json.loads((second / "results.json").read_text()),
            )
        ]
        tensors = sorted(path.name for path in first.glob("*.safetensors"))
        for tensor_file in tensors:
            differences += [
                f"{name}/{tensor_file} {line}"
                for line in _different_tensors(
                    first / tensor_file, second / tensor_file
                )
            ]
    return differences


def _runs(out: Path) -> dict[str, Path]:
    """Finished runs by name; those with a generated name by kind and order."""
    runs: dict[str, Path] = {}
    for path in sorted(out.glob("*/results.json")):
        results = json.loads(path.read_text())
        name = path.parent.name
        if results["kind"] != "train_mask":
            name = f"{results['kind']}-{results['task']}"
        runs[name] = path.parent
    return runs


def _different(before: Any, after: Any, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before:
            if key in (*TIMES, *PATHS):
                continue
            if key not in after:
                yield f"{where}.{key} is missing"
            else:
                yield from _different(before[key], after[key], f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{where} has {len(before)} and {len(after)} entries"
        for i, pair in enumerate(zip(before, after, strict=False)):
            yield from _different(*pair, f"{where}[{i}]")
    elif before != after and not (before != before and after != after):
        yield f"{where}: {before!r} and {after!r}"


def _different_tensors(before: Path, after: Path) -> Iterator[str]:
    if not after.exists():
        yield "is missing"
        return
    first, second = load_file(before), load_file(after)
    if first.keys() != second.keys():
        yield f"tensors {sorted(first.keys() ^ second.keys())} are in one file only"
    for key in first.keys() & second.keys():
        if not torch.equal(first[key], second[key]):
            yield f"tensor {key} differs"


@dataclass(frozen=True)
class SameNumbersConfig:
    """Record one checkout, or compare two recordings."""

    checkout: Path = flag(Path(), "the checkout whose scripts are run")
    out: Path | None = flag(None, "record: the folder to make")
    chains: list[str] = flag(list(RUNS), f"record: which of {', '.join(RUNS)}")
    compare: list[Path] = flag([], "compare these two recordings instead")

    def __post_init__(self) -> None:
        if len(self.compare) not in (0, 2):
            raise UserError(f"--compare takes two folders, got {len(self.compare)}")
        if not self.compare and (self.out is None or self.out.exists()):
            raise UserError(f"--out must be a folder that does not exist: {self.out}")
        unknown = set(self.chains) - set(RUNS)
        if unknown:
            raise UserError(f"--chains must be among {list(RUNS)}, got {unknown}")


def main(config: SameNumbersConfig) -> None:
    """Record, or compare and say what differs."""
    if not config.compare:
        assert config.out is not None
        record(config.checkout, config.out, config.chains)
        return
    differences = compare(*config.compare)
    if differences:
        print("\n".join(differences))
        raise UserError(f"{len(differences)} differences")
    print("the two recordings are the same")


if __name__ == "__main__":
    run_script(main, SameNumbersConfig)
