"""Edges end to end on a few prompts: train, freeze, evaluate, attribute, report."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.scores import attribution_ranking
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.scripts import (
    attribute,
    evaluate,
    faithfulness,
    relearn,
    report,
    train_mask,
)
from circuitcut.storage.errors import UserError
from circuitcut.training.config import parse_config
from tests.attribution.toy import SITES, LinearTokens, ToyTask

NAMES = ["Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jim", "Kim"]
NAMES += ["Lea", "Max", "Ned", "Oda", "Pam", "Quin", "Ray", "Sam", "Tom", "Una", "Vic"]
NAMES += ["Wes", "Xena", "Yves", "Zoe"]
QUICK = ["--n_steps", "3", "--n_random", "1", "--batch_size", "4"]


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 120 prompts, so that evaluating takes no time."""
    pairs = list(itertools.permutations(NAMES, 2))[::5][:120]
    lines = [f'"Then, {a} and {b} met. {b} gave a book to",{a}' for a, b in pairs]
    path = tmp_path_factory.mktemp("data") / "prompts.csv"
    path.write_text("\n".join(["prompt,answer", *lines]))
    return path


@pytest.fixture
def flags(prompts: Path, tmp_path: Path) -> list[str]:
    """Flags of a job of a few seconds."""
    task = ["--task", "ioi", "--data", str(prompts), "--base_steps", "4"]
    return [*task, "--device", "cpu", "--run_dir", str(tmp_path / "runs")]


def trained(flags: list[str]) -> Path:
    return train_mask.main(parse_config(train_mask.TrainMaskConfig, flags))


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


@pytest.mark.slow
def test_a_mask_on_edges_is_trained_evaluated_and_reported(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    run = trained([*flags, *QUICK, "--units", "edges", "--n_ablated", "5"])
    found = results(run)
    assert found["n_ablated"] == 5 == len(found["edges"])
    assert found["per_site"][-1]["level"] == "logits"
    assert sum(site["n_units"] for site in found["per_site"]) == found["n_units"] == 310
    assert list(found["scores"]["attribution"]) == ["eap", "eap_ig"]
    mask = FrozenMask.load(run)
    assert mask.special_ids == ()
    assert mask.edges(kept=False) == found["edges"]
    said = capsys.readouterr().out
    assert f"ablated: {found['edges'][0]}" in said
    # a base model of few steps is no better than a guess: no relearning is proposed
    assert "scripts/train_base.py" in said
    where = ["--mask", str(run), "--run_dir", str(tmp_path / "runs")]
    config = parse_config(evaluate.EvaluateConfig, [*where, "--sizes", "2", "5"])
    measured = results(evaluate.main(config))
    assert measured["scores"]["cut"] == pytest.approx(found["scores"]["cut"])
    page = report.main(parse_config(report.ReportConfig, ["--runs", str(run)]))
    assert "logits" in page.read_text()
    quick = [*where, "--n_steps", "2", "--batch_size", "4", "--limits", "2"]
    quick += ["--seeds", "0", "--n_evaluations", "1"]
    with pytest.raises(UserError, match="cannot be written into the weights"):
        relearn.main(
            parse_config(relearn.RelearnConfig, [*quick, "--holdings", "one_shot"])
        )
    config = parse_config(relearn.RelearnConfig, [*quick, "--fresh_mask", "true"])
    with monkeypatch.context() as patch:
        patch.setattr(relearn, "prepare", None)  # refused before anything is loaded
        with pytest.raises(UserError, match="got one of edges"):
            relearn.main(config)
    rows = results(relearn.main(parse_config(relearn.RelearnConfig, quick)))["rows"]
    first = next(r for r in rows if r["condition"] == "cut" and r["step"] == 0)
    assert first["scores"] == pytest.approx(
        {name: found["scores"]["cut"][name] for name in first["scores"]}
    )
    last = next(r for r in rows if r["condition"] == "cut" and r["step"] == 2)
    assert last["distance"] > 0


@pytest.mark.slow
def test_edges_are_trained_beside_neurons_and_kept_edges_are_named(flags: list[str]):
    units = ["--units", "edges", "neurons", "--ablation", "mean", "--merged_qkv", "1"]
    direction = ["--direction", "isolate", "--n_ablated", "700"]
    run = trained([*flags, *QUICK, *units, *direction])
    found = results(run)
    assert found["units"] == ["edges", "neurons"]
    kept = sum(
        site["n_units"] - site["n_ablated"]
        for site in found["per_site"]
        if site["kind"] == "edges"
    )
    assert kept == len(found["edges"])
    assert not any("<" in name for name in found["edges"])
    superset = ["--superset", str(run), "--units", "edges", "neurons"]
    with pytest.raises(
        UserError, match="separate queries, keys and values False against"
    ):
        trained([*flags, *QUICK, *superset])


@pytest.mark.slow
def test_attribution_ranks_edges_with_counterfactual_values(flags: list[str]):
    edges = [*flags, "--units", "edges", "--ablation", "counterfactual"]
    ranking = ["--sizes", "3", "--n_batches", "1", "--methods", "all"]
    config = parse_config(attribute.AttributeConfig, [*edges, *ranking])
    methods = {row["method"] for row in results(attribute.main(config))["curve"]}
    assert {"gradient_concept_loss", "gradient_margin", "greedy_margin"} < methods
    assert "gradient_margin_over_retain" in methods
    assert "probeless" not in methods


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--units", "edges", "hidden"], "edges beside neurons and heads only"),
        (["--units", "edges", "weights"], "edges beside neurons and heads only"),
        (["--units", "edges", "--attribution", "probeless"], "cannot rank edges"),
        (["--units", "edges", "--layers", "3"], "layers 0 to 2"),
        (["--units", "heads", "--merged_qkv", "true"], "merged_qkv is about edges"),
        (
            ["--units", "heads", "--position_node", "own"],
            "position_node is about edges",
        ),
    ],
)
def test_what_edges_cannot_do_is_refused_before_any_training(
    more: list[str], message: str, flags: list[str], cache: Path
):
    before = set(cache.rglob("*"))
    with pytest.raises(UserError, match=message):
        trained([*flags, *QUICK, "--base_seed", "7", *more])
    assert set(cache.rglob("*")) == before


@pytest.fixture
def learned(flags: list[str]) -> list[str]:
    """Flags with a base model that has learned something: names, not yet which."""
    return [*flags, "--base_steps", "60"]


def measured(flags: list[str]) -> dict[str, Any]:
    config = parse_config(faithfulness.FaithfulnessConfig, flags)
    return results(faithfulness.main(config))


@pytest.mark.slow
def test_circuits_of_every_size_from_one_training(learned: list[str], tmp_path: Path):
    isolate = ["--units", "edges", "--direction", "isolate", "--attribution", "none"]
    run = trained([*learned, *QUICK, *isolate, "--n_ablated", "292"])
    where = ["--run_dir", str(tmp_path / "runs"), "--mask", str(run)]
    shares = ["0.1", "0.5", "1.0"]
    few = ["--n_random", "2", "--n_batches", "2", "--methods", "eap_ig", "random"]
    found = measured([*where, "--fractions", *shares, *few])
    assert found["ablation"] == "counterfactual"
    curve = {
        (row["method"], row["order"], row["seed"], row["fraction"]): row
        for row in found["curve"]
    }
    methods = {(method, order) for method, order, *_ in curve}
    both = {("eap_ig", "signed"), ("eap_ig", "absolute")}
    assert methods == {("hard_concrete", "signed"), ("random", "signed")} | both
    assert sum(method == "random" for method, *_ in curve) == 6
    whole = curve["hard_concrete", "signed", 0, 1.0]
    assert whole["faithfulness"] == pytest.approx(1)
    assert whole["without"]["faithfulness"] == pytest.approx(0)
    assert whole["scores"]["kl_concept"] == pytest.approx(0, abs=1e-6)
    assert whole["n_kept"] == whole["n_connected"] == 310
    margins = [found["scores"][name]["margin"] for name in ("nothing kept", "uncut")]
    half = curve["eap_ig", "signed", 0, 0.5]
    assert half["n_kept"] == 155 >= half["n_connected"]
    kept = half["scores"]["margin"]
    assert half["faithfulness"] == pytest.approx(
        (kept - margins[0]) / (margins[1] - margins[0])
    )
    for row in found["areas"]:
        own = (row["method"], row["order"], row["seed"])
        f = [curve[(*own, float(share))]["faithfulness"] for share in shares]
        by_hand = 0.4 * (f[0] + f[1]) / 2 + 0.5 * (f[1] + f[2]) / 2
        assert row["cpr"] == pytest.approx(by_hand)
    page = report.main(
        parse_config(report.ReportConfig, ["--runs", str(newest(tmp_path))])
    )
    assert (
        "keep at least 95 %" in page.read_text()
        or "no circuit measured" in page.read_text()
    )


@pytest.mark.slow
def test_shares_may_count_the_edges_of_mib(learned: list[str]):
    few = ["--fractions", "0.5", "1", "--n_batches", "2", "--methods", "eap"]
    edges = ["--units", "edges", "--merged_qkv", "true", "--n_random", "0"]
    found = measured([*learned, *few, *edges, "--count", "mib"])
    # two layers of eight heads: 25 readers of 1 and of 10 writers, and their own heads
    n_all = 25 * 1 + 8 + 25 * 10 + 8 + 19
    whole = [row for row in found["curve"] if row["fraction"] == 1.0]
    assert {row["n_counted"] for row in whole} == {n_all}
    assert {row["n_kept"] for row in whole} == {found["n_units"]}
    half = [row for row in found["curve"] if row["fraction"] == 0.5]
    for row in half:
        assert row["n_counted"] <= n_all // 2
        assert row["n_connected"] <= row["n_counted"] <= 3 * row["n_connected"]
        assert row["faithfulness"] is not None


def newest(tmp_path: Path) -> Path:
    return max((tmp_path / "runs").iterdir(), key=lambda path: path.stat().st_mtime)


@pytest.mark.slow
def test_faithfulness_without_a_mask_and_of_heads(learned: list[str]):
    few = ["--fractions", "0.5", "1", "--n_batches", "2"]
    found = measured(
        [*learned, *few, "--units", "heads", "--methods", "gradient_margin"]
    )
    assert found["units"] == ["heads"]
    assert [row["n_counted"] for row in found["curve"]] == [
        row["n_connected"] for row in found["curve"]
    ]
    assert {row["n_connected"] for row in found["curve"]} == {8, 16}
    assert found["curve"][0]["faithfulness"] is not None


def test_switches_of_the_graph_are_the_masks_own(flags: list[str]):
    switches = ["--attention_bias", "heads", "--position_node", "own"]
    usual = ["--units", "edges", "--attribution", "none", "--n_ablated", "4"]
    run = trained([*flags, *QUICK, *usual, *switches])
    graph = FrozenMask.load(run).sites[0].graph
    assert graph is not None
    assert (graph.attention_bias, graph.position) == ("heads", "own")
    # a reader of position more for each of 2 x (24 + 1) readers and the logits
    assert results(run)["n_units"] == graph.n_edges == 310 + 51
    config = parse_config(evaluate.EvaluateConfig, ["--mask", str(run), *flags[-2:]])
    scored = results(evaluate.main(config))["scores"]["cut"]
    assert scored == pytest.approx(results(run)["scores"]["cut"])


def test_a_mask_that_breaks_is_no_circuit(flags: list[str], tmp_path: Path):
    run = trained([*flags, *QUICK, "--units", "edges", "--attribution", "none"])
    with pytest.raises(UserError, match="--direction isolate"):
        measured(["--run_dir", str(tmp_path / "runs"), "--mask", str(run)])


def test_baselines_of_a_circuit_keep_what_they_find_responsible():
    task, model, site = ToyTask(), LinearTokens(), SITES["neurons"]
    experiment: Any = SimpleNamespace(task=task, loaded=SimpleNamespace(model=model))
    rankings = {}
    for direction in ("break", "isolate"):
        mask = FrozenMask(
            {site.name: torch.ones(site.n_units, dtype=torch.bool)},
            (site,),
            zero_values([site]),
            provenance={"direction": direction},
        )
        rankings[direction] = attribution_ranking(
            experiment, mask, "gradient_margin", seed=0, n_batches=2
        )[site.name]
    responsible = METHODS["gradient_margin"](
        task, model, [site], zero_values([site]), n_batches=2
    )[site.name]
    assert torch.equal(rankings["break"], -responsible)
    assert torch.equal(rankings["isolate"], responsible.abs())
