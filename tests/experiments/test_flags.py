"""What the scripts tell the user to type next is a command line that works."""

import shlex
from pathlib import Path

import pytest

from circuitcut.experiments.flags import (
    TaskConfig,
    base_recipe,
    run_dir_flag,
    task_flags,
)
from circuitcut.scripts.train_base import TrainBaseConfig
from circuitcut.scripts.train_mask import TrainMaskConfig
from circuitcut.storage.command_lines import command
from circuitcut.training.config import parse_config


def test_the_next_command_gives_back_the_flags_of_the_task():
    config = TrainBaseConfig(
        task="toxicity",
        data="my tweets.csv",
        concept_values=["very rude", "rude"],
        base_steps=30,
        run_dir=Path("other runs"),
    )
    words = shlex.split(command("train_mask", task_flags(config)))
    assert words[1] == "scripts/train_mask.py"
    parsed = parse_config(TrainMaskConfig, words[2:])
    assert task_flags(parsed) == task_flags(config)


def test_the_usual_folder_of_runs_is_not_repeated():
    assert run_dir_flag(TaskConfig()) == {}
    assert run_dir_flag(TaskConfig(run_dir=Path("x"))) == {"run_dir": Path("x")}


@pytest.mark.parametrize("n_steps", [1, 20, 5000])
def test_the_warm_up_of_a_short_base_training_is_shorter_than_it(n_steps: int):
    recipe = base_recipe(TaskConfig(base_steps=n_steps))
    assert recipe.n_steps == n_steps
    assert recipe.warmup == min(50, n_steps - 1)


def test_a_pretrained_model_learns_generated_data_in_fewer_steps_than_epochs():
    assert base_recipe(TaskConfig(model="minilm")).n_steps == 400
    assert base_recipe(TaskConfig(model="minilm", data="own.conll")).n_steps is None
