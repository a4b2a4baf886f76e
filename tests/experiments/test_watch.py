"""Maps of a planted mask: which pixel is which unit, pooled shares, missing units."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from circuitcut.experiments.settings import MaskSettings
from circuitcut.experiments.watch import (
    ABLATED,
    KEPT,
    LEFT,
    MAX_COLUMNS,
    NO_UNIT,
    TOP,
    labelled,
    pooled_rows,
    unit_maps,
    watched,
)
from circuitcut.models.sites import Site
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.tracking import Tracker

SITES = (
    Site("neurons", "layer.1.mlp", 1, 8),
    Site("heads", "layer.0.attention", 0, 2, 4),
    Site("neurons", "layer.0.mlp", 0, 8),
)


def _kept() -> dict[str, torch.Tensor]:
    keep = {site.name: torch.ones(site.n_units, dtype=torch.bool) for site in SITES}
    keep["layer.0.mlp:neurons"][3] = False
    keep["layer.1.mlp:neurons"][7] = False
    return keep


def _colour(image: torch.Tensor, row: float, column: float) -> torch.Tensor:
    """Colour at a place given as fractions of the image."""
    height, width, _ = image.shape
    return image[int(row * height), int(column * width)]


def test_planted_units_are_bright_and_all_others_dark():
    maps = unit_maps(_kept(), SITES)
    assert set(maps) == {"neurons", "heads"}
    for layer, planted in ((0, 3), (1, 7)):
        for unit in range(8):
            found = _colour(maps["neurons"], (layer + 0.4) / 2, (unit + 0.5) / 8)
            expected = ABLATED if unit == planted else KEPT
            torch.testing.assert_close(found, torch.tensor(expected))
    height, width, channels = maps["heads"].shape
    assert (channels, len(maps["heads"].unique(dim=0))) == (3, 1)
    assert height >= 16
    assert width >= 2 * 16


def test_the_colour_is_monotone_in_the_expected_gate():
    site = Site("neurons", "m", 0, 11)
    image = unit_maps({site.name: torch.linspace(1, 0, 11)}, [site])["neurons"]
    red = torch.stack([_colour(image, 0.4, (unit + 0.5) / 11) for unit in range(11)])
    assert (red[:, 0].diff() > 0).all()
    torch.testing.assert_close(red[0], torch.tensor(KEPT))
    torch.testing.assert_close(red[-1], torch.tensor(ABLATED))


@pytest.mark.parametrize("n_units", [512, 513, 1536, 39_200])
def test_pooling_keeps_the_mean_and_at_most_512_columns(n_units: int):
    row = torch.rand(n_units, generator=torch.Generator().manual_seed(0))
    table = pooled_rows([row])
    assert table.shape[1] <= MAX_COLUMNS
    width = -(-n_units // MAX_COLUMNS)
    whole = n_units // width
    torch.testing.assert_close(
        table[0, :whole], row[: whole * width].view(-1, width).mean(1)
    )


def test_a_layer_with_fewer_units_ends_in_grey():
    sites = [Site("neurons", "a", 0, 4), Site("neurons", "b", 1, 2)]
    kept = {site.name: torch.ones(site.n_units) for site in sites}
    image = unit_maps(kept, sites)["neurons"]
    torch.testing.assert_close(_colour(image, 0.7, 0.2), torch.tensor(KEPT))
    torch.testing.assert_close(_colour(image, 0.7, 0.9), torch.tensor(NO_UNIT))


def test_many_layers_stay_in_sight():
    sites = [Site("heads", f"h.{i}", i, 32) for i in range(96)]
    image = unit_maps({site.name: torch.ones(32) for site in sites}, sites)["heads"]
    height, width, _ = image.shape
    assert height == 96 * 8
    assert width == 512


@pytest.mark.parametrize("n_layers", [1, 2, 96])
def test_a_labelled_map_holds_the_map_and_writes_around_it(n_layers: int):
    sites = [Site("heads", f"h.{i}", i, 32) for i in range(n_layers)]
    image = unit_maps({site.name: torch.ones(32) for site in sites}, sites)["heads"]
    page = labelled(image, sites, "frozen")
    height, width, _ = image.shape
    inside = page[TOP : TOP + height, LEFT : LEFT + width]
    torch.testing.assert_close(inside, image, atol=1 / 255, rtol=0)
    for margin in (page[:TOP], page[TOP + height :], page[:, :LEFT]):
        assert margin.amin() == 0  # black letters
        assert margin.amax() == 1


def test_losses_are_also_shown_as_means_of_a_tenth_of_the_steps(tmp_path: Path):
    """A resumed run goes on with the means of the uninterrupted one."""
    run = RunDirectory.create(tmp_path, kind="test", task="t", model="m", config={})
    settings = MaskSettings(n_steps=30)
    for steps in (range(4), range(4, 8)):
        with Tracker(run, resume_step=steps[0] or None) as tracker:
            on_log = watched(tracker, settings).on_log
            assert on_log is not None
            for step in steps:
                on_log(step, {"concept_loss": float(step**2), "grad_norm": 1.0})
    events = EventAccumulator(str(run.path))
    events.Reload()
    means = [event.value for event in events.Scalars("mean_of_3_steps/concept_loss")]
    assert means == pytest.approx(
        [0, 1 / 2, 5 / 3, 14 / 3, 29 / 3, 50 / 3, 77 / 3, 110 / 3]
    )
    assert set(run.metrics()[5]) == {"step", "concept_loss", "grad_norm"}
