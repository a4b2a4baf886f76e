"""2N steps, and N steps, a stop, N more: the same bits."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitcut.storage.checkpoints import latest_step, load_latest
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.storage.stopping import Stopped
from circuitcut.training.fit_arguments import Ascent, Checkpoints, Watch
from circuitcut.training.fit_state import saved_steps
from circuitcut.training.loop import FitSettings, fit

N_STEPS = 12
SETTINGS = {
    "adam": FitSettings(N_STEPS, 0.1, "adam", weight_decay=0.01, schedule="late"),
    "adamw": FitSettings(N_STEPS, 0.1, "adamw", weight_decay=0.1, schedule="cosine"),
    "sgd": FitSettings(N_STEPS, 0.1, "sgd", momentum=0.9, schedule="linear", warmup=3),
    "clipped": FitSettings(N_STEPS, 0.1, "adam", clip_norm=0.5),
}


class Problem:
    """A small network with dropout, gates with noise, a multiplier and an average.

    One epoch has 5 batches, so that runs stop in the middle of one.
    """

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(3)
        self.data = torch.randn(5, 6, 4, generator=rng)
        self.layer = nn.Linear(4, 3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(3, 4, generator=rng))
            self.layer.bias.zero_()
        self.gates = nn.Parameter(torch.zeros(4))
        self.multiplier = nn.Parameter(torch.zeros(()))
        self.average = torch.zeros(4)
        self.n_seen = torch.zeros((), dtype=torch.long)
        self.logged: list[tuple[int, float]] = []
        self.stop_at: int | None = None
        self.stop_with = signal.SIGINT

    def step_loss(
        self, step: int, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        if step == self.stop_at:
            os.kill(os.getpid(), self.stop_with)
        noise = torch.rand(4, generator=rng)
        batch = self.data[step % 5] * torch.sigmoid(self.gates + noise)
        hidden = nn.functional.dropout(self.layer(batch), 0.5)
        size = torch.sigmoid(self.gates).sum()
        loss = (hidden - 1).square().mean() + self.multiplier * (size - 1)
        return loss, {"size": size.item()}

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            self.average.lerp_(self.gates, 0.3)
            self.n_seen.add_(6)

    def fit(
        self, settings: FitSettings, folder: Path | None, *, resume: bool = False
    ) -> None:
        self.fit_with(Checkpoints(folder, resume), settings)

    def fit_with(
        self, checkpoints: Checkpoints, settings: FitSettings = SETTINGS["adam"]
    ) -> None:
        fit(
            {**dict(self.layer.named_parameters()), "gates": self.gates},
            self.step_loss,
            settings,
            ascent=Ascent({"multiplier": self.multiplier}, 0.05),
            buffers={"average": self.average, "n_seen": self.n_seen},
            watch=Watch(
                self.after_step,
                lambda step, numbers: self.logged.append((step, numbers["loss"])),
            ),
            checkpoints=checkpoints,
        )

    def bits(self) -> list[Tensor]:
        tensors = [*self.layer.parameters(), self.gates, self.multiplier]
        return [*(t.detach() for t in tensors), self.average, self.n_seen]


def _same(one: Problem, other: Problem) -> bool:
    return all(map(torch.equal, one.bits(), other.bits()))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("every", [0, 5])
@pytest.mark.parametrize("stop_at", [0, 6, 11])
def test_an_interrupted_run_continues_to_the_same_bits(
    name: str, every: int, stop_at: int, tmp_path: Path
):
    settings = replace(SETTINGS[name], checkpoint_every=every)
    whole, first, second = Problem(), Problem(), Problem()
    whole.fit(settings, None)
    first.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt, match=f"{stop_at + 1} steps are saved"):
        first.fit(settings, tmp_path)
    assert not _same(first, whole) or stop_at == N_STEPS - 1
    second.fit(settings, tmp_path, resume=True)
    assert _same(second, whole)
    assert first.logged + second.logged == whole.logged


@pytest.mark.parametrize("every", [1, 4])
def test_a_crash_continues_from_the_last_checkpoint_to_the_same_bits(
    every: int, tmp_path: Path
):
    settings = replace(SETTINGS["adam"], checkpoint_every=every)
    whole, first, second = Problem(), Problem(), Problem()
    whole.fit(settings, None)
    step_loss = first.step_loss

    def crash(step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if step == 7:
            raise RuntimeError("power cut")
        return step_loss(step, rng)

    first.step_loss = crash  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="power cut"):
        first.fit(settings, tmp_path)
    assert latest_step(tmp_path) == 7 // every * every
    second.fit(settings, tmp_path, resume=True)
    assert _same(second, whole)
    assert second.logged == whole.logged[7 // every * every :]


def _stop_after_8_steps(settings: FitSettings, folder: Path) -> None:
    stopped = Problem()
    stopped.stop_at = 7
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(settings, folder)


def test_a_damaged_checkpoint_costs_steps_and_not_bits(tmp_path: Path, caplog):
    settings = replace(SETTINGS["sgd"], checkpoint_every=3)
    whole, second = Problem(), Problem()
    whole.fit(settings, None)
    _stop_after_8_steps(settings, tmp_path)
    assert latest_step(tmp_path) == 8
    damaged = tmp_path / "step-00000008" / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        second.fit(settings, tmp_path, resume=True)
    assert "step-00000008 is damaged" in caplog.text
    assert second.logged[0][0] == 6
    assert _same(second, whole)


def test_a_checkpoint_without_moments_is_passed_over(tmp_path: Path, caplog):
    """One as older versions wrote it: nothing else tells that it was changed."""
    settings = replace(SETTINGS["adam"], checkpoint_every=3)
    whole, second = Problem(), Problem()
    whole.fit(settings, None)
    _stop_after_8_steps(settings, tmp_path)
    file = tmp_path / "step-00000008" / "state.json"
    content = json.loads(file.read_text())
    content["state"]["optimiser"] = {}
    del content["state_sha256"]
    file.write_text(json.dumps(content))
    assert saved_steps(tmp_path) == 6
    second.fit(settings, tmp_path, resume=True)
    assert "has no moments after 8 steps" in caplog.text
    assert _same(second, whole)


def test_a_checkpoint_names_what_it_was_made_with(tmp_path: Path):
    made_with = {"settings": {"base_seed": 0}, "data_sha256": "a" * 64}

    def run(**changes: Any) -> None:
        checkpoints = Checkpoints(tmp_path, True, made_with | changes)
        Problem().fit_with(checkpoints)

    run()
    assert (load_latest(tmp_path) or (0, {}))[1]["provenance"] == made_with
    run(code_version="2", weights_sha256="b" * 64)
    with pytest.raises(UserError, match=r"base_seed \(0 before, 1 now\)"):
        run(settings={"base_seed": 1})
    with pytest.raises(UserError, match=r"the data \(SHA-256 aaaa"):
        run(data_sha256="c" * 64)


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path: Path):
    Problem().fit(SETTINGS["adam"], tmp_path)
    with pytest.raises(UserError, match="is that of 12 steps, got n_steps 5"):
        Problem().fit(replace(SETTINGS["adam"], n_steps=5), tmp_path, resume=True)


def test_resuming_without_a_checkpoint_starts_and_after_the_end_does_nothing(
    tmp_path: Path,
):
    one, other = Problem(), Problem()
    one.fit(SETTINGS["adam"], tmp_path, resume=True)
    assert len(one.logged) == N_STEPS
    other.fit(SETTINGS["adam"], tmp_path, resume=True)
    assert other.logged == []
    assert _same(one, other)


def test_sigterm_stops_like_an_interrupt_and_handlers_are_put_back(tmp_path: Path):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    problem = Problem()
    problem.stop_at, problem.stop_with = 2, signal.SIGTERM
    run = RunDirectory.create(
        tmp_path, kind="train_mask", task="t", model="m", config={}
    )
    with pytest.raises(Stopped) as caught, run.locked():
        problem.fit(SETTINGS["adam"], run.checkpoint_path / "cut")
    assert caught.value.number == signal.SIGTERM
    assert caught.value.said == "3 steps are saved"
    again = command("train_mask", {"resume": run.path})
    assert caught.value.hint == f"continue with {again}"
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_second_signal_stops_at_once_and_saves_nothing_half_done(tmp_path: Path):
    problem = Problem()

    def impatient(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    problem.after_step = impatient  # type: ignore[method-assign]
    settings = replace(SETTINGS["adam"], checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        problem.fit(settings, tmp_path)
    assert latest_step(tmp_path) == 2


def test_a_loop_outside_the_main_thread_runs(tmp_path: Path):
    problem = Problem()
    thread = threading.Thread(target=problem.fit, args=(SETTINGS["adam"], tmp_path))
    thread.start()
    thread.join()
    assert latest_step(tmp_path) == N_STEPS


def test_a_run_may_be_extended_but_not_changed(tmp_path: Path):
    settings = FitSettings(6, 0.1)
    Problem().fit(settings, tmp_path)
    whole, longer = Problem(), Problem()
    whole.fit(replace(settings, n_steps=N_STEPS), None)
    longer.fit(replace(settings, n_steps=N_STEPS), tmp_path, resume=True)
    assert _same(longer, whole)
    with pytest.raises(UserError, match=r"was written with lr 0.1, got 0.2"):
        Problem().fit(replace(settings, lr=0.2), tmp_path, resume=True)
    with pytest.raises(UserError, match=r"was written with seed 0, got 1"):
        Problem().fit(replace(settings, seed=1), tmp_path, resume=True)


def test_a_checkpoint_is_not_overwritten_by_a_new_run(tmp_path: Path):
    Problem().fit(SETTINGS["adam"], tmp_path)
    with pytest.raises(
        UserError, match="holds a checkpoint; continue it with --resume"
    ):
        Problem().fit(SETTINGS["adam"], tmp_path)


def test_a_checkpoint_for_other_tensors_is_refused(tmp_path: Path):
    def run(names: list[str], size: int, dtype: torch.dtype) -> list[nn.Parameter]:
        parameters = {
            name: nn.Parameter(torch.ones(size, dtype=dtype)) for name in names
        }
        fit(
            parameters,
            lambda step, rng: (sum(p.sum() for p in parameters.values()), {}),
            FitSettings(1, 0.1),
            checkpoints=Checkpoints(tmp_path, resume=True),
        )
        return list(parameters.values())

    run(["gates"], 3, torch.float32)
    with pytest.raises(
        UserError, match=r"other parameters: 'scores' is only on one side"
    ):
        run(["gates", "scores"], 3, torch.float32)
    with pytest.raises(UserError, match=r"'gates' of shape \(3,\).*got \(4,\)"):
        run(["gates"], 4, torch.float32)
    with pytest.raises(UserError, match=r"\(torch.float32\), got .*float64"):
        run(["gates"], 3, torch.float64)
    gates = run(["gates"], 3, torch.float32)[0]
    torch.testing.assert_close(gates.detach(), torch.full((3,), 0.9))


def test_a_checkpoint_holds_all_that_a_step_changes(tmp_path: Path):
    Problem().fit(SETTINGS["adam"], tmp_path)
    step, state = load_latest(tmp_path) or (None, {})
    assert step == N_STEPS
    assert set(state["parameters"]) == {"weight", "bias", "gates"}
    assert set(state["maximised"]) == {"multiplier"}
    assert set(state["buffers"]) == {"average", "n_seen"}
    assert set(state["optimiser"]) == {"0", "1", "2", "3"}
    assert set(state["optimiser"]["0"]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.slow
def test_a_process_killed_hard_resumes_to_the_same_bits(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            from pathlib import Path
            from tests.training.test_resume import SETTINGS, Problem
            from dataclasses import replace

            problem, step_loss = Problem(), Problem.step_loss
            settings = replace(SETTINGS["adam"], checkpoint_every=4)

            def killed(step, rng):
                if step == 9:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step_loss(problem, step, rng)

            problem.step_loss = killed
            problem.fit(settings, Path(sys.argv[1]))
            """
        )
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    checkpoints = tmp_path / "checkpoints"
    command = [sys.executable, str(program), str(checkpoints)]
    done = subprocess.run(command, env=environment, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert latest_step(checkpoints) == 8
    whole, second = Problem(), Problem()
    settings = replace(SETTINGS["adam"], checkpoint_every=4)
    whole.fit(settings, None)
    second.fit(settings, checkpoints, resume=True)
    assert _same(second, whole)
