"""The protocol: what is held, what is measured when, and going on after a kill."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import circuitcut.relearning.finetune as finetune
import circuitcut.relearning.protocol as protocol
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loading import LoadedModel
from circuitcut.relearning.conditions import Condition, conditions
from circuitcut.relearning.protocol import (
    RelearnSettings,
    evaluation_steps,
    relearn,
    run_condition,
)
from circuitcut.relearning.records import ConditionRun
from circuitcut.relearning.study import Findings, Study
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Task

SETTINGS = RelearnSettings(
    n_steps=12, batch_size=6, lr=0.02, weight_decay=0.1, n_evaluations=3
)
CUT = Condition("cut", "lasting", 0)


def test_measured_steps_grow_geometrically_to_the_last():
    assert evaluation_steps(64, 4) == (0, 1, 4, 16, 64)
    assert evaluation_steps(60, 8)[0] == 0
    assert evaluation_steps(60, 8)[-1] == 60
    assert evaluation_steps(5, 8) == (0, 1, 2, 3, 4, 5)
    assert evaluation_steps(1, 1) == (0, 1)
    assert evaluation_steps(30, 1) == (0, 30)


@pytest.mark.parametrize("n_steps", [1, 2, 7, 90])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_no_more_moments_than_asked_for(n_steps: int, n: int):
    steps = evaluation_steps(n_steps, n)
    assert len(steps) <= n + 1
    assert steps == tuple(sorted(set(steps)))


def _kept_model(models: dict[str, nn.Module]) -> Findings:
    def at_end(
        condition: Condition, model: nn.Module, mask: FrozenMask | None
    ) -> dict[str, Any]:
        models[condition.key] = model
        return {"held": mask is not None}

    return Findings(at_end)


def test_a_cut_comes_back_and_its_controls_stay(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    """Planted: four units carry the concept; cut, it goes, then comes back."""
    chosen = conditions(("cut", "uncut", "random"), ("lasting",), (0,), (None,))
    settings = replace(SETTINGS, batch_size=30, lr=0.1)
    runs = relearn(Study(task, loaded, mask, settings), chosen, tmp_path)
    curves = {
        run.condition.name: [m.scores["recall"] for m in run.measurements]
        for run in runs
    }
    assert curves["uncut"][0] > 0.9
    assert curves["cut"][0] < 0.2
    assert curves["cut"][-1] > 0.8
    assert all(run.finished for run in runs)
    assert [m.examples for m in runs[0].measurements] == [0, 30, 90, 360]
    assert {run.measurements[0].distance for run in runs} == {0.0}
    assert all(run.measurements[-1].distance > 0.1 for run in runs)


def test_equal_starts_are_measured_once_and_as_each_alone_would_be(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    measured: list[int] = []
    real = protocol.measured_at

    def spy(step: int, *args: Any) -> Any:
        measured.append(step)
        return real(step, *args)

    monkeypatch.setattr(protocol, "measured_at", spy)
    names, holdings = ("cut", "uncut", "random"), ("lasting", "one_shot")
    chosen = conditions(names, holdings, (0, 1), (2, None))
    study = Study(task, loaded, mask, replace(SETTINGS, n_steps=2, n_evaluations=1))
    runs = relearn(study, chosen, tmp_path / "all")
    # the cut and each of two random ones in two holdings, and the uncut model
    assert measured.count(0) == 2 + 4 + 1
    assert measured.count(2) == len(chosen) == 20
    for run in runs:
        alone = run_condition(study, run.condition, tmp_path / run.condition.key)
        assert run.measurements[0].row() == alone.measurements[0].row()


def test_without_its_examples_the_concept_stays_away_and_the_rest_is_learned(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    chosen = conditions(("cut", "retain_only"), ("lasting",), (0,), (None,))
    settings = replace(SETTINGS, batch_size=30, lr=0.1)
    cut, control = relearn(Study(task, loaded, mask, settings), chosen, tmp_path)
    first, *_, last = control.measurements
    assert first.scores == cut.measurements[0].scores
    assert last.scores["recall"] == 0 < 0.8 < cut.measurements[-1].scores["recall"]
    assert last.scores["retain_accuracy"] >= first.scores["retain_accuracy"]
    assert last.distance > 0.1


def test_a_model_that_never_learned_starts_from_its_own_weights(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    """Planted: a model whose concept class is never answered learns it as any."""
    ignorant = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        ignorant.model.output.weight[0] = 0
        ignorant.model.output.bias[0] = -5
    chosen = conditions(("uncut", "never_learned"), ("lasting",), (0,), (None,))
    with pytest.raises(UserError, match="needs a base model of its own"):
        relearn(Study(task, loaded, mask, SETTINGS), chosen, tmp_path / "refused")
    settings = replace(SETTINGS, batch_size=30, lr=0.2)
    study = Study(task, loaded, mask, settings, ignorant)
    uncut, never = relearn(study, chosen, tmp_path)
    assert uncut.measurements[0].scores["recall"] > 0.9
    assert never.measurements[0].scores["recall"] == 0
    assert never.measurements[0].distance == 0
    assert never.measurements[-1].scores["recall"] > 0.8


def test_a_lasting_cut_keeps_its_weights_through_the_real_loop(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    models: dict[str, nn.Module] = {}
    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    study = Study(task, loaded, mask, SETTINGS)
    run = run_condition(study, CUT, tmp_path, findings=_kept_model(models))
    weight = models[CUT.key].state_dict()["output.weight"]
    ablated = ~mask.keep[mask.sites[0].name]
    assert run.at_end == {"held": True}
    assert torch.equal(weight[:, ablated], before["output.weight"][:, ablated])
    assert (weight != before["output.weight"])[:, ~ablated].all()
    after = loaded.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_one_shot_cut_starts_at_the_same_scores_and_then_regrows(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    models: dict[str, nn.Module] = {}
    chosen = conditions(("cut",), ("lasting", "one_shot"), (0,), (None,))
    study = Study(task, loaded, mask, SETTINGS)
    lasting, one_shot = relearn(study, chosen, tmp_path, findings=_kept_model(models))
    assert one_shot.measurements[0].scores == lasting.measurements[0].scores
    assert one_shot.at_end == {"held": False}
    ablated = ~mask.keep[mask.sites[0].name]
    weight = models[chosen[1].key].state_dict()["output.weight"]
    assert (weight[:, ablated] != 0).any()


def test_special_positions_do_not_stop_a_one_shot_cut(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    spared = replace(mask, special_ids=(0,))
    condition = Condition("cut", "one_shot", 0)
    first, second = (
        run_condition(Study(task, loaded, m, SETTINGS), condition, tmp_path / name)
        for name, m in (("all", mask), ("spared", spared))
    )
    assert first.measurements[-1].scores == second.measurements[-1].scores


def test_only_the_named_part_trains(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    models: dict[str, nn.Module] = {}
    settings = replace(SETTINGS, trained="head")
    study = Study(task, loaded, mask, settings)
    run_condition(study, CUT, tmp_path, findings=_kept_model(models))
    before, after = loaded.model.state_dict(), models[CUT.key].state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"output.weight", "output.bias"}


def test_conditions_see_the_same_batches(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    asked: dict[str, list[tuple[Any, ...]]] = {}
    real = type(task).finetune_batch

    def spy(self: Task, split: str, step: int, **kwargs: Any) -> Any:
        asked.setdefault(current[0], []).append((split, step, *kwargs.items()))
        return real(self, split, step, **kwargs)

    monkeypatch.setattr(type(task), "finetune_batch", spy)
    current = [""]
    for name, holding in (("cut", "lasting"), ("uncut", None), ("random", "lasting")):
        current[0] = name
        condition = Condition(name, holding, 3, limit=4)
        run_condition(Study(task, loaded, mask, SETTINGS), condition, tmp_path / name)
    assert asked["cut"] == asked["uncut"] == asked["random"]
    assert asked["cut"][0] == ("relearn", 0, ("size", 6), ("seed", 3), ("limit", 4))


def test_examples_count_what_a_small_pool_really_gives(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    """Six asked for, but only one example holds the concept: one a step."""
    condition = Condition("cut", "lasting", 0, limit=1)
    run = run_condition(Study(task, loaded, mask, SETTINGS), condition, tmp_path)
    assert [m.examples for m in run.measurements] == [m.step for m in run.measurements]


def _rows(run: ConditionRun) -> list[dict[str, Any]]:
    return [measured.row() for measured in run.measurements]


class Killed(Exception):
    """Stands for a kill signal."""


@pytest.mark.parametrize("killed_at", [0, 7])
def test_a_killed_run_goes_on_to_the_same_bits(
    killed_at: int,
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    tmp_path: Path,
):
    study = Study(task, loaded, mask, replace(SETTINGS, checkpoint_every=2))
    models: dict[str, nn.Module] = {}
    keep = _kept_model(models)
    whole = run_condition(study, CUT, tmp_path / "whole", findings=keep)
    expected = models.pop(CUT.key).state_dict()

    def kill(condition: Condition, step: int, numbers: dict[str, float]) -> None:
        if step == killed_at:
            raise Killed

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        run_condition(study, CUT, folder, findings=Findings(on_log=kill))
    resumed = run_condition(study, CUT, folder, resume=True, findings=keep)
    weights = models[CUT.key].state_dict()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())
    assert _rows(resumed) == _rows(whole)
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(("end_is_slow", "saved"), [(False, [8, 10]), (True, [10, 12])])
def test_the_last_state_is_saved_where_what_follows_is_slow(
    end_is_slow: bool,
    saved: list[int],
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    tmp_path: Path,
):
    """A checkpoint of a large model takes seconds and is deleted at the end."""

    def kill(*_: Any) -> dict[str, Any]:
        raise Killed

    study = Study(task, loaded, mask, replace(SETTINGS, checkpoint_every=2))
    findings = Findings(at_end=kill, end_is_slow=end_is_slow)
    with pytest.raises(Killed):
        run_condition(study, CUT, tmp_path / "killed", findings=findings)
    kept = sorted((tmp_path / "killed" / "checkpoints").iterdir())
    assert [int(path.name.removeprefix("step-")) for path in kept] == saved
    models: dict[str, nn.Module] = {}
    whole = run_condition(study, CUT, tmp_path / "whole")
    resumed = run_condition(
        study, CUT, tmp_path / "killed", resume=True, findings=_kept_model(models)
    )
    assert _rows(resumed) == _rows(whole)


def test_finished_conditions_are_read_not_run_again(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    chosen = conditions(("cut", "uncut"), ("lasting",), (0,), (4,))
    study = Study(task, loaded, mask, SETTINGS)
    first = relearn(study, chosen, tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished condition was run again")

    monkeypatch.setattr(finetune, "fit", refuse)
    again = relearn(study, chosen, tmp_path, resume=True)
    assert [_rows(run) for run in again] == [_rows(run) for run in first]
    for name, value in first[0].measurements[-1].counts.items():
        assert torch.equal(again[0].measurements[-1].counts[name], value)


def test_other_settings_or_another_mask_cannot_go_on(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    study = Study(task, loaded, mask, SETTINGS)
    run_condition(study, CUT, tmp_path)
    slower = replace(study, settings=replace(SETTINGS, lr=0.01))
    with pytest.raises(UserError, match="other settings"):
        run_condition(slower, CUT, tmp_path, resume=True)
    drawn_anew = replace(study, mask=mask.random_like(1))
    with pytest.raises(UserError, match="another mask"):
        run_condition(drawn_anew, CUT, tmp_path, resume=True)
    with pytest.raises(UserError, match="holds results"):
        run_condition(study, CUT, tmp_path)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    study = Study(task, loaded, mask, SETTINGS)
    first, second, third = (
        run_condition(study, Condition("cut", "lasting", seed), tmp_path / n)
        for n, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert _rows(first) == _rows(second)
    assert _rows(first) != _rows(third)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **given)


def test_what_cannot_work_is_refused_before_the_first_step(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("work began before the check")

    monkeypatch.setattr(protocol, "run_condition", refuse)
    name = mask.sites[0].name
    per_position = AblationValues("mean", {name: torch.zeros(5, 12)})
    paired = AblationValues("counterfactual", {name: torch.zeros(60, 12)})
    one_shot = [Condition("cut", "one_shot", 0)]
    nothing = replace(SETTINGS, trained="layers:9")
    cases = [
        (mask, [CUT], nothing, "argument trained must match"),
        (replace(mask, ablated=paired), [CUT], SETTINGS, "counterfactual"),
        (replace(mask, ablated=per_position), one_shot, SETTINGS, "cannot be baked"),
    ]
    for given, chosen, settings, message in cases:
        with pytest.raises(UserError, match=message):
            relearn(Study(task, loaded, given, settings), chosen, tmp_path)
    empty = type(task)(n_examples=0)
    with pytest.raises(UserError, match="must not be empty"):
        relearn(Study(empty, loaded, mask, SETTINGS), [CUT], tmp_path)
    assert not any(tmp_path.iterdir())
