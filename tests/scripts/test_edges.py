"""Edges end to end on a few prompts: train, freeze, evaluate, attribute, report."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from masks.frozen_mask import FrozenMask
from scripts import attribute, evaluate, relearn, report, train_mask
from storage.errors import UserError
from training.config import parse_config

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
    assert list(found["scores"]["attribution"]) == ["gradient_margin"]
    mask = FrozenMask.load(run)
    assert mask.special_ids == ()
    assert mask.edges(kept=False) == found["edges"]
    said = capsys.readouterr().out
    assert f"ablated: {found['edges'][0]}" in said
    assert "next: python scripts/relearn.py" in said
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
    with pytest.raises(UserError, match="queries, keys and values apart False against"):
        trained([*flags, *QUICK, *superset])


@pytest.mark.slow
def test_attribution_ranks_edges_with_counterfactual_values(flags: list[str]):
    edges = [*flags, "--units", "edges", "--ablation", "counterfactual"]
    ranking = ["--sizes", "3", "--n_batches", "1", "--methods", "all"]
    config = parse_config(attribute.AttributeConfig, [*edges, *ranking])
    methods = {row["method"] for row in results(attribute.main(config))["curve"]}
    assert {"gradient_concept_loss", "gradient_margin", "greedy_margin"} < methods
    assert not {"probeless", "gradient_margin_over_retain"} & methods


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--units", "edges", "hidden"], "edges beside neurons and heads only"),
        (["--units", "edges", "weights"], "edges beside neurons and heads only"),
        (["--units", "edges", "--attribution", "probeless"], "cannot rank edges"),
        (["--units", "edges", "--layers", "3"], "layers 0 to 2"),
        (["--units", "heads", "--merged_qkv", "true"], "merged_qkv is about edges"),
    ],
)
def test_what_edges_cannot_do_is_refused_before_any_training(
    more: list[str], message: str, flags: list[str], cache: Path
):
    before = set(cache.rglob("*"))
    with pytest.raises(UserError, match=message):
        trained([*flags, *QUICK, "--base_seed", "7", *more])
    assert set(cache.rglob("*")) == before
