"""A random decoder of SmolLM2's depth: its cut is named, drawn, warned of, reported."""

import itertools
import json
import logging
import re
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from circuitcut.experiments import describe
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.scripts import evaluate, relearn, report, train_mask
from circuitcut.training.config import parse_config

NAMES = "Ann Bob Cid Dan Eve Fay Gus Hal Ida Jim Kim Lea Max Ned Oda Pam Quin Ray Sam "
NAMES += "Tom Una Vic Wes Xena Yves Zoe"
N_LAYERS, N_HEADS = 30, 9
QUICK = ["--n_steps", "2", "--n_random", "1", "--batch_size", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a few prompts and of a folder with the model."""
    folder = tmp_path_factory.mktemp("deep")
    pairs = list(itertools.permutations(NAMES.split(), 2))[::5][:120]
    prompts = [f"Then, {a} and {b} met. {b} gave a book to" for a, b in pairs]
    lines = [f'"{text}",{a}' for text, (a, _) in zip(prompts, pairs, strict=True)]
    (folder / "prompts.csv").write_text("\n".join(["prompt,answer", *lines]))
    tokenizer = train_tokenizer(
        prompts, "word", is_decoder=True, vocab_size=200, max_length=32
    )
    config = LlamaConfig(
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=3,
        vocab_size=len(tokenizer),
        max_position_embeddings=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    data = ["--data", str(folder / "prompts.csv"), "--model", str(folder / "model")]
    return ["--task", "ioi", *data, "--max_length", "32"]


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def trained(*flags: str) -> Path:
    return train_mask.main(parse_config(train_mask.TrainMaskConfig, list(flags)))


def reported(*runs: Path) -> str:
    flags = ["--runs", *map(str, runs)]
    return report.main(parse_config(report.ReportConfig, flags)).read_text()


@pytest.mark.slow
def test_cut_heads_are_named_mapped_and_a_cut_in_vain_is_warned_of(
    task: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    softly: list[float] = []
    gated = describe.gated

    def counting(model: Any, sites: Any, gates: Any, *more: Any, **named: Any) -> Any:
        softly.append(float(sum((1 - gate).sum() for gate in gates.values())))
        return gated(model, sites, gates, *more, **named)

    monkeypatch.setattr(describe, "gated", counting)
    where = ["--run_dir", str(tmp_path / "runs"), "--device", "cpu"]
    cut = ["--units", "heads", "--n_ablated", "8", "--attribution", "none"]
    run = trained(*task, *QUICK, *cut, *where)
    heads = results(run)["heads"]
    assert softly
    assert softly == pytest.approx([8.0] * len(softly), abs=1e-3)  # before rounding
    assert len(heads["names"]) == 8
    assert len(heads["layers"]) == N_LAYERS
    mask = FrozenMask.load(run)
    by_hand = [
        f"a{site.layer}.h{head}"
        for site in mask.sites
        for head in (~mask.keep[site.name]).nonzero()[:, 0].tolist()
    ]
    assert heads["names"] == by_hand
    lowest = sorted(
        (score, f"a{layer['layer']}.h{head}")
        for layer in heads["layers"]
        for head, score in enumerate(layer["scores"])
    )
    assert {name for _, name in lowest[:8]} == set(by_hand)
    said = capsys.readouterr().out
    assert f"ablated: {', '.join(by_hand)}" in said
    # an untrained model has nothing to lose
    warning = results(run)["warning"]
    assert warning is not None
    assert f"warning: {warning}" in said

    page = reported(run)
    assert f"Heads ablated (8): {', '.join(by_hand)}." in page
    assert (run / "figures" / "heads_by_layer.png").exists()
    for column in ("logit difference (nats)", "top-1 accuracy", "KL to uncut, conce"):
        assert f'<th scope="col">{column}' in page
    assert "chance (a guess)</td><td>0.500</td><td>0.000</td>" in page
    assert f"Warning: {warning}" in page

    few = ["--n_steps", "1", "--limits", "2", "--seeds", "0", "--n_evaluations", "1"]
    few += ["--no_probe", "--no_redistribute", "--batch_size", "4"]
    flags = ["--mask", str(run), *few, *where]
    with caplog.at_level(logging.WARNING):
        again = relearn.main(parse_config(relearn.RelearnConfig, flags))
    assert f"{warning} Its relearning shows no recovery." in caplog.text
    assert results(again)["warning"] == warning
    assert f"Warning: {warning}" in reported(again)
    measured = evaluate.main(
        parse_config(evaluate.EvaluateConfig, ["--mask", str(run), *where])
    )
    assert results(measured)["heads"] == heads
    assert results(measured)["direction"] == "break"


@pytest.mark.slow
def test_edges_of_any_number_are_named_and_drawn_within_a_screen(
    task: list[str], tmp_path: Path
):
    where = ["--run_dir", str(tmp_path / "runs")]
    edges = ["--units", "edges", "--attribution", "none"]
    few = trained(*task, *QUICK, *where, *edges, "--n_ablated", "8")
    found = results(few)
    assert found["n_units"] == 70_651
    assert len(found["edges"]) == 8 == len(found["circuit"]["edges"])
    page = reported(few)
    assert all(escape(name) in page for name in found["edges"])
    ((wide, high),) = re.findall(
        r'class="circuit".*?width="(\d+)" height="(\d+)"', page
    )
    assert int(wide) <= 1000
    assert int(high) <= 800

    kept = ["--direction", "isolate", "--n_ablated", str(70_651 - 1413)]
    many = trained(*task, *QUICK, *where, *edges, *kept)
    names = results(many)["edges"]
    assert len(names) == 1413 == len(results(many)["circuit"]["edges"])
    page = reported(few, many)
    assert all(escape(name) in page for name in names)
    sizes = re.findall(r'class="circuit".*?width="(\d+)" height="(\d+)"', page)
    assert len(sizes) == 2
    assert all(int(w) <= 1000 and int(h) <= 800 for w, h in sizes)
    headings = re.findall(r'<h2 id="run-(\d)">.*?<small>run (.*?)</small>', page)
    assert headings == [("1", few.name), ("2", many.name)]
    opening = page[page.index('class="opening"') : page.index("<details")]
    assert [opening.count(f">{run.name}</a>: ") for run in (few, many)] == [1, 1]
