"""SIGTERM and Ctrl-C at any moment: one line with the command that goes on, no litter.

Exit status 143 and 130. The moments are functions that send the signal when called; the
last tests send it to real processes.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from circuitcut.experiments import base_model
from circuitcut.experiments.stages import seed_study
from circuitcut.relearning import protocol
from circuitcut.scripts import (
    attribute,
    evaluate,
    faithfulness,
    relearn,
    relearn_stages,
    train_mask,
)
from circuitcut.storage import atomic
from circuitcut.storage.progress import Waiting, shown
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.storage.stopping import Stopped
from circuitcut.training.config import parse_config, run_script
from circuitcut.training.interruption import stop_request, stopped_by_signals
from tests.scripts.conftest import FAST

ROOT = Path(__file__).resolve().parents[2]
MASK = ["--n_steps", "4", "--n_ablated", "150", "--n_random", "1"]
MASK += ["--attribution", "none"]
RELEARN = ["--n_steps", "4", "--limits", "4", "--seeds", "0", "--n_evaluations", "2"]
RELEARN += ["--device", "cpu", "--conditions", "cut", "uncut"]
STUDY = ["--model", "tiny-encoder", "--base_steps", "60", "--epochs", "0.1"]
STUDY += ["--base_recipe", "d_model=16", "vocab_size=300", "--n_stages", "1"]
STUDY += ["--shares", "0.5", "--seeds", "0", "--conditions", "cut", "--device", "cpu"]
STUDY += ["--compare", "none", "--holdings", "lasting"]
UNITS = ["--units", "weights", "--methods", "probeless", "--n_batches", "1"]
CONFIGS: dict[ModuleType, Any] = {
    train_mask: train_mask.TrainMaskConfig,
    relearn: relearn.RelearnConfig,
    relearn_stages: relearn_stages.RelearnStagesConfig,
    evaluate: evaluate.EvaluateConfig,
    attribute: attribute.AttributeConfig,
    faithfulness: faithfulness.FaithfulnessConfig,
}
MOMENTS = [
    (train_mask, train_mask, "ablation_values", 1),
    (train_mask, train_mask, "freeze", 1),
    (train_mask, train_mask, "save_frozen", 1),
    (train_mask, train_mask, "describe", 1),
    (relearn, relearn, "probe_conditions", 1),
    (relearn, protocol, "evaluate", 2),
    (relearn, relearn, "describe", 1),
    (relearn_stages, seed_study, "run_arm", 1),
]
"""Script, module and name of a function, and which of its calls sends the signal."""
CASES = [
    pytest.param(
        *moment,
        id=f"{moment[0].__name__.split('.')[-1]}-{moment[2]}",
        marks=[] if moment is MOMENTS[0] else pytest.mark.slow,
    )
    for moment in MOMENTS
]


@pytest.fixture(scope="module")
def mask(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished mask run."""
    parent = tmp_path_factory.mktemp("masks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUITCUT_CACHE", str(cache))
        flags = [*FAST, *MASK, "--run_dir", str(parent)]
        return train_mask.main(parse_config(train_mask.TrainMaskConfig, flags))


def flags_of(script: ModuleType, mask: Path) -> list[str]:
    return {
        train_mask: [*FAST, *MASK],
        relearn: ["--mask", str(mask), *RELEARN],
        relearn_stages: STUDY,
        evaluate: ["--mask", str(mask), "--device", "cpu"],
        attribute: [*FAST, *UNITS, "--sizes", "8"],
        faithfulness: [*FAST, *UNITS, "--n_random", "0"],
    }[script]


def at_call(number: int, target: Callable[..., Any], act: Callable[[], None]) -> Any:
    """`target`, which calls `act` before its call of this number."""
    n_calls = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == number:
            act()
        return target(*args, **kwargs)

    return called


def stopped(
    script: ModuleType,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str]:
    """Exit status and last line of a script that is stopped."""
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as caught:
        run_script(script.main, CONFIGS[script])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return int(str(caught.value.code)), text.strip().splitlines()[-1]


def litter(folder: Path) -> list[Path]:
    """Temporary files and locks."""
    return [p for p in folder.rglob("*") if p.name.startswith(".") or ".tmp" in p.name]


@pytest.mark.parametrize(("script", "module", "name", "call"), CASES)
def test_a_stopped_run_names_the_command_that_continues_it_and_that_ends_it(
    script: ModuleType,
    module: ModuleType,
    name: str,
    call: int,
    mask: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    number = signal.SIGTERM if call == 1 else signal.SIGINT
    flags = [*flags_of(script, mask), "--run_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        send = at_call(
            call, getattr(module, name), lambda: os.kill(os.getpid(), number)
        )
        patch.setattr(module, name, send)
        status, line = stopped(script, flags, patch, capsys)
    (run,) = tmp_path.iterdir()
    assert status == 128 + number
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    assert line.startswith(f"script: {word}: ")
    _, _, command = line.partition("continue with ")
    kind = RunDirectory.open(run).kind
    assert shlex.split(command)[-3:] == [f"scripts/{kind}.py", "--resume", str(run)]
    assert litter(tmp_path) == []
    assert litter(cache) == []
    ended = script.main(parse_config(CONFIGS[script], ["--resume", str(run)]))
    assert RunDirectory.open(ended).is_finished


@pytest.mark.parametrize("script", [evaluate, attribute, faithfulness])
def test_a_stopped_measurement_names_the_command_that_repeats_it(
    script: ModuleType,
    mask: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    name = "measured" if script is faithfulness else "score"
    send = at_call(1, getattr(script, name), lambda: os.kill(os.getpid(), 15))
    monkeypatch.setattr(script, name, send)
    flags = [*flags_of(script, mask), "--run_dir", str(tmp_path)]
    status, line = stopped(script, flags, monkeypatch, capsys)
    (run,) = tmp_path.iterdir()
    assert status == 143
    assert shlex.split(line)[-2:] == ["--config", str(run)]
    assert "terminated: repeat it with " in line
    assert litter(tmp_path) == []


@pytest.mark.parametrize("name", ["load", "plan", "with_base_model", "provenance_of"])
def test_before_a_run_there_is_nothing_to_continue(
    name: str,
    fast: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    send = at_call(1, getattr(train_mask, name), lambda: os.kill(os.getpid(), 15))
    monkeypatch.setattr(train_mask, name, send)
    status, line = stopped(train_mask, [*fast, *MASK], monkeypatch, capsys)
    assert (status, line) == (143, "script: terminated: the same command starts again")
    assert list((tmp_path / "runs").iterdir()) == []


class Closing:
    """Sends the signal when it is deleted, where Python drops every exception."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def lost_in_a_deletion() -> None:
    closing = Closing()
    del closing


def lost_in_a_callback() -> None:
    held = set[int]()
    watched = weakref.ref(held, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del held
    assert watched() is None


def lost_in_an_import() -> None:
    with suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)


LOST = [lost_in_a_deletion, lost_in_a_callback, lost_in_an_import]


@dataclass(frozen=True)
class NoFlags:
    """No flags."""


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("place", ["loop", "wait", "end"])
def test_a_signal_whose_exception_is_lost_stops_the_program_at_the_next_safe_point(
    lost: Callable[[], None],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    done: list[int] = []

    def main(config: NoFlags) -> None:
        lost()
        if place == "loop":
            done.extend(shown(range(1000), "a long loop"))
        elif place == "wait":
            with Waiting("a long wait"):
                done.append(0)

    main.__module__ = __name__
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as caught:
        run_script(main, NoFlags)
    assert caught.value.code == 143
    said = "the same command starts again"
    if place == "end":
        said = "all work was done before it took effect"
    assert capsys.readouterr().err == f"script: terminated: {said}\n"
    assert done == ([0] if place == "loop" else [])


def test_a_signal_is_forgotten_with_the_program_it_stopped():
    with pytest.raises(Stopped, match="before it took effect"), stopped_by_signals():
        lost_in_an_import()
    assert list(shown([1, 2], "a loop of another program")) == [1, 2]


WRITING = """
import io, logging, os, signal, sys
from circuitcut.training.interruption import leave_on_signals, stop_request

class Interrupted(io.RawIOBase):
    def writable(self):
        return True

    def write(self, data):
        os.write(2, data)
        signal.raise_signal(signal.SIGINT)
        return len(data)

sys.stderr = io.TextIOWrapper(io.BufferedWriter(Interrupted()), line_buffering=True)
logging.basicConfig(format="%(message)s", level=logging.INFO)
"""
LEAVING = "leave_on_signals('script')\nlogging.info('a line')\n"
LOOPING = """
with stop_request() as stop:
    logging.info('a line')
    os._exit(stop.number)
"""


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        (LEAVING, 130, "script: interrupted: the same command starts again"),
        (LOOPING, 2, "stopping after this step; a second signal stops at once"),
    ],
)
def test_a_signal_while_a_line_is_written_is_not_lost(how: str, status: int, said: str):
    command = [sys.executable, "-c", WRITING + how]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (status, f"a line\n{said}\n")


def test_a_signal_after_the_last_step_of_a_loop_is_not_lost():
    with pytest.raises(Stopped) as caught, stop_request():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM


@pytest.mark.slow
def test_a_base_model_that_is_stopped_while_it_is_saved_leaves_its_checkpoint_alone(
    fast: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    own = tmp_path / "cache"
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(own))
    flags = [*fast, *MASK, "--base_steps", "20"]
    with monkeypatch.context() as patch:
        send = at_call(1, base_model.digests_of, lambda: os.kill(os.getpid(), 2))
        patch.setattr(base_model, "digests_of", send)
        status, line = stopped(train_mask, flags, patch, capsys)
    assert (status, line) == (130, "script: interrupted: the same command starts again")
    assert litter(own) == []
    suffixes = {path.suffix for path in (own / "base").iterdir()}
    assert suffixes == {".lock", ".unfinished"}
    run = train_mask.main(parse_config(train_mask.TrainMaskConfig, flags))
    assert RunDirectory.open(run).is_finished
    assert not list((own / "base").glob("*.unfinished"))


@pytest.mark.slow
def test_a_file_that_is_being_written_is_whole_or_absent_after_a_signal(
    mask: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    flags = [*FAST, *MASK, "--run_dir", str(tmp_path)]
    for number in range(1, 16, 2):  # syncs before each rename, and after it
        with monkeypatch.context() as patch:
            send = at_call(number, atomic.sync, lambda: os.kill(os.getpid(), 15))
            patch.setattr(atomic, "sync", send)
            status, _ = stopped(train_mask, flags, patch, capsys)
        assert status == 143
        assert litter(tmp_path) == []
        for run in tmp_path.iterdir():
            for file in run.glob("*.json"):
                atomic.read_json(file)
            shutil.rmtree(run)


def started(flags: list[str], cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"CIRCUITCUT_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train_mask.py"), *flags],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=ROOT,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_torch_is_imported_ends_in_one_line(
    number: int, fast: list[str], cache: Path, tmp_path: Path
):
    with started(fast, cache) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading torch and transformers\n"
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 128 + number
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert said == f"train_mask.py: {word}: the same command starts again\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_ctrl_c_in_the_loop_of_a_real_process_names_the_command(
    fast: list[str], cache: Path, tmp_path: Path
):
    flags = [*fast, *MASK, "--n_steps", "100000", "--name", "mine"]
    with started(flags, cache) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("mask: step"):
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    run = tmp_path / "runs" / "mine"
    assert "steps are saved; continue with " in said.splitlines()[-1]
    assert said.strip().endswith(f"scripts/train_mask.py --resume {run}")
    assert litter(run) == []
