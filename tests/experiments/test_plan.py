"""A plan resolves every setting once, refuses what does not fit, and is read back."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitcut.attribution.abilities import ABILITIES
from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.defaults.of_mask import (
    WITHOUT_BUDGET,
    methods_of,
    settings_of,
)
from circuitcut.experiments.load import load
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.plan import Plan, plan, read_superset
from circuitcut.experiments.settings import MaskSettings, saved_settings
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gate_settings import SETTINGS
from circuitcut.masks.registry import GATES
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.registry import TASKS

MNIST = {"task": "mnist", "device": "cpu"}


def planned(**flags: Any) -> Plan:
    config = MaskConfig(**MNIST, **flags)
    return plan(config, load(config), superset=read_superset(config))


def test_a_task_s_recipe_is_plain_data_that_settings_take():
    for name, task in TASKS.items():
        defaults = task.defaults
        recipes = [defaults.mask, defaults.mask_on_edges or {}]
        for of in defaults.of_model.values():
            recipes += [of.mask or {}, of.mask_on_edges or {}]
        for recipe in recipes:
            assert isinstance(MaskSettings(**recipe), MaskSettings), name


def test_a_gate_changes_the_recipe_as_it_says():
    for name, gate in SETTINGS.items():
        settings = settings_of(MaskConfig(task="locations", gate=name), 9216)
        for key, value in gate.recipe.items():
            assert getattr(settings, key) == value


def test_every_gate_has_its_settings_and_every_method_its_ability():
    assert {name: gate.settings_class for name, gate in GATES.items()} == SETTINGS
    assert list(METHODS) == list(ABILITIES)


def test_all_leaves_out_what_runs_the_model_for_every_unit():
    assert not {"patching", "acdc"} & {*methods_of(["all"], ["edges"])}
    assert methods_of(["patching", "acdc"], ["edges"]) == ["patching", "acdc"]
    with pytest.raises(UserError, match="acdc ranks edges alone"):
        methods_of(["acdc"], ["heads"])


def test_flags_come_before_the_gate_and_the_gate_before_the_task():
    assert planned().settings.lr == TASKS["mnist"].defaults.mask.get("lr", 0.1)
    assert planned(gate="clamped").settings.lr == WITHOUT_BUDGET["lr"]
    assert planned(penalty="price").settings.lr == WITHOUT_BUDGET["lr"]
    assert planned(gate="clamped", lr=0.7).settings.lr == 0.7


def test_every_setting_with_a_help_text_is_a_flag_and_no_other():
    flags = {field.name for field in fields(MaskConfig)}
    for field in fields(MaskSettings):
        is_flag = field.name in flags and field.name != "seed"
        assert is_flag == ("help" in field.metadata), field.name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"k_min": 9.0, "k_max": 4.0}, "0 < k_min <= k_max"),
        ({"k_max": 1e6}, "k_min <= k_max < 3200"),
        ({"n_ablated": 3201}, "at most the 3200 units"),
        (
            {"keep_prob": 1.5, "gate": "hard_concrete"},
            "keep_prob must be a number",
        ),
        (
            {"temperature_end": 0.0, "gate": "topk"},
            "temperature_end must be",
        ),
        ({"noise_end": 0.0}, "noise_end must be"),
        ({"gate": "clamped", "penalty": "budget"}, "cannot hold a budget"),
        ({"penalty": "lagrangian", "target_ablated": 4e3}, r"are trained \(3200\)"),
        ({"round_every": 5}, "round_every needs --gate clamped, got hard_concrete"),
        ({"attribution": ["eap"]}, "attribution method eap"),
        ({"per_position": True, "ablation": "mean"}, "needs a sequence"),
        ({"units": ["heads"]}, "heads"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(
    flags: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        planned(**flags)


def test_a_superset_smaller_than_k_is_refused(tmp_path: Path):
    sites = planned().sites
    scores = {site.name: torch.arange(float(site.n_units)) for site in sites}
    few = FrozenMask.exactly_k(scores, sites, zero_values(sites), n_ablated=20)
    few.save(tmp_path)
    assert planned(superset=tmp_path, k_max=15.0, k_min=2.0).superset is not None
    with pytest.raises(UserError, match=r"number of gated units \(20\)"):
        planned(superset=tmp_path)


def test_a_resumed_run_has_the_settings_it_was_started_with(tmp_path: Path):
    config = MaskConfig(**MNIST)
    experiment = load(config)
    first = plan(config, experiment)
    earlier = replace(first.settings, lr=0.123)  # as if the default had been another
    run = RunDirectory.create(
        tmp_path,
        kind="train_mask",
        task="mnist",
        model="mlp",
        config={},
        files=replace(first, settings=earlier).files(),
    )
    assert json.loads((run.path / "settings.json").read_text()) == asdict(earlier)
    assert plan(config, experiment, resumed=run.path).settings == earlier
    assert plan(config, experiment).settings == first.settings


def test_settings_of_another_version_are_refused(tmp_path: Path):
    assert saved_settings(tmp_path) is None
    (tmp_path / "settings.json").write_text('{"lr": 0.1, "warp": 9}')
    with pytest.raises(UserError, match="another version"):
        saved_settings(tmp_path)


def test_beta_of_a_run_from_before_it_could_fall_stays_as_it_was(tmp_path: Path):
    older = asdict(MaskSettings(stretch_temperature=0.4))
    del older["stretch_temperature_end"]
    (tmp_path / "settings.json").write_text(json.dumps(older))
    settings = saved_settings(tmp_path)
    assert settings is not None
    assert settings.stretch_temperature_end == 0.4


def test_circuits_of_large_graphs_are_trained_otherwise_than_those_of_small_ones():
    config = MaskConfig(task="ioi", units=["edges"], direction="isolate")
    small, large = settings_of(config, 310), settings_of(config, 70_651)
    assert (small.start, small.noise_start) == ("equal", 1.0)
    assert small.stretch_temperature_end == small.stretch_temperature
    assert (large.start, large.noise_start) == ("eap_ig", 0.3)
    assert large.stretch_temperature_end < large.stretch_temperature / 5
    given = replace(config, concept_objective="js", stretch_temperature_end=0.5)
    asked = settings_of(given, 70_651)
    assert (asked.concept_objective, asked.stretch_temperature_end) == ("js", 0.5)
