"""Masks to files and back through the scripts, and what they refuse."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.scripts import (
    attribute,
    evaluate,
    export_mask,
    import_mask,
    report,
    train_mask,
)
from circuitcut.storage.errors import UserError
from circuitcut.training.config import parse_config
from tests.scripts.test_bad_input import refused

NAMES = "Ann Bob Cid Dan Eve Fay Gus Hal Ida Jim Kim Lea Max Ned Oda Pam Quin Ray Sam "
NAMES += "Tom Una Vic Wes Xena Yves Zoe"
QUICK = ["--n_steps", "2", "--n_random", "0", "--batch_size", "4"]
ENDINGS = {"mib": "json", "edges": "json"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a task with few prompts and of a model of four steps."""
    pairs = list(itertools.permutations(NAMES.split(), 2))[::5][:120]
    lines = [f'"Then, {a} and {b} met. {b} gave a book to",{a}' for a, b in pairs]
    path = tmp_path_factory.mktemp("data") / "prompts.csv"
    path.write_text("\n".join(["prompt,answer", *lines]))
    return ["--task", "ioi", "--data", str(path), "--base_steps", "4"]


@pytest.fixture(scope="module")
def runs(
    task: list[str], cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run with edges apart under counterfactual cuts, one merged under zero ones."""
    parent = tmp_path_factory.mktemp("runs")
    edges = [*task, *QUICK, "--device", "cpu", "--run_dir", str(parent)]
    edges += ["--units", "edges", "--n_ablated", "9", "--attribution", "none"]
    merged = ["--merged_qkv", "1", "--ablation", "zero", "--n_ablated", "12"]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUITCUT_CACHE", str(cache))
        for name, more in (
            ("apart", ["--ablation", "counterfactual"]),
            ("merged", merged),
        ):
            config = parse_config(train_mask.TrainMaskConfig, [*edges, *more])
            found[name] = train_mask.main(config)
    return found


def exported(*flags: str) -> Path:
    return export_mask.main(parse_config(export_mask.ExportConfig, list(flags)))


def imported(*flags: str) -> Path:
    return import_mask.main(parse_config(import_mask.ImportConfig, list(flags)))


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def measured(run: Path, parent: Path) -> dict[str, float]:
    flags = ["--mask", str(run), "--run_dir", str(parent), "--device", "cpu"]
    path = evaluate.main(parse_config(evaluate.EvaluateConfig, flags))
    return results(path)["scores"]["cut"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mib", "apart"),
        *(
            pytest.param(name, kind, marks=pytest.mark.slow)
            for name, kind in (
                ("auto_circuit", "apart"),
                ("edge_pruning", "apart"),
                ("edges", "apart"),
                ("circuit_breaking", "merged"),
            )
        ),
        ("edges", "merged"),
    ],
)
def test_a_mask_that_went_and_came_back_scores_the_same(
    name: str, kind: str, runs: dict[str, Path], task: list[str], tmp_path: Path
):
    file = tmp_path / f"mask.{ENDINGS.get(name, 'safetensors')}"
    ablation = "counterfactual" if kind == "apart" else "zero"
    path = ["--file", str(file), "--format", name, "--ablation", ablation]
    different = ["--allow_difference", "1"] if name == "circuit_breaking" else []
    exported(
        "--mask", str(runs[kind]), "--format", name, "--out", str(file), *different
    )
    run = imported(*path, *task, "--device", "cpu", "--run_dir", str(tmp_path / "runs"))
    mask, before = FrozenMask.load(run), FrozenMask.load(runs[kind])
    if name in ("auto_circuit", "edges"):
        assert mask.edges(kept=False) == before.edges(kept=False)
    found, expected = (measured(path, tmp_path / "runs") for path in (run, runs[kind]))
    if name != "circuit_breaking":  # there heads hold a share of the bias
        assert found == pytest.approx(expected, abs=1e-5)
    assert results(run)["n_ablated"] == mask.n_ablated


def test_scores_go_with_the_mask_and_choose_it_again(
    runs: dict[str, Path], task: list[str], tmp_path: Path
):
    run, file = runs["apart"], tmp_path / "graph.json"
    exported("--mask", str(run), "--format", "mib", "--out", str(file))
    entries = json.loads(file.read_text())["edges"]
    assert sum(not entry["in_graph"] for entry in entries.values()) == 9
    assert len({entry["score"] for entry in entries.values()}) > 100
    flags = ["--file", str(file), "--n_kept", "301", *task, "--device", "cpu"]
    flags += ["--run_dir", str(tmp_path / "runs")]
    again = imported(*flags, "--order", "signed")
    edges = results(run)["edges"]
    assert FrozenMask.load(again).edges(kept=False) == edges
    assert results(again)["circuit"]["edges"] == edges
    by_size = imported(*flags)
    assert FrozenMask.load(by_size).edges(kept=False) != edges
    cut = tmp_path / "cut.json"
    complement = ["--circuit", "ablated", "--out", str(cut)]
    exported("--mask", str(run), "--format", "mib", *complement)
    there = json.loads(cut.read_text())["edges"]
    assert {name for name, entry in there.items() if entry["in_graph"]} == set(edges)
    top = sorted(there, key=lambda name: -there[name]["score"])[:9]
    assert set(top) == set(edges)


def test_scores_of_attribution_are_a_graph_whose_top_edges_it_cuts(
    task: list[str], tmp_path: Path
):
    flags = [*task, "--units", "edges", "--methods", "gradient_margin", "--sizes", "7"]
    flags += ["--ablation", "counterfactual", "--n_batches", "1", "--device", "cpu"]
    config = parse_config(
        attribute.AttributeConfig, [*flags, "--run_dir", str(tmp_path)]
    )
    run = attribute.main(config)
    mask, file = run / "masks" / "gradient_margin-7", tmp_path / "importances.json"
    scores = ["--scores", str(run / "gradient_margin.ranking.safetensors")]
    where = ["--mask", str(mask), "--out", str(file), "--circuit", "ablated"]
    exported(*where, *scores, "--format", "mib")
    edges = json.loads(file.read_text())["edges"]
    top = sorted(edges, key=lambda name: -edges[name]["score"])[:7]
    assert set(top) == set(FrozenMask.load(mask).edges(kept=False))
    assert {name for name, edge in edges.items() if edge["in_graph"]} == set(top)
    flags = ["--file", str(file), *task, "--device", "cpu", "--run_dir", str(tmp_path)]
    circuit = FrozenMask.load(imported(*flags))
    assert set(circuit.edges(kept=True)) == set(top)
    assert circuit.provenance["direction"] == "isolate"
    assert FrozenMask.load(mask).provenance["direction"] == "break"


def test_pictures_hold_the_edges_that_were_cut(runs: dict[str, Path], tmp_path: Path):
    run = runs["apart"]
    edges = results(run)["edges"]
    svg = exported("--mask", str(run), "--format", "svg", "--out", f"{tmp_path}/c.svg")
    said = [title.text or "" for title in ElementTree.parse(svg).iter()]
    said = [text.partition(": ")[0] for text in said if "->" in text]
    assert said == edges
    text = exported("--mask", str(run), "--format", "dot", "--out", f"{tmp_path}/c.dot")
    assert text.read_text().count(" -> ") == 9
    whole = ["--format", "graphml", "--out", f"{tmp_path}/c.graphml"]
    tree = ElementTree.parse(exported("--mask", str(run), *whole))
    assert len([e for e in tree.iter() if e.tag.endswith("edge")]) == 310
    page = report.main(parse_config(report.ReportConfig, ["--runs", str(run)]))
    assert page.read_text().count('class="edge"') == 9
    assert "The 9 ablated edges of 310; the other 301 are kept" in page.read_text()


@pytest.mark.parametrize(("kept", "word"), [(0, "ablates"), (1, "keeps")])
def test_a_picture_of_no_circuit_says_that_there_is_none(
    kept: int, word: str, runs: dict[str, Path], tmp_path: Path
):
    mask = FrozenMask.load(runs["apart"])
    keep = {name: torch.full_like(k, bool(kept)) for name, k in mask.keep.items()}
    folder = tmp_path / "mask"
    replace(mask, keep=keep).save(folder)
    out = tmp_path / "c.svg"
    told = f"this mask {word} all 310 edges: there is no circuit to draw"
    with pytest.raises(UserError, match=told):
        exported("--mask", str(folder), "--format", "svg", "--out", str(out))
    assert not out.exists()


def test_an_imported_mask_is_reported(
    runs: dict[str, Path], task: list[str], tmp_path: Path
):
    file = tmp_path / "edges.json"
    exported("--mask", str(runs["apart"]), "--format", "edges", "--out", str(file))
    flags = ["--file", str(file), "--format", "edges", "--name", "mine", *task]
    run = imported(*flags, "--device", "cpu", "--run_dir", str(tmp_path / "runs"))
    assert run.name == "mine"
    page = report.main(parse_config(report.ReportConfig, ["--runs", str(run)]))
    assert "ablates 9 of 310 units" in page.read_text()


def test_what_cannot_be_exported_is_refused_and_nothing_written(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    apart, merged = str(runs["apart"]), str(runs["merged"])
    out = tmp_path / "out.json"
    for flags, told in (
        (["--out", str(out)], "--mask is needed"),
        (["--mask", apart], "--out is needed"),
        (["--mask", apart, "--out", str(out), "--format", "gif"], "graphml"),
        (["--mask", "nowhere", "--out", str(out)], "missing folder nowhere"),
        (["--mask", merged, "--out", str(out)], "--allow_difference"),
        (["--mask", apart, "--out", str(out), "--format", "disco_gp"], ".safetensors"),
        (["--mask", apart, "--out", str(out), "--scores", "none.st"], "none.st"),
    ):
        module, config = export_mask, export_mask.ExportConfig
        assert told in refused(module, config, flags, monkeypatch, capsys), flags
        assert not out.exists()
    out.write_text("mine")
    flags = ["--mask", apart, "--out", str(out)]
    said = refused(export_mask, export_mask.ExportConfig, flags, monkeypatch, capsys)
    assert "exists; choose another name" in said
    assert out.read_text() == "mine"


def test_a_mask_on_other_units_is_refused(
    task: list[str], tmp_path: Path, runs: dict[str, Path]
):
    mask = FrozenMask.load(runs["apart"])
    sites = [vars(site) | {"kind": "heads", "graph": None} for site in mask.sites[:1]]
    heads = tuple(type(mask.sites[0])(**site) for site in sites)
    keep = {heads[0].name: torch.ones(heads[0].n_units).bool()}
    FrozenMask(keep, heads, mask.ablated).save(tmp_path)
    with pytest.raises(UserError, match="must cut edges alone, got a mask on heads"):
        exported("--mask", str(tmp_path), "--out", str(tmp_path / "x.json"))


def test_a_bad_file_is_refused_before_any_training(
    task: list[str],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    file = tmp_path / "graph.json"
    cfg = {"n_layers": 12, "n_heads": 12, "d_model": 768}
    file.write_text(json.dumps({"cfg": cfg, "nodes": {}, "edges": {}}))
    new = [*task, "--base_seed", "9", "--run_dir", str(tmp_path / "runs")]
    before = set(cache.rglob("*"))
    for flags, told in (
        ([], "--file must be a file"),
        (["--file", str(tmp_path / "none")], "--file must be a file"),
        (["--file", str(file)], "n_layers 12 against 2 here; n_heads 12 against 8"),
        (["--file", str(file), "--format", "disco_gp"], "may hold code"),
        (["--file", str(file), "--format", "what"], "circuit_breaking"),
        (["--file", str(file), "--n_kept", "-1"], "--n_kept"),
        (["--file", str(file), "--task", "toxicity"], "counterfactual"),
    ):
        module, config = import_mask, import_mask.ImportConfig
        wanted = [*new, *flags] if "--task" not in flags else flags
        assert told in refused(module, config, wanted, monkeypatch, capsys), flags
    assert set(cache.rglob("*")) == before
    assert not list((tmp_path / "runs").glob("*"))
