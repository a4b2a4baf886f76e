"""Runs and masks from before the packages had one namespace still load and go on.

The files in tests/fixtures were written by commit 0826726 with
`train_mask.py --task mnist --base_steps 100 --n_steps 20 --lr 0.3 --n_ablated 150
--n_random 1 --attribution none --device cpu` (`unfinished`: killed after 10 steps),
`relearn.py --n_steps 4 --limits 4 --seeds 0 --n_evaluations 2 --no_redistribute
--no_probe` and `train_mask.py --task ioi --units edges --base_steps 30 --n_steps 10
--n_ablated 4 --n_random 1 --attribution none --max_length 32`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from circuitcut.experiments.saved_runs import mask_at, ranking_of_run, settings_of_run
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.scripts import evaluate, relearn, report, train_mask
from circuitcut.storage.atomic import read_tensors
from circuitcut.training.config import parse_config

RUNS = Path(__file__).parents[1] / "fixtures" / "runs_before_december_2026"


def test_the_masks_are_what_they_were():
    for name, n_ablated, n_units in (
        ("mnist_weights", 150, 3200),
        ("ioi_edges", 4, 310),
    ):
        mask = mask_at(RUNS / name)
        results = json.loads((RUNS / name / "results.json").read_text())
        assert (mask.n_ablated, mask.n_units) == (n_ablated, n_units)
        assert (results["n_ablated"], results["n_units"]) == (n_ablated, n_units)
        lowest = torch.cat(
            [ranking_of_run(RUNS / name, mask)[site.name] for site in mask.sites]
        ).argsort()[:n_ablated]
        kept = torch.cat([mask.keep[site.name] for site in mask.sites])
        assert (~kept).nonzero().flatten().tolist() == sorted(lowest.tolist())
    assert mask.edges(kept=False) == results["edges"]


def test_a_saved_mask_has_the_same_tensors_again(tmp_path: Path):
    for name in ("mnist_weights", "ioi_edges"):
        mask_at(RUNS / name).save(tmp_path)
        before = read_tensors(RUNS / name / "mask.safetensors")
        written = read_tensors(tmp_path / "mask.safetensors")
        # today values of edges are written once a writer, and read back for each site
        assert written.keys() <= before.keys()
        assert all(torch.equal(before[key], written[key]) for key in written)
        again = FrozenMask.load(tmp_path).ablated.values
        values = {k: v for k, v in before.items() if k.startswith("value/")}
        assert {f"value/{site}" for site in again} == set(values)
        assert all(torch.equal(again[k[6:]], v) for k, v in values.items())


def test_their_settings_follow_from_their_flags():
    settings = settings_of_run(RUNS / "ioi_edges", 310)
    assert (settings.n_steps, settings.gate, settings.k_max) == (10, "topk", 16.0)
    assert settings.ablation == "mean"
    assert (settings.lr, settings.penalty) == (0.1, "none")
    assert settings.positions == "all"


def test_a_report_of_them_is_written(tmp_path: Path):
    runs = [RUNS / n for n in ("mnist_weights", "mnist_relearning", "ioi_edges")]
    out = tmp_path / "report.html"
    flags = ["--runs", *map(str, runs), "--out", str(out)]
    copies = []
    for run in runs:  # figures are written into the run
        copies.append(shutil.copytree(run, tmp_path / run.name))
    flags = ["--runs", *map(str, copies), "--out", str(out)]
    report.main(parse_config(report.ReportConfig, flags))
    assert "150 of 3,200" in out.read_text()


@pytest.mark.slow  # trains the base model of both tasks
@pytest.mark.parametrize("name", ["mnist_weights", "ioi_edges"])
def test_they_are_evaluated_and_relearned_from(name: str, tmp_path: Path):
    run = shutil.copytree(RUNS / name, tmp_path / name)
    # other processors give the base model other last bits
    where = ["--mask", str(run), "--allow_other_weights", "--device", "cpu"]
    where += ["--run_dir", str(tmp_path / "runs")]
    evaluated = evaluate.main(parse_config(evaluate.EvaluateConfig, where))
    scores = json.loads((evaluated / "results.json").read_text())["scores"]
    before = json.loads((run / "results.json").read_text())["scores"]
    for key, value in before["cut"].items():
        if key in scores["cut"]:
            assert scores["cut"][key] == pytest.approx(value, abs=0.02, rel=0.02)
    few = ["--limits", "4", "--seeds", "0", "--n_steps", "2", "--n_evaluations", "1"]
    relearned = relearn.main(parse_config(relearn.RelearnConfig, [*where, *few]))
    assert (relearned / "results.json").exists()


@pytest.mark.slow  # trains a base model
def test_one_that_was_killed_goes_on_from_its_checkpoint(tmp_path: Path):
    run = shutil.copytree(RUNS / "unfinished", tmp_path / "unfinished")
    flags = ["--resume", str(run)]
    assert train_mask.main(parse_config(train_mask.TrainMaskConfig, flags)) == run
    results = json.loads((run / "results.json").read_text())
    assert results["n_ablated"] == 150
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(20))
