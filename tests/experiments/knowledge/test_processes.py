"""Shares in local processes: each one begins once, and goes on where it was stopped."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.experiments.knowledge.processes import (
    environment,
    of_joined,
    of_share,
    runs_of_shares,
)
from circuitcut.storage.errors import UserError
from circuitcut.storage.processes import PARENT

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, os, sys
from pathlib import Path

words, parent = sys.argv[2:], Path(sys.argv[1])
flags = dict(zip(words[::2], words[1::2]))
if "--resume" in flags:
    run = Path(flags["--resume"])
else:
    run = parent / flags["--name"]
    run.mkdir()
    (run / "config.json").write_text(Path(flags["--config"]).read_text())
    (run / "environment.json").write_text("{}")
with (run / "log").open("a") as log:
    log.write(" ".join(sorted(flags)) + " " + os.environ["OMP_NUM_THREADS"] + "\\n")
share = json.loads((run / "config.json").read_text())["share"]
if share == "2/3" and "--resume" not in flags:
    sys.exit(2)
(run / "results.json").write_text("{}")
"""
"""Stands for the script; the second of three shares fails at its first start."""


@dataclass(frozen=True)
class Config(KnowledgeFlags):
    """With the flags that the script adds."""

    name: Path | None = None


def sweep(parent: Path, n: int, n_steps: int = 7) -> list[Path]:
    config = Config(
        run_dir=parent, processes=n, n_steps=n_steps, to_mask="facts", n_ablated=3
    )
    script = [sys.executable, "-c", SCRIPT, str(parent)]
    return runs_of_shares(config, Path("sweep"), script)


def test_the_same_command_goes_on_with_what_has_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(UserError, match=r"1 of 3 shares have not finished .*2-of-3"):
        sweep(tmp_path, 3)
    runs = sweep(tmp_path, 3)
    assert [run.name for run in runs] == [f"sweep-{i}-of-3" for i in (1, 2, 3)]
    begun = "--config --name 1\n"
    assert [(run / "log").read_text() for run in runs] == [
        begun,
        f"{begun}--resume --run_dir 1\n",
        begun,
    ]
    saved = [json.loads((run / "config.json").read_text()) for run in runs]
    assert [flags["share"] for flags in saved] == ["1/3", "2/3", "3/3"]
    assert {flags["to_mask"] for flags in saved} == {"none"}
    with pytest.raises(UserError, match=r"n_steps \(7 before, 8 now\)"):
        sweep(tmp_path, 3, n_steps=8)


def test_a_share_has_no_products_and_the_joined_run_all_of_its_own_flags():
    config = Config(processes=4, n_steps=7, to_mask="facts", n_ablated=3)
    share = of_share(config, 2)
    assert (share.share, share.processes, share.n_steps) == ("2/4", 1, 7)
    assert (share.to_mask, share.n_ablated) == ("none", None)
    joined = of_joined(config, [Path("a"), Path("b")])
    assert (joined.processes, joined.join) == (1, [Path("a"), Path("b")])
    assert (joined.to_mask, joined.n_ablated) == ("facts", 3)
    assert joined.n_steps == Config().n_steps  # with_flags_of_shares takes theirs


def test_processes_share_the_processors_unless_threads_are_given(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert environment(3, {"A": "b"}) == {"A": "b", "OMP_NUM_THREADS": "2"}
    assert environment(16, {}) == {"OMP_NUM_THREADS": "1"}
    assert environment(3, {"OMP_NUM_THREADS": "5"}) == {"OMP_NUM_THREADS": "5"}


def test_processes_make_the_shares_themselves():
    with pytest.raises(UserError, match="leave --share and --join out"):
        Config(processes=2, share="1/2")
    with pytest.raises(UserError, match="--processes must be a whole number from 1"):
        Config(processes=0)


def test_a_share_ends_with_a_killed_parent():
    child = "from circuitcut.storage.processes import end_with_parent as e\n"
    child += "import time; e(); print('up', flush=True); time.sleep(300)"
    parent = (
        "import os, subprocess, sys\n"
        f"os.environ[{PARENT!r}] = str(os.getpid())\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "child.wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    # the child holds the pipe open as well: that it is at its end says it has ended
    assert process.stdout.read() == ""
    process.stdout.close()
