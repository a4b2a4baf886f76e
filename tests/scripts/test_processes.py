"""The scripts on two processes: one run folder, written once, with the same result."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from circuitcut.models.loading import load_model
from circuitcut.scripts import relearn, train_mask
from circuitcut.storage.atomic import read_json, read_tensors
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_config

pytestmark = pytest.mark.slow

TASK = ["--task", "mnist", "--base_steps", "100"]
MASK = ["--n_steps", "20", "--lr", "0.3", "--n_ablated", "150", "--n_random", "1"]
MASK += ["--attribution", "none"]
RELEARN = ["--n_steps", "4", "--limits", "4", "all", "--seeds", "0"]
RELEARN += ["--n_evaluations", "2", "--batch_size", "7", "--no_probe"]
PROGRAM = """
import importlib, json, sys

from circuitcut.training.config import leave_process_group, parse_config

try:
    for name, config_name, flags in json.loads(sys.argv[1]):
        script = importlib.import_module(f"circuitcut.scripts.{name}")
        script.main(parse_config(getattr(script, config_name), flags))
finally:
    leave_process_group()  # as `run_script` does: its threads must not outlive Python
"""


def _launch(folder: Path, jobs: list[tuple[str, str, list[str]]]) -> str:
    """Scripts one after the other on two CPU processes; their output."""
    done = _launched(folder, jobs, {"ACCELERATE_USE_CPU": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def _launched(
    folder: Path, jobs: list[tuple[str, str, list[str]]], given: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Scripts on two processes with further environment variables.

    `accelerate launch --cpu` starts several only under MPI, hence the environment.
    """
    program = folder / "program.py"
    program.write_text(PROGRAM)
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2"
    launch += f" --main_process_port {_free_port()}"
    own = {"OMP_NUM_THREADS": "1", **given}
    own["CIRCUITCUT_CACHE"] = str(folder / "cache")
    return subprocess.run(
        [sys.executable, *launch.split(), str(program), json.dumps(jobs)],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )


def _free_port() -> int:
    """For the processes to meet at: several launches may run at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _only_run(parent: Path) -> RunDirectory:
    (path,) = parent.iterdir()
    return RunDirectory.open(path)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every script on two processes: a folder with a parent of runs for each."""
    folder = tmp_path_factory.mktemp("two")

    def run_dir(name: str) -> list[str]:
        return ["--run_dir", str(folder / name)]

    at_sizes = ["--methods", "probeless", "--sizes", "20", "--n_batches", "2"]
    mask = ["--mask", str(folder / "train_mask" / "named")]
    train = [*TASK, *MASK, "--batch_size", "16", "--name", "named"]
    output = _launch(
        folder,
        [
            ("train_mask", "TrainMaskConfig", [*train, *run_dir("train_mask")]),
            ("relearn", "RelearnConfig", [*mask, *RELEARN, *run_dir("relearn")]),
            ("evaluate", "EvaluateConfig", [*mask, *run_dir("evaluate")]),
            ("attribute", "AttributeConfig", [*TASK, *at_sizes, *run_dir("attribute")]),
        ],
    )
    assert output.count("run: ") == 4
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, two: Path) -> Path:
    """A mask run on one process, with the same batches, and its relearning."""
    folder = tmp_path_factory.mktemp("one")
    own = ["--device", "cpu", "--run_dir"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUITCUT_CACHE", str(folder / "cache"))
        flags = [*TASK, *MASK, "--batch_size", "32", *own, str(folder / "train_mask")]
        train_mask.main(parse_config(train_mask.TrainMaskConfig, flags))
        # the cut of two processes, since its values depend on the last bits
        patch.setenv("CIRCUITCUT_CACHE", str(two / "cache"))
        mask = str(two / "train_mask" / "named")
        flags = ["--mask", mask, *RELEARN, *own, str(folder / "relearn")]
        relearn.main(parse_config(relearn.RelearnConfig, flags))
    return folder


@pytest.mark.parametrize("verb", ["train_mask", "relearn", "evaluate", "attribute"])
def test_one_folder_is_made_and_finished(verb: str, two: Path):
    run = _only_run(two / verb)
    assert run.is_finished
    assert run.environment["processes"] == 2
    entries = [json.dumps(entry) for entry in run.metrics()]
    assert len(set(entries)) == len(entries)
    writers = {path.name.split(".")[-2] for path in run.path.glob("events.*")}
    assert len(writers) == (verb in ("train_mask", "relearn"))  # ids of processes


def test_two_processes_train_the_base_model_of_one(one: Path, two: Path):
    states = []
    for parent in (one, two):
        folder = _only_run(parent / "train_mask").results["base"]["folder"]
        assert Path(folder).parents[1] == parent / "cache"
        assert read_json(Path(folder) / "base.json")["recipe"]["batch_size"] == 64
        loaded = load_model(folder, head="image_classification", labels=None)
        states.append(loaded.model.state_dict())
    torch.testing.assert_close(states[0], states[1])


def test_two_half_batches_train_the_mask_of_one_batch(one: Path, two: Path):
    runs = [_only_run(parent / "train_mask") for parent in (one, two)]
    assert [entry["step"] for entry in runs[1].metrics()] == list(range(20))
    masks = [read_tensors(run.path / "mask.safetensors") for run in runs]
    assert masks[0].keys() == masks[1].keys()
    for name in masks[0]:
        assert torch.equal(masks[0][name], masks[1][name]), name
    rankings = [read_tensors(run.path / "ranking.safetensors") for run in runs]
    torch.testing.assert_close(rankings[0], rankings[1], rtol=1e-3, atol=1e-3)


def test_two_processes_go_on_with_one_run(two: Path):
    """The lock is that of the run: its processes do not refuse each other."""
    whole = two / "train_mask" / "named"
    run = shutil.copytree(whole, two / "resumed")
    for name in ("results.json", "mask.json", "mask.safetensors"):
        (run / name).unlink()
    _launch(two, [("train_mask", "TrainMaskConfig", ["--resume", str(run)])])
    for name in ("mask.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_json(run / "results.json")["scores"]["cut"]


def test_relearning_on_two_processes_measures_what_one_measures(one: Path, two: Path):
    rows = [_only_run(parent / "relearn").results["rows"] for parent in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 2 * 3 * 3
    for first, second in zip(*rows, strict=True):
        assert first["scores"] == pytest.approx(second["scores"], rel=1e-3)
        for key in ("condition", "limit", "step", "examples"):
            assert first[key] == second[key]


@pytest.mark.skipif(torch.cuda.is_available(), reason="accelerate connects GPUs itself")
def test_processes_that_accelerate_does_not_connect_are_refused(tmp_path: Path):
    """They would train alone, each on the same batches, and write one after another."""
    flags = [*TASK, *MASK, "--run_dir", str(tmp_path / "runs")]
    job = ("train_mask", "TrainMaskConfig", flags)
    done = _launched(tmp_path, [job], {})
    assert done.returncode != 0
    assert "2 processes were started, but accelerate connects 1" in done.stderr
    assert not (tmp_path / "runs").exists()
