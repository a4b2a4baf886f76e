"""Stability of masks over seeds: trained runs, masks by hand, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.scripts import report, stability, train_mask
from circuitcut.storage.errors import UserError
from circuitcut.training.config import parse_config
from tests.models.tiny import tiny_model

MASK = ["--n_steps", "40", "--lr", "0.3", "--n_ablated", "150", "--n_random", "0"]


def compared(*flags: str) -> Path:
    return stability.main(parse_config(stability.StabilityConfig, list(flags)))


def results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


def test_seeds_share_far_more_weights_than_random_masks(
    fast: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = [*fast, *MASK, "--attribution", "none"]
    runs = [
        train_mask.main(
            parse_config(train_mask.TrainMaskConfig, [*flags, "--seed", seed])
        )
        for seed in ("0", "1", "2")
    ]
    capsys.readouterr()
    run = compared("--masks", *map(str, runs), "--run_dir", str(tmp_path / "runs"))
    found = results(run)
    assert found["chosen"] == "ablated"
    assert [mask["seed"] for mask in found["masks"]] == [0, 1, 2]
    masks = [FrozenMask.load(path) for path in runs]
    pair = found["pairs"][1]
    assert (pair["first"], pair["second"]) == (0, 2)
    assert pair["jaccard"] == pytest.approx(masks[0].overlap(masks[2]))
    low, high = found["mean"]["random"]["interval"]
    assert low <= found["mean"]["random"]["mean"] <= high < 0.05
    assert found["mean"]["jaccard"] > 0.3
    assert {u["n_masks"] for u in found["shared"]} == {2, 3}
    shown = capsys.readouterr().out
    assert "mean over pairs" in shown
    assert "ablated in all 3 masks" in shown
    page = report.main(report.ReportConfig(runs=[run])).read_text()
    assert "Two masks share" in page
    other = [*flags, "--base_seed", "1"]
    path = train_mask.main(parse_config(train_mask.TrainMaskConfig, other))
    with pytest.raises(UserError, match="other weights"):
        compared("--masks", str(runs[0]), str(path))


def _saved(folder: Path, sites: tuple[Site, ...], kept: set[int], **of: Any) -> str:
    """A mask that keeps some units of its second site alone."""
    keep = {site.name: torch.zeros(site.n_units, dtype=torch.bool) for site in sites}
    keep[sites[1].name][list(kept)] = True
    folder.mkdir()
    FrozenMask(keep, sites, zero_values(sites), provenance=of).save(folder)
    return str(folder)


def test_circuits_of_edges_are_compared_by_what_they_keep(tmp_path: Path):
    sites = sites_of(tiny_model("gpt2", "causal_lm"), ["edges"])
    isolating = {"direction": "isolate", "seed": 5}
    masks = [
        _saved(tmp_path / "one", sites, {0, 1, 2}, **isolating),
        _saved(tmp_path / "two", sites, {1, 2, 3}, **isolating),
    ]
    run = compared("--masks", *masks, "--run_dir", str(tmp_path / "runs"))
    found = results(run)
    assert found["chosen"] == "kept"
    assert found["mean"]["jaccard"] == 0.5
    assert [site["jaccard"] for site in found["per_site"]] == [None, 0.5, None]
    assert len(found["shared"]) == 2
    assert all("->" in unit["unit"] for unit in found["shared"])
    assert found["task"] == "none"
    report.main(report.ReportConfig(runs=[run]))
    both = results(
        compared(
            *("--masks", *masks, "--chosen", "ablated"),
            *("--run_dir", str(tmp_path / "runs")),
        )
    )
    assert both["mean"]["jaccard"] > 0.9
    assert both["mean"]["random"]["mean"] > 0.9


def test_what_cannot_be_compared_is_refused(tmp_path: Path):
    sites = sites_of(tiny_model("gpt2", "causal_lm"), ["edges"])
    isolating = _saved(tmp_path / "one", sites, {0}, direction="isolate")
    breaking = _saved(tmp_path / "two", sites, {0}, direction="break")
    for flags, message in (
        ([isolating], "at least two"),
        ([isolating, f"{isolating}/."], "every value once"),
        ([isolating, breaking], "got both"),
        ([isolating, str(tmp_path)], "missing folder|got folder"),
    ):
        with pytest.raises(UserError, match=message):
            stability.main(stability.StabilityConfig([Path(flag) for flag in flags]))
