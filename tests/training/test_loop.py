"""The loop: closed forms, torch's optimisers as oracle, and what it refuses."""

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from circuitcut.storage.checkpoints import latest_step
from circuitcut.storage.errors import UserError
from circuitcut.training.fit_arguments import Ascent, Checkpoints, Watch
from circuitcut.training.loop import FitSettings, fit, mixed_seed

Numbers = dict[str, float]
ORACLES = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(
        p, lr=0.1, weight_decay=0.01, betas=(0.9, 0.98), fused=True
    ),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01, momentum=0.9),
}


def _parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def _halved_square(x: Tensor):
    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, Numbers]:
        return x.square().sum() / 2, {}

    return step_loss


@settings(deadline=None, max_examples=10)
@given(lr=st.floats(0.01, 1.5), n_steps=st.integers(0, 20))
def test_descending_a_parabola_is_a_geometric_series(lr: float, n_steps: int):
    x = _parameter(1.0, -2.0)
    fit({"x": x}, _halved_square(x), FitSettings(n_steps, lr, "sgd"))
    expected = torch.tensor([1.0, -2.0], dtype=torch.float64) * (1 - lr) ** n_steps
    torch.testing.assert_close(x.detach(), expected)


def test_a_multiplier_ascends_its_constraint():
    x, multiplier = _parameter(0.0), _parameter(0.0)

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, Numbers]:
        return 0 * x.sum() + 3.0 * multiplier.sum(), {}

    chosen = FitSettings(4, 0.1, "sgd", weight_decay=0.5)
    fit({"x": x}, step_loss, chosen, ascent=Ascent({"multiplier": multiplier}, 0.5))
    assert (x.item(), multiplier.item()) == (0.0, 4 * 0.5 * 3.0)


def test_a_lagrangian_holds_its_constraint():
    """Minimise (x - 3)^2 / 2 under x = 1: the multiplier goes to 2."""
    x, multiplier = _parameter(3.0), _parameter(0.0)

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, Numbers]:
        gap = x - 1
        value = (x - 3) ** 2 / 2 + multiplier * gap + 2 * gap**2
        return value.sum(), {}

    chosen = FitSettings(200, 0.1, "sgd", schedule="linear")
    fit({"x": x}, step_loss, chosen, ascent=Ascent({"multiplier": multiplier}, 0.3))
    assert x.item() == pytest.approx(1.0, abs=1e-2)
    assert multiplier.item() == pytest.approx(2.0, abs=2e-2)


def test_the_schedule_scales_every_step():
    x = _parameter(0.0)
    rates = []
    chosen = FitSettings(10, 2.0, "sgd", schedule="late", warmup=2)
    fit(
        {"x": x},
        lambda step, rng: (x.sum(), {}),
        chosen,
        watch=Watch(on_log=lambda step, numbers: rates.append(numbers["lr"])),
    )
    assert rates[0] == 1.0
    assert max(rates) == 2.0
    assert rates[-1] < 1.0
    assert x.item() == pytest.approx(-sum(rates))


@pytest.mark.parametrize("norm", [0.5, 10.0])
def test_a_gradient_is_clipped_to_its_largest_norm(norm: float):
    x, y = _parameter(0.0), _parameter(0.0)
    seen = []
    fit(
        {"x": x, "y": y},
        lambda step, rng: ((3 * x + 4 * y).sum(), {}),
        FitSettings(1, 1.0, "sgd", clip_norm=norm),
        watch=Watch(on_log=lambda step, numbers: seen.append(numbers["grad_norm"])),
    )
    assert seen == [5.0]  # before clipping
    scale = min(1.0, norm / 5)
    assert (x.item(), y.item()) == pytest.approx((-3 * scale, -4 * scale))


@pytest.mark.parametrize("optimiser", ORACLES)
def test_the_steps_are_those_of_torch_bit_for_bit(optimiser):
    rng = torch.Generator().manual_seed(0)
    targets = torch.randn(30, 4, generator=rng)
    ours, theirs = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def loss(x: Tensor, step: int) -> Tensor:
        return (x - targets[step]).square().sum()

    decay = {"weight_decay": 0.01, "momentum": 0.9 if optimiser == "sgd" else 0.0}
    decay["beta2"] = 0.98 if optimiser == "adamw" else 0.999
    chosen = FitSettings(30, 0.1, optimiser, **decay)
    fit({"x": ours}, lambda step, rng: (loss(ours, step), {}), chosen)
    oracle = ORACLES[optimiser]([theirs])
    for step in range(30):
        oracle.zero_grad()
        loss(theirs, step).backward()
        oracle.step()
    assert torch.equal(ours, theirs)


def _drawn(n_steps: int, seed: int) -> list[tuple[float, float]]:
    x, drawn = _parameter(0.0), []

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, Numbers]:
        drawn.append((torch.rand((), generator=rng).item(), torch.rand(()).item()))
        return x.sum(), {}

    fit({"x": x}, step_loss, FitSettings(n_steps, 0.1, seed=seed))
    return drawn


def test_noise_is_a_function_of_seed_and_step():
    once = _drawn(6, seed=1)
    assert _drawn(6, seed=1) == once
    assert _drawn(3, seed=1) == once[:3]
    assert len({*once, *_drawn(6, seed=2)}) == 12


def test_the_global_generator_is_left_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _drawn(2, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_seeds_of_steps_are_fixed_for_ever():
    assert mixed_seed(0, 0) == 3106513572421338672
    seeds = {mixed_seed(seed, step) for seed in range(30) for step in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_callbacks_see_every_step_after_it_was_taken():
    x, seen = _parameter(1.0), []
    chosen = FitSettings(3, 0.5, "sgd")
    fit(
        {"x": x},
        lambda step, rng: (x.square().sum() / 2, {"own": float(step)}),
        chosen,
        watch=Watch(
            after_step=lambda step: seen.append(("after", step, x.item())),
            on_log=lambda step, numbers: seen.append(("log", step, numbers)),
        ),
    )
    assert [entry[:2] for entry in seen] == [
        (name, step) for step in range(3) for name in ("after", "log")
    ]
    assert [value for name, _, value in seen if name == "after"] == [0.5, 0.25, 0.125]
    assert seen[1][2] == {"own": 0.0, "loss": 0.5, "grad_norm": 1.0, "lr": 0.5}


def test_a_projection_after_the_step_holds():
    x = _parameter(1.0)

    def clamp(step: int) -> None:
        with torch.no_grad():
            x.clamp_(0.0, 1.0)

    watch = Watch(after_step=clamp)
    fit({"x": x}, lambda s, r: (x.sum(), {}), FitSettings(5, 0.7), watch=watch)
    assert x.item() == 0.0


def _nan_loss(x: Tensor, y: Tensor) -> Tensor:
    return x.sum() * float("nan")


def _infinite_gradient(x: Tensor, y: Tensor) -> Tensor:
    return (x - x.detach()).sqrt().sum()


def _infinite_gradient_of_the_multiplier(x: Tensor, y: Tensor) -> Tensor:
    return x.sum() + (y - y.detach()).sqrt().sum()


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (_nan_loss, "loss"),
        (_infinite_gradient, "gradient"),
        (_infinite_gradient_of_the_multiplier, "gradient"),
    ],
)
def test_what_is_not_finite_stops_the_run_before_the_optimiser(
    bad, what: str, tmp_path: Path
):
    x, y = _parameter(1.0), _parameter(1.0)
    before = []

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, Numbers]:
        before[:] = [x.item(), y.item()]
        return (bad(x, y) if step == 5 else (x * y).sum()), {}

    with pytest.raises(
        UserError, match=rf"the {what} is not finite at step 5"
    ) as caught:
        fit(
            {"x": x},
            step_loss,
            FitSettings(9, 0.1, checkpoint_every=2),
            ascent=Ascent({"y": y}, 0.1),
            checkpoints=Checkpoints(tmp_path),
        )
    assert "the last checkpoint is that of 4 steps" in str(caught.value)
    assert [x.item(), y.item()] == before
    assert latest_step(tmp_path) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_steps": -1}, "n_steps must be >= 0, got -1"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": float("inf")}, "lr must be positive and finite, got inf"),
        ({"lr": float("nan")}, "lr must be positive and finite, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"beta2": 1.0}, r"beta2 must lie in \[0, 1\), got 1.0"),
        ({"warmup": 10}, r"warmup must lie in 0\.\.9"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, message: str):
    with pytest.raises(UserError, match=message):
        FitSettings(**{"n_steps": 10, "lr": 0.1} | wrong)


def test_wrong_arguments_are_refused_before_any_step():
    x, chosen = _parameter(1.0), FitSettings(1, 0.1)
    with pytest.raises(UserError, match="nothing to train"):
        fit({}, _halved_square(x), chosen)
    assert x.item() == 1.0


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_an_ascent_needs_a_learning_rate_where_it_has_parameters(lr: float):
    Ascent({}, lr)
    with pytest.raises(UserError, match=f"must be positive and finite, got {lr}"):
        Ascent({"y": _parameter(0.0)}, lr)


def test_an_ascent_of_no_parameters_is_no_ascent():
    one, other = _parameter(1.0), _parameter(1.0)
    fit({"x": one}, _halved_square(one), FitSettings(3, 0.1), ascent=Ascent({}, 0.5))
    fit({"x": other}, _halved_square(other), FitSettings(3, 0.1))
    assert torch.equal(one, other)


def test_log_lines_replace_the_bar_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
):
    x, watch = _parameter(1.0), Watch(progress="mask")
    with caplog.at_level(logging.INFO):
        fit({"x": x}, _halved_square(x), FitSettings(200, 0.1), watch=watch)
        lines = [record.getMessage() for record in caplog.records]
        fit({"x": x}, _halved_square(x), FitSettings(40, 0.1))
    assert len(caplog.records) == len(lines) == 1  # a short loop
    assert lines[-1].startswith("mask: step 200/200, loss ")
    assert capfd.readouterr().err == ""


class Terminal(io.StringIO):
    """What a bar is shown on."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_no_log_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    x, terminal, watch = _parameter(1.0), Terminal(), Watch(progress="mask")
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO):
        fit({"x": x}, _halved_square(x), FitSettings(40, 0.1), watch=watch)
    assert "mask: 100%" in terminal.getvalue()
    assert "40/40" in terminal.getvalue()
    assert not caplog.records


@pytest.fixture
def bf16() -> Iterator[Accelerator]:
    """Accelerate keeps one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bf16_is_the_model_s_arithmetic_and_gates_stay_float32(bf16: Accelerator):
    layer, gate = nn.Linear(4, 4), nn.Parameter(torch.ones(4))
    dtypes = []

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, Numbers]:
        hidden = layer(gate * torch.ones(2, 4))
        dtypes.append(hidden.dtype)
        return hidden.float().square().mean(), {}

    layer.requires_grad_(False)
    fit({"gate": gate}, step_loss, FitSettings(3, 0.1), accelerator=bf16)
    assert dtypes == [torch.bfloat16] * 3
    assert gate.dtype == torch.float32
    assert not torch.equal(gate, torch.ones(4))
