"""A planted attention sink: left out of means, and told where it is not."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.gate_training import ablation_values, special_ids
from circuitcut.experiments.load import Experiment, load
from circuitcut.experiments.mean_check import warn_of_poison
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import AblationValues
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError

SINK = 7
"""The neuron of the first block that fires at the first position alone."""
SETTINGS = MaskSettings(ablation="mean")


@pytest.fixture(scope="module")
def planted() -> Experiment:
    """An untrained GPT-2 whose first position alone drives one neuron, far."""
    experiment = load(TaskConfig(task="ioi", model="tiny-decoder", device="cpu"))
    model: Any = experiment.loaded.model.requires_grad_(False)
    block = model.transformer.h[0]
    direction = torch.zeros(model.config.n_embd)
    direction[:8] = torch.tensor([1.0, -1.0] * 4)
    model.transformer.wpe.weight[0] += 40 * direction
    block.mlp.c_fc.weight[:, SINK] = 540 * direction / 8
    block.mlp.c_fc.bias[SINK] = -1500.0
    block.mlp.c_proj.weight[SINK] = torch.linspace(-1, 1, model.config.n_embd)
    model.lm_head.weight.mul_(3)
    return experiment


def _sites(experiment: Experiment) -> Any:
    return sites_of(experiment.loaded.model, ["neurons"])


def _means(experiment: Experiment) -> AblationValues:
    return ablation_values(experiment, _sites(experiment), SETTINGS)


def test_the_sink_is_left_out_of_means_and_of_cuts(
    planted: Experiment, caplog: pytest.LogCaptureFixture
):
    values = _means(planted)
    first = _sites(planted)[0].name
    assert abs(values.values[first][SINK].item()) < 1.0
    ids = special_ids(planted, SETTINGS)
    assert warn_of_poison(planted, _sites(planted), values, ids) is None
    warned = [record for record in caplog.records if record.levelname != "INFO"]
    assert warned == []  # INFO: progress of the means on a slow machine


def test_a_mean_with_the_sink_in_it_is_told(
    planted: Experiment, caplog: pytest.LogCaptureFixture
):
    blind = replace(planted, loaded=replace(planted.loaded, special_ids=()))
    values = _means(blind)
    first = _sites(planted)[0].name
    assert values.values[first][SINK].item() > 20.0
    worst = warn_of_poison(blind, _sites(planted), values, ())
    assert worst is not None
    assert (worst.site, worst.unit) == (first, SINK)
    assert "costs" in caplog.text
    assert "attention sinks" in caplog.text


def test_means_per_position_need_aligned_prompts(planted: Experiment):
    settings = replace(SETTINGS, per_position=True)
    with pytest.raises(UserError, match="needs aligned prompts, got prompts of"):
        ablation_values(planted, _sites(planted), settings)
