"""The main job end to end on the digits: train, freeze, relearn, evaluate, report."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib import pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from circuitcut.experiments.watch import (
    ABLATED,
    COLUMN_WIDTH,
    KEPT,
    LEFT,
    MAX_COLUMNS,
    TOP,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.scripts import attribute, evaluate, relearn, report, train_mask
from circuitcut.storage.atomic import read_tensors
from circuitcut.storage.errors import UserError
from circuitcut.tasks.mnist import MnistTask
from circuitcut.training.config import parse_config
from circuitcut.training.tracking import Tracker

MASK = ["--n_steps", "40", "--lr", "0.3", "--n_ablated", "150", "--n_random", "1"]
RELEARN = ["--n_steps", "6", "--limits", "4", "--seeds", "0", "--n_evaluations", "3"]


def trained(flags: list[str]) -> Path:
    return train_mask.main(parse_config(train_mask.TrainMaskConfig, flags))


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_a_learned_cut_forgets_the_digit_and_a_random_cut_does_not(fast: list[str]):
    run = trained([*fast, *MASK, "--curve_sizes", "20", "150"])
    found = results(run)
    scores = found["scores"]
    assert found["n_ablated"] == 150 == sum(s["n_ablated"] for s in found["per_site"])
    assert scores["uncut"]["concept_accuracy"] > 0.8
    assert scores["cut"]["concept_accuracy"] < 0.3
    assert scores["random"][0]["concept_accuracy"] > 0.7
    assert scores["cut"]["retain_accuracy"] > 0.8
    at_size = {
        row["n_ablated"]: row["scores"]["concept_accuracy"]
        for row in found["curve"]
        if row["method"] == "learned"
    }
    assert at_size[150] == scores["cut"]["concept_accuracy"]
    assert at_size[20] >= at_size[150]
    low, high = found["intervals"]["cut"]["retain_accuracy"]
    assert low <= scores["cut"]["retain_accuracy"] <= high


def test_gates_are_measured_before_rounding_at_the_frozen_number_or_not_at_all(
    fast: list[str],
):
    flags = [*fast, "--n_steps", "3", "--n_random", "0", "--attribution", "none"]
    budget = results(trained([*flags, "--n_ablated", "150"]))
    assert budget["expected_ablated"] == pytest.approx(150, abs=0.1)
    assert "cut_before_rounding" in budget["scores"]
    price = results(trained([*flags, "--n_ablated", "150", "--penalty", "price"]))
    assert price["n_ablated"] == 150
    assert price["expected_ablated"] < 100
    assert "cut_before_rounding" not in price["scores"]


def test_a_model_that_learned_nothing_is_warned_of_and_not_relearned(
    fast: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
):
    unlearned = ["--base_steps", "1", "--base_lr", "1e-6", "--concept", "3"]
    flags = ["--n_steps", "2", "--n_random", "0", "--attribution", "none"]
    found = results(run := trained([*fast, *unlearned, *flags]))
    warning = "the uncut model is no better than a guess on the concept: accuracy on"
    assert caplog.text.count(warning) == 1
    assert found["warning"].startswith(warning)
    assert f"warning: {warning}" in capsys.readouterr().out
    assert "train_base" in found["next"]
    assert "--base_steps 4" in found["next"]
    out = ["--runs", str(run), "--out", str(tmp_path / "report.html")]
    page = report.main(parse_config(report.ReportConfig, out)).read_text()
    assert f"No verdict on the concept. Warning: {warning}" in page


def test_tensorboard_shows_the_frozen_mask_unit_by_unit(fast: list[str]):
    units = ["--units", "neurons", "weights", "--attribution", "none"]
    run = trained([*fast, *MASK, *units])
    events = EventAccumulator(str(run))
    events.Reload()
    tags = [
        f"ablated_{k}/{w}" for k in ("neurons", "weights") for w in ("gates", "frozen")
    ]
    assert set(tags) <= set(events.Tags()["images"])
    assert len(events.Images("ablated_neurons/gates")) >= 4
    (shown,) = events.Images("ablated_neurons/frozen")
    assert shown.step == 40
    image = plt.imread(io.BytesIO(shown.encoded_image_string))[:, :, :3]
    (keep,) = (
        values
        for name, values in read_tensors(run / "mask.safetensors").items()
        if name.endswith(":neurons") and values.dtype == torch.bool
    )
    width = min(COLUMN_WIDTH, MAX_COLUMNS // len(keep))
    row = image[TOP, LEFT : LEFT + width * len(keep), 0]
    red = torch.tensor(row[width // 2 :: width])
    assert torch.equal(red > (KEPT[0] + ABLATED[0]) / 2, ~keep)


@pytest.mark.slow
def test_relearning_report_and_evaluation_follow_from_the_run_alone(
    fast: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = trained([*fast, *MASK])
    where = ["--run_dir", str(tmp_path / "runs"), "--device", "cpu"]
    config = parse_config(relearn.RelearnConfig, [*where, *RELEARN])
    again = relearn.main(config)
    found = results(again)
    first = {row["condition"]: row for row in found["rows"] if row["step"] == 0}
    cut = results(run)["scores"]["cut"]["concept_accuracy"]
    assert first["cut"]["scores"]["concept_accuracy"] == pytest.approx(cut)
    assert first["uncut"]["scores"]["concept_accuracy"] > 0.8
    flags = ["--mask", str(run), *where, "--sizes", "20", "150"]
    measured = results(evaluate.main(parse_config(evaluate.EvaluateConfig, flags)))
    assert measured["scores"]["cut"]["concept_accuracy"] == pytest.approx(cut)
    assert {row["n_ablated"] for row in measured["curve"]} == {20, 150}
    config = parse_config(report.ReportConfig, where[:2])
    page = report.main(config).read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert f"{cut:.3f}" in page
    assert "next:" in capsys.readouterr().out


@pytest.mark.slow
def test_without_examples_or_without_having_learned_it_the_digit_stays_away(
    fast: list[str], tmp_path: Path
):
    run = trained([*fast, *MASK, "--attribution", "none"])
    controls = ["--conditions", "uncut", "retain_only", "never_learned"]
    where = ["--run_dir", str(tmp_path / "runs"), "--device", "cpu"]
    flags = [*where, *RELEARN, *controls, "--mask", str(run)]
    found = results(relearn.main(parse_config(relearn.RelearnConfig, flags)))
    base = found["never_learned"]["heldout"]
    assert base["concept_accuracy"] == 0 < 0.8 < base["retain_accuracy"]
    last = {row["condition"]: row for row in found["rows"] if row["step"] == 6}
    assert last["retain_only"]["limit"] == 0
    assert last["retain_only"]["scores"]["concept_accuracy"] < 0.3
    assert last["uncut"]["scores"]["concept_accuracy"] > 0.8


def test_a_limit_above_the_examples_is_refused_before_any_run_is_made(
    fast: list[str], tmp_path: Path
):
    run = trained([*fast, *MASK, "--n_steps", "2", "--attribution", "none"])
    where = ["--run_dir", str(tmp_path / "relearnt"), "--device", "cpu"]
    flags = [*where, *RELEARN, "--mask", str(run), "--limits", "4", "999999"]
    with pytest.raises(UserError, match="limit must lie in 1"):
        relearn.main(parse_config(relearn.RelearnConfig, flags))
    assert not list((tmp_path / "relearnt").iterdir())


def test_without_limits_a_small_split_is_used_whole():
    class Few:
        def finetune_batch(self, *_: Any, limit: int | None, **__: Any) -> None:
            if limit is not None and limit > 9:
                raise UserError(f"argument limit must lie in 1..9, got {limit}")

    few: Any = SimpleNamespace(task=Few())
    config = relearn.RelearnConfig(seeds=[0])
    of_model = relearn.RelearnConfig(seeds=[0], task="ioi", model="smollm2")
    assert {c.limit for c in of_model.combined()} == {16}  # its own default
    for unlimited in (config, of_model):
        possible = relearn._with_possible_limits(unlimited, few)
        assert {c.limit for c in possible.combined()} == {None}
    with pytest.raises(UserError, match="limit must lie"):
        relearn._with_possible_limits(replace(config, limits=["16"]), few)


def test_attribution_cuts_have_the_sizes_asked_for(fast: list[str]):
    flags = [*fast, "--methods", "gradient_margin", "random", "--sizes", "50", "200"]
    run = attribute.main(parse_config(attribute.AttributeConfig, flags))
    rows = {(r["method"], r["n_ablated"]): r["scores"] for r in results(run)["curve"]}
    margin = rows["gradient_margin", 200]["concept_accuracy"]
    assert margin < rows["random", 200]["concept_accuracy"]
    assert (run / "masks" / "gradient_margin-50" / "mask.safetensors").exists()


def test_an_interrupted_mask_run_resumes_to_the_same_bits(
    fast: list[str], monkeypatch: pytest.MonkeyPatch
):
    flags = [*fast, *MASK, "--attribution", "none", "--checkpoint_every", "10"]
    whole = trained([*flags, "--name", "whole"])
    log = Tracker.scalars

    def stop_at_25(self: Tracker, step: int, values: dict[str, float]) -> None:
        if step == 25:
            raise RuntimeError("the machine went away")
        log(self, step, values)

    monkeypatch.setattr(Tracker, "scalars", stop_at_25)
    with pytest.raises(RuntimeError, match="went away"):
        trained([*flags, "--name", "broken"])
    monkeypatch.setattr(Tracker, "scalars", log)
    broken = whole.parent / "broken"
    assert not (broken / "results.json").exists()
    trained(["--resume", str(broken)])
    for name in ("mask.safetensors", "ranking.safetensors", "metrics.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    assert results(broken)["scores"] == results(whole)["scores"]


def test_the_same_seed_gives_the_same_mask_and_another_seed_another(fast: list[str]):
    flags = [*fast, *MASK, "--attribution", "none"]
    first, second = trained(flags), trained(flags)
    other = trained([*flags, "--seed", "1"])
    mask = "mask.safetensors"
    assert (first / mask).read_bytes() == (second / mask).read_bytes()
    ranking = "ranking.safetensors"
    assert (first / ranking).read_bytes() != (other / ranking).read_bytes()


@pytest.mark.parametrize("gate", ["hard_concrete", "clamped"])
@pytest.mark.parametrize("asked", [100, 300, 0.25])
def test_a_lagrangian_reaches_the_number_asked_for(
    fast: list[str], gate: str, asked: float
):
    flags = [*fast, "--gate", gate, "--attribution", "none", "--n_random", "0"]
    flags += ["--penalty", "lagrangian", "--target_ablated", str(asked)]
    found = results(trained([*flags, "--n_steps", "200", "--lr", "0.1"]))
    n_asked = asked if asked >= 1 else asked * found["n_units"]
    assert found["expected_ablated"] == pytest.approx(n_asked, rel=0.1)
    assert found["asked_ablated"] == found["n_ablated"] == n_asked
    assert found["scores"]["cut"]["concept_accuracy"] < 0.3


@pytest.mark.parametrize(
    "recipe",
    [
        "--concept_weight 0.2 --lr 0.05 --price_start 0.2 --ramp 0.8 --round_every 100",
        "--concept_weight 0.3 --lr 0.3 --price_shape sqrt --ramp 0.667",
    ],
    ids=["toxicity", "digits"],
)
def test_the_published_recipes_of_clamped_gates_break_the_concept(
    fast: list[str], recipe: str
):
    """With the price of a weight of this model, which matters less than an edge."""
    flags = [*fast, "--gate", "clamped", "--attribution", "none", "--n_random", "0"]
    flags += ["--concept_objective", "ascent", "--retain_weight", "1"]
    flags += ["--retain_objective", "cross_entropy", "--lr_schedule", "constant"]
    flags += ["--price", "0.002", "--n_steps", "300", *recipe.split()]
    found = results(trained(flags))
    assert 0 < found["n_ablated"] < 0.1 * found["n_units"]
    assert found["scores"]["cut"]["concept_accuracy"] < 0.1
    assert found["scores"]["cut"]["retain_accuracy"] > 0.9
    if "round_every" in recipe:  # the last step rounds: nothing is left to round
        assert found["expected_ablated"] == found["n_ablated"]


def test_with_nothing_retained_its_images_are_not_run(
    fast: list[str], monkeypatch: pytest.MonkeyPatch
):
    n_run: list[int] = []
    outputs = MnistTask.outputs

    def counted(self: MnistTask, model: Any, batch: dict[str, Tensor]) -> Any:
        n_run.append(len(batch["concept"]))
        return outputs(self, model, batch)

    monkeypatch.setattr(MnistTask, "outputs", counted)
    flags = [*fast, *MASK, "--attribution", "none", "--batch_size", "32"]
    run = trained([*flags, "--retain_objective", "none"])
    assert n_run[:40] == [16] * 40  # then come evaluations
    n_run.clear()
    trained(flags)
    assert n_run[:80] == [32] * 80  # each batch in the uncut model too, for its KL
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert not any("retain_loss" in json.loads(line) for line in lines)
    assert results(run)["scores"]["cut"]["concept_accuracy"] < 0.1
    report.main(report.ReportConfig(runs=[run]))


def test_a_covering_mask_breaks_the_concept_within_an_earlier_mask(fast: list[str]):
    flags = [*fast, *MASK, "--attribution", "none", "--n_random", "0"]
    circuit = trained([*flags, "--n_ablated", "300"])
    inside = ["--superset", str(circuit), "--n_ablated", "150"]
    run = trained([*flags, *inside, "--k_min", "50", "--k_max", "200"])
    outer, inner = FrozenMask.load(circuit), FrozenMask.load(run)
    assert inner.n_ablated == 150
    assert all((outer.keep[name] <= inner.keep[name]).all() for name in outer.keep)
    assert results(run)["scores"]["cut"]["concept_accuracy"] < 0.1
    with pytest.raises(UserError, match=r"that are trained \(300\), got 301"):
        trained([*flags, *inside, "--k_max", "200", "--n_ablated", "301"])
