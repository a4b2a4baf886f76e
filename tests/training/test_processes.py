"""Two processes: gradients are averaged, and both end with the same parameters."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from circuitcut.storage.checkpoints import load_latest
from circuitcut.training.loop import FitSettings, fit

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, signal, sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from circuitcut.training.config import leave_process_group
from circuitcut.training.fit_arguments import Checkpoints, Watch
from circuitcut.training.loop import FitSettings, fit

folder, stop_at = Path(sys.argv[1]), int(sys.argv[2])
accelerator = Accelerator(cpu=True)
rank, n = accelerator.process_index, accelerator.num_processes
x = nn.Parameter(torch.full((3,), 1.0 + rank))  # the first process's start counts
unused = nn.Parameter(torch.ones(1))
data = torch.arange(60.0).reshape(20, 3) / 10
shared, own, logged = [], [], []

def step_loss(step, rng):
    if rank == 1 and step == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
    shared.append(torch.rand((), generator=rng).item())
    own.append(torch.rand(()).item())
    loss = (x - data[step * n + rank]).square().sum()
    return (loss + unused.sum() if rank == 0 else loss), {}

try:
    fit({"x": x, "unused": unused}, step_loss, FitSettings(8, 0.1),
        accelerator=accelerator,
        checkpoints=Checkpoints(folder / "checkpoints", resume=True),
        watch=Watch(on_log=lambda step, numbers: logged.append(numbers["loss"])))
    stopped = False
except KeyboardInterrupt:
    stopped = True
record = {"x": x.tolist(), "shared": shared, "own": own, "n_processes": n,
          "logged": logged, "stopped": stopped}
(folder / f"process-{rank}.json").write_text(json.dumps(record))
leave_process_group()
"""


def _launch(folder: Path, stop_at: int = -1) -> list[dict]:
    program = folder / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2"
    command = [sys.executable, *launch.split(), str(program), str(folder), str(stop_at)]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = sorted(folder.glob("process-*.json"))
    return [json.loads(path.read_text()) for path in files]


def _both_batches_in_one_process() -> nn.Parameter:
    x, data = nn.Parameter(torch.ones(3)), torch.arange(60.0).reshape(20, 3) / 10

    def step_loss(step: int, rng: torch.Generator):
        pair = data[2 * step : 2 * step + 2]
        return (x - pair).square().sum() / 2, {}

    fit({"x": x}, step_loss, FitSettings(8, 0.1))
    return x


def test_gradients_are_averaged_and_processes_agree(tmp_path: Path):
    first, second = _launch(tmp_path)
    assert first["n_processes"] == second["n_processes"] == 2
    assert first["x"] == second["x"]
    one = _both_batches_in_one_process()
    torch.testing.assert_close(torch.tensor(first["x"]), one.detach())
    assert first["shared"] == second["shared"]  # gate noise
    assert not set(first["own"]) & set(second["own"])  # dropout
    assert len(first["logged"]) == 8
    assert second["logged"] == []
    step, state = load_latest(tmp_path / "checkpoints") or (None, {})
    assert step == 8
    assert state["parameters"]["x"].tolist() == first["x"]


def test_a_stop_of_one_process_stops_all_and_resumes(tmp_path: Path):
    first, second = _launch(tmp_path, stop_at=3)
    assert first["stopped"]
    assert second["stopped"]
    step, _ = load_latest(tmp_path / "checkpoints") or (None, {})
    assert step == 4
    again, _ = _launch(tmp_path)
    assert len(again["logged"]) == 4
    torch.testing.assert_close(
        torch.tensor(again["x"]), _both_batches_in_one_process().detach()
    )
