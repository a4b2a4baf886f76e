"""Time and memory of the classes of a 7B model against reading its file.

    python benchmarks/classes/large_checkpoint.py --folder FOLDER

Writes a checkpoint of OLMo-7B's shape (32 layers of 11,008 gated neurons, d_model
4,096) with random weights in bfloat16, a file for every four layers, and leaves out all
but the MLPs: 8.7 GB. Then every layer's neurons are classified as `weight_classes.py`
does it, in a process of its own, beside a process that only reads the bytes of the
files. The system's copy of the files is dropped before each of the two, so that both
read from the disk; `--cached` reads both from memory instead. Rounds are interleaved,
ratios are medians. The weights stay in FOLDER for the next time.
Targets: at most 2 times the reading, at most 2 GB.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from circuitcut.models.source import INDEX_FILE
from circuitcut.storage.atomic import write_json, write_tensors
from circuitcut.training.config import run_script
from circuitcut.weight_classes.analysis import analyse
from circuitcut.weight_classes.checkpoint import open_checkpoint
from circuitcut.weight_classes.settings import WeightSettings

D_MODEL, D_MLP = 4096, 11_008
LAYERS_A_FILE = 4
TARGET_RATIO, TARGET_GB = 2.0, 2.0
GB = 1e9
PIECE = 16 * 2**20
"""Bytes of one read."""


@dataclass(frozen=True)
class LargeCheckpointConfig:
    """Settings of the benchmark."""

    folder: Path = field(metadata={"help": "where the checkpoint is written, and kept"})
    layers: int = field(default=32, metadata={"help": "layers of the model"})
    rounds: int = field(default=3, metadata={"help": "interleaved rounds"})
    threads: int = field(default=1, metadata={"help": "torch threads"})
    cached: bool = field(
        default=False, metadata={"help": "read from the system's memory"}
    )
    part: Literal["both", "read", "classes"] = field(
        default="both", metadata={"help": "a single part is measured once, here"}
    )
    seed: int = 0


def main(config: LargeCheckpointConfig) -> None:
    """Write the checkpoint if it is not there; print times, memory and the ratio."""
    folder = config.folder / f"olmo-{config.layers}"
    if not (folder / "config.json").exists():
        _write(folder, config.layers, config.seed)
    if config.part != "both":
        torch.set_num_threads(config.threads)
        _print_measured(_read if config.part == "read" else _classify, folder)
        return
    found: dict[str, list[dict[str, float]]] = {"read": [], "classes": []}
    for _ in range(config.rounds):
        for part, of_part in found.items():
            of_part.append(_in_process(config, folder, part))
    size = sum(file.stat().st_size for file in _files(folder)) / GB
    print(f"{config.layers} layers, {size:.1f} GB, {config.threads} thread(s)")
    for part, of_part in found.items():
        times, memory = ([m[key] for m in of_part] for key in ("seconds", "gb"))
        print(
            f"{part:8} {statistics.median(times):6.1f} s  {size / min(times):5.2f} GB/s"
            f"  peak {max(memory):.2f} GB"
        )
    ratios = [
        classes["seconds"] / read["seconds"]
        for read, classes in zip(found["read"], found["classes"], strict=True)
    ]
    print(
        f"classes / read: {statistics.median(ratios):.2f} (target {TARGET_RATIO:g}), "
        f"from {min(ratios):.2f} to {max(ratios):.2f}; memory target {TARGET_GB:g} GB"
    )


def _write(folder: Path, n_layers: int, seed: int) -> None:
    """The files, config.json last: a folder with one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    shapes = {
        "gate_proj": (D_MLP, D_MODEL),
        "up_proj": (D_MLP, D_MODEL),
        "down_proj": (D_MODEL, D_MLP),
    }
    weight_map: dict[str, str] = {}
    for first in range(0, n_layers, LAYERS_A_FILE):
        name = f"model-{first:05d}.safetensors"
        tensors = {
            f"model.layers.{layer}.mlp.{matrix}.weight": torch.randn(
                shape, generator=rng
            ).to(torch.bfloat16)
            for layer in range(first, min(first + LAYERS_A_FILE, n_layers))
            for matrix, shape in shapes.items()
        }
        write_tensors(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    write_json(folder / INDEX_FILE, {"weight_map": weight_map})
    write_json(
        folder / "config.json",
        {
            "model_type": "olmo",
            "hidden_size": D_MODEL,
            "intermediate_size": D_MLP,
            "num_hidden_layers": n_layers,
        },
    )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _read(folder: Path) -> None:
    """Every byte of the files, into one buffer."""
    buffer = bytearray(PIECE)
    for file in _files(folder):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def _classify(folder: Path) -> None:
    analyse(open_checkpoint(str(folder)), WeightSettings()).total()


def _print_measured(part: Callable[[Path], None], folder: Path) -> None:
    start = time.perf_counter()
    part(folder)
    elapsed = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / GB
    print(json.dumps({"seconds": elapsed, "gb": peak}))


def _in_process(
    config: LargeCheckpointConfig, folder: Path, part: str
) -> dict[str, float]:
    """Seconds and peak memory of one part, in a new process."""
    if config.cached:
        _read(folder)
    else:
        for file in _files(folder):
            _drop(file)
    command = [sys.executable, __file__, "--folder", str(config.folder)]
    command += ["--layers", str(config.layers), "--threads", str(config.threads)]
    done = subprocess.run(
        [*command, "--part", part], check=True, stdout=subprocess.PIPE, text=True
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _drop(file: Path) -> None:
    """Forget the system's copy of a file, once it is written to the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    run_script(main, LargeCheckpointConfig)
