"""Exact patching and ACDC as runs: rankings, baselines of a learned mask, circuits."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.scripts import attribute, evaluate, faithfulness, report, train_mask
from circuitcut.storage.atomic import read_tensors
from circuitcut.training.config import parse_config

NAMES = ["Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jim", "Kim"]
NAMES += ["Lea", "Max", "Ned", "Oda", "Pam", "Quin", "Ray", "Sam", "Tom", "Una", "Vic"]
# of 134 merged edges the 19 into the logits: ACDC runs the model for each, often
EDGES = ["--units", "edges", "--merged_qkv", "true", "--layers", "2"]
BOTH = ["patching", "acdc"]


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A table of 60 prompts and a base model of few steps."""
    pairs = list(itertools.permutations(NAMES, 2))[::7][:60]
    lines = [f'"Then, {a} and {b} met. {b} gave a book to",{a}' for a, b in pairs]
    path = tmp_path / "prompts.csv"
    path.write_text("\n".join(["prompt,answer", *lines]))
    return [
        *("--task", "ioi", "--data", str(path), "--base_steps", "4"),
        *("--device", "cpu", "--run_dir", str(tmp_path / "runs"), "--n_heldout", "8"),
    ]


def results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


def ranked(flags: list[str]) -> Path:
    config = parse_config(attribute.AttributeConfig, [*flags, "--n_batches", "1"])
    return attribute.main(config)


@pytest.mark.parametrize(
    ("units", "methods"), [(["--units", "heads"], BOTH[:1]), (EDGES, BOTH)]
)
def test_a_run_ranks_every_unit_and_cuts_the_highest(
    units: list[str], methods: list[str], flags: list[str]
):
    run = ranked([*flags, *units, "--sizes", "1", "3", "--methods", *methods])
    curve = results(run)["curve"]
    assert [(row["method"], row["n_ablated"]) for row in curve] == [
        (method, size) for method in methods for size in (1, 3)
    ]
    for method in methods:
        # what is kept longest is highest, and the three lowest are cut
        order = read_tensors(run / f"{method}.ranking.safetensors")
        mask = FrozenMask.load(run / "masks" / f"{method}-3")
        values = [
            (float(value), bool(keep))
            for site in mask.sites
            for value, keep in zip(order[site.name], mask.keep[site.name], strict=True)
        ]
        cut = [value for value, keep in values if not keep]
        assert len(cut) == 3
        assert max(cut) <= min(value for value, keep in values if keep)
        if method == "acdc":  # places in the order of removal
            assert sorted(-value for value, _ in values) == list(range(1, 20))
    page = report.main(parse_config(report.ReportConfig, ["--runs", str(run)]))
    names = {"patching": "exact patching", "acdc": "ACDC"}
    assert all(names[method] in page.read_text() for method in methods)


@pytest.mark.slow
def test_they_stand_beside_a_learned_mask_and_in_its_evaluation(flags: list[str]):
    trained = train_mask.main(
        parse_config(
            train_mask.TrainMaskConfig,
            [
                *(*flags, *EDGES, "--n_steps", "2", "--batch_size", "4"),
                *("--n_ablated", "4", "--n_random", "1", "--start", "patching"),
                *("--attribution", *BOTH, "--attribution_batches", "1"),
            ],
        )
    )
    beside = results(trained)["scores"]["attribution"]
    assert list(beside) == BOTH
    again = [
        *("--mask", str(trained), "--methods", *BOTH, "--sizes", "4"),
        *("--attribution_batches", "1", *flags[4:]),
    ]
    measured = evaluate.main(parse_config(evaluate.EvaluateConfig, again[:-2]))
    rows = {
        row["method"]: row["scores"]
        for row in results(measured)["curve"]
        if row["n_ablated"] == 4
    }
    for method in BOTH:
        own = {name: beside[method][name] for name in rows[method]}
        assert rows[method] == pytest.approx(own), method


@pytest.mark.slow
def test_circuits_of_their_rankings_end_with_the_whole_model(flags: list[str]):
    found = results(
        faithfulness.main(
            parse_config(
                faithfulness.FaithfulnessConfig,
                [
                    *(*flags, *EDGES, "--methods", *BOTH, "--n_batches", "1"),
                    *("--fractions", "0.5", "1", "--n_random", "0"),
                ],
            )
        )
    )
    curve = {
        (row["method"], row["order"], row["fraction"]): row for row in found["curve"]
    }
    # ACDC's places have no sign
    assert {key[:2] for key in curve} == {
        ("patching", "signed"),
        ("patching", "absolute"),
        ("acdc", "signed"),
    }
    for (_, _, fraction), row in curve.items():
        assert row["n_kept"] == (19 if fraction == 1 else 9)
        if fraction == 1:
            uncut = found["scores"]["uncut"]
            assert row["scores"]["margin"] == pytest.approx(uncut["margin"])
            assert row["scores"]["kl_concept"] == pytest.approx(0, abs=1e-6)
