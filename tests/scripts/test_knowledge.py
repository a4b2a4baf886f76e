"""knowledge.py: units as published, controls, a mask for other scripts, resuming."""

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from circuitcut.experiments.knowledge import edits, study
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loading import load_model
from circuitcut.scripts import attribute, evaluate, knowledge
from circuitcut.storage.errors import UserError
from circuitcut.training.config import parse_config

SMALL = [
    *("--base_steps", "120", "--device", "cpu", "--n_facts", "12", "--most_facts", "8"),
    *("--n_paraphrases", "3", "--n_steps", "5", "--n_others", "3", "--n_heldout", "8"),
]


def run(tmp_path: Path, *flags: str) -> Path:
    given = [*SMALL, *flags, "--run_dir", str(tmp_path / "runs")]
    return knowledge.main(parse_config(knowledge.KnowledgeConfig, given))


def results(path: Path) -> Any:
    return json.loads((path / "results.json").read_text())


def test_units_effects_mask_and_checkpoint_of_the_built_in_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--to_mask", "facts", "--n_ablated", "5", "--bake", "suppress"]
    path = run(tmp_path, *flags, "--negatives", "others", "--negative_share", "0.5")
    n_facts = results(path)["facts"]["n_facts"]
    assert 4 <= n_facts <= 8  # of the eight that are asked for; by the base model
    assert f"{n_facts} of" in capsys.readouterr().out
    found = json.loads((path / "neurons.json").read_text())
    assert len(found["facts"]) == n_facts
    for fact in found["facts"]:
        assert len(fact["prompts"]) == 3
        for prompt in fact["prompts"]:
            assert {"text", "gold", "predicted", "probability", "coarse"} == {*prompt}
        sets = [{tuple(unit) for unit in p["coarse"]} for p in fact["prompts"]]
        for unit in map(tuple, fact["refined"]):
            assert sum(unit in units for units in sets) >= 2
    measured = results(path)
    rows = {
        (row["on"], row["units"], row["operation"]): row for row in measured["effects"]
    }
    own = rows["own", "refined", "suppress"]
    assert own["change"] < 5 * rows["own", "random", "suppress"]["change"] - 0.05
    assert own["change"] < rows["others", "refined", "suppress"]["change"]
    assert own["change_interval"][0] <= own["change"] <= own["change_interval"][1]
    assert sum(layer["refined"] for layer in measured["layers"]) == pytest.approx(1)
    mask = FrozenMask.load(path)
    assert mask.n_ablated == measured["n_ablated"] == 5
    baked = load_model(str(path / "model"), head="language_model").model
    for site in mask.sites:
        weight = baked.get_submodule(site.module).weight  # Conv1D or (out, in)
        by_unit = weight if weight.shape[0] == site.n_units else weight.T
        assert (by_unit.abs().sum(1) == 0).tolist() == (~mask.keep[site.name]).tolist()
    config = parse_config(
        evaluate.EvaluateConfig,
        [
            *("--mask", str(path), "--run_dir", str(tmp_path / "runs")),
            *("--device", "cpu", "--n_heldout", "8"),
        ],
    )
    assert results(evaluate.main(config))["n_ablated"] == 5


SWEPT = ("found.jsonl", "effects.jsonl", "activity.jsonl", "neurons.json")


def joined(tmp_path: Path, shares: list[Path], *flags: str) -> Path:
    """The run that joins these shares, with their flags and some of its own."""
    given = ["--join", *map(str, shares), "--run_dir", str(tmp_path / "runs")]
    config = parse_config(
        knowledge.KnowledgeConfig,
        [*given, "--name", "joined", "--device", "cpu", *flags],
    )
    return knowledge.main(config)


@pytest.mark.slow
def test_joined_shares_are_the_files_of_one_process_bit_for_bit(tmp_path: Path):
    whole = run(tmp_path / "whole", "--name", "a")
    shares = [
        run(tmp_path, "--share", f"{place}/2", "--name", f"share{place}")
        for place in (1, 2)
    ]
    path = joined(tmp_path, shares, "--to_mask", "facts", "--n_ablated", "2")
    for file in SWEPT:
        assert (path / file).read_bytes() == (whole / file).read_bytes(), file
    units = sorted(path.relative_to(whole) for path in whole.glob("units/*.json"))
    assert units
    for file in units:
        assert (path / file).read_bytes() == (whole / file).read_bytes(), file
    one, other = results(whole), results(path)
    for entry in ("facts", "sizes", "effects", "groups", "activity", "triggers"):
        assert one[entry] == other[entry], entry
    assert other["n_ablated"] == 2
    share = results(shares[0])
    n = one["facts"]["n_facts"]
    assert share["facts"]["n_facts"] == -(-n // 2)
    flags = ["--processes", "2", "--name", "sweep", "--to_mask", "facts"]
    path = run(tmp_path, *flags, "--n_ablated", "2")
    for file in (*SWEPT, *units, "mask.safetensors"):
        one_process = tmp_path / "runs" / "joined" if "mask" in str(file) else whole
        assert (path / file).read_bytes() == (one_process / file).read_bytes(), file
    content = json.loads((whole / units[0]).read_text())
    assert content["language"] is None
    for fact in content["facts"]:
        for unit in fact["units"]:
            assert sum(unit in p["coarse"] for p in fact["prompts"]) >= 2


KILLED_AT_FACT_2 = """
import os, signal, sys
from circuitcut.experiments.knowledge import study
from circuitcut.scripts import knowledge
from circuitcut.training.config import parse_config

usual = study.Study._find

def killed(self, number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(self, number)

study.Study._find = killed
knowledge.main(parse_config(knowledge.KnowledgeConfig, sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_share_loses_nothing_and_is_joined_before_units_are_refined(
    tmp_path: Path,
):
    """By rules that need the units of other facts, which no share has."""
    rules = ["--refine", "original", "--negatives", "others", "--negative_share", ".5"]
    whole = run(tmp_path / "whole", *rules, "--name", "a")  # its base model is cached
    root = str(Path(__file__).parents[2])
    flags = [*rules, "--share", "1/2", "--name", "one"]
    where = ["--run_dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_FACT_2, *SMALL, *flags, *where],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    one = tmp_path / "runs" / "one"
    first = (whole / "found.jsonl").read_bytes().splitlines(keepends=True)[0]
    assert (one / "found.jsonl").read_bytes() == first
    run(tmp_path, *flags, "--resume", str(one))
    assert not (one / "effects.jsonl").exists()
    two = run(tmp_path, *rules, "--share", "2/2", "--name", "two")
    path = joined(tmp_path, [one, two])
    for file in SWEPT:
        assert (path / file).read_bytes() == (whole / file).read_bytes(), file


@contextmanager
def stopped_at_fact_5(method: str) -> Iterator[None]:
    """What stands in the block is interrupted there; other patches of a test stay."""
    usual = getattr(study.Study, method)

    def killed(self: Any, number: int, *pool: Any) -> Any:
        if number == 5:
            raise KeyboardInterrupt
        return usual(self, number, *pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.Study, method, killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_killed_run_continues_to_the_same_files(tmp_path: Path):
    flags = ["--grid", "gauss", "--refine", "original"]
    whole = run(tmp_path / "whole", *flags, "--name", "a")
    with stopped_at_fact_5("_find"):
        run(tmp_path, *flags, "--name", "a")
    path = tmp_path / "runs" / "a"
    with (path / "found.jsonl").open("a") as file:
        file.write('{"fact": 5, "subj')  # torn by the kill
    with stopped_at_fact_5("_effect"):
        run(tmp_path, *flags, "--resume", str(path))
    with pytest.raises(UserError, match=r"n_steps \(5 before, 6 now\)"):
        run(tmp_path, *flags, "--resume", str(path), "--n_steps", "6")
    assert run(tmp_path, *flags, "--resume", str(path)) == path
    for file in SWEPT:
        assert (path / file).read_bytes() == (
            tmp_path / "whole" / "runs" / "a" / file
        ).read_bytes(), file
    one, other = results(whole), results(path)
    assert one["effects"] == other["effects"]
    with pytest.raises(UserError, match="is finished"):
        run(tmp_path, *flags, "--resume", str(path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "ioi"], "--task must be facts"),
        (["--threshold", "0.1", "--adaptive", "0.2"], "give one of them"),
        (["--n_ablated", "3"], "--n_ablated is about a mask; give --to_mask"),
        (["--ablation", "mean"], "--ablation is about a mask; give --to_mask"),
        (["--percentile", "100"], "--percentile must be a number above 0"),
        (["--grid", "left"], "invalid choice"),
        (["--processes", "2"], "--processes needs a new run's --name"),
    ],
)
def test_a_wrong_flag_is_refused(flags: list[str], message: str, capsys: Any):
    with pytest.raises(SystemExit) as stopped:
        parse_config(knowledge.KnowledgeConfig, flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_mask_of_more_neurons_than_there_are_is_refused_before_the_search(
    tmp_path: Path,
):
    with pytest.raises(UserError, match=r"--n_ablated must be below the 1,024 neurons"):
        run(tmp_path, "--to_mask", "facts", "--n_ablated", "1024")
    assert not list((tmp_path / "runs").glob("*/found.jsonl"))


def test_a_model_that_knows_no_fact_is_refused_before_a_run_is_made(tmp_path: Path):
    with pytest.raises(UserError, match="know"):
        run(tmp_path, "--base_steps", "1")
    assert not list((tmp_path / "runs").glob("*/found.jsonl"))


def test_facts_are_edited_beside_random_units_and_those_of_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    of_task = [*SMALL[:6], "--n_paraphrases", "3", "--n_heldout", "8"]
    where = ["--run_dir", str(tmp_path / "runs"), "--task", "facts"]
    ranked = attribute.main(
        parse_config(
            attribute.AttributeConfig,
            [
                *(*of_task, *where, "--units", "neurons", "--sizes", "4"),
                *("--methods", "gradient_margin", "--n_batches", "2"),
            ],
        )
    )
    mask = ranked / "masks" / "gradient_margin-4"
    weights: list[torch.Tensor] = []
    usual = edits.BasePass.run

    def watched(model: Any, prompts: Any) -> Any:
        weights.append(parameters_to_vector(model.parameters()).detach().clone())
        return usual(model, prompts)

    monkeypatch.setattr(edits.BasePass, "run", watched)
    strengths: list[Any] = []
    edited = edits.edited

    def noted(*args: Any, **kwargs: Any) -> Any:
        strengths.append(kwargs["strengths"])
        return edited(*args, **kwargs)

    monkeypatch.setattr(edits, "edited", noted)
    flags = ["--mask", str(mask), "--edit", "plain", "--edit_shared", "1"]
    flags += ["--edit_strengths", "2", "2.5"]
    path = run(tmp_path, *flags, "--n_random", "2", "--most_edits", "2")
    found = results(path)["edits"]
    assert (found["formula"], results(path)["masks"]) == ("plain", [str(mask)])
    assert found["strengths"] == [2, 2.5]
    assert set(strengths) == {(2, 2.5)}
    lines, facts = (
        [json.loads(line) for line in (path / name).read_text().splitlines()]
        for name in ("edits.jsonl", "found.jsonl")
    )
    done = [line for line in lines if not line["left_out"]]
    assert found["n_edited"] == len(done) > 0
    assert sum(found["left_out"].values()) == len(lines) - len(done)
    by_relation = Counter(facts[line["fact"]]["relation"] for line in done)
    assert max(by_relation.values()) <= 2
    sets = {"refined", "one_prompt", "random", "gradient_margin"}
    assert all(set(line["sets"]) == {"before", *sets} for line in done)
    for line in done:
        assert line["sets"]["before"]["changed"] == 0  # the model is right before
    rows = {(row["units"], row["measure"]): row for row in found["rows"]}
    for units in sets:
        gains = [
            line["sets"][units]["probability"] - line["sets"]["before"]["probability"]
            for line in done
        ]
        row = rows[units, "probability"]
        assert row["gain"] == pytest.approx(sum(gains) / len(gains), abs=1e-9)
        logs = [line["sets"][units]["perplexity_outside"] for line in done]
        mean = math.exp(-sum(logs) / len(logs))
        assert rows[units, "perplexity_outside"]["after"] == pytest.approx(mean)
    # the object's probability falls and the target's rises more than by random units
    assert (
        rows["refined", "probability"]["gain"] > rows["random", "probability"]["gain"]
    )
    assert rows["refined", "rank"]["gain"] > rows["random", "rank"]["gain"]
    # weights differ inside the edits alone: found, one prompt, two random sets, mask
    is_edited = [not torch.equal(one, weights[0]) for one in weights]
    assert sum(is_edited) == 5 * len(done)
    assert not is_edited[-1]  # activations are measured after the edits
    effects = {row["units"] for row in results(path)["effects"]}
    assert effects == sets
    said = capsys.readouterr().out
    assert "as many of gradient x activation" in said or "as many of gradient" in said
    assert "target has rank 1" in said


def test_an_error_in_an_edit_leaves_the_weights_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Any] = []
    usual = edits.BasePass.run

    def fails(model: Any, prompts: Any) -> Any:
        vector = parameters_to_vector(model.parameters()).detach().clone()
        seen.append((model, vector))
        if not torch.equal(vector, seen[0][1]):  # inside the first edit
            raise RuntimeError("out of memory")
        return usual(model, prompts)

    monkeypatch.setattr(edits.BasePass, "run", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, "--edit_shared", "1", "--name", "a")
    model, first = seen[0]
    assert torch.equal(parameters_to_vector(model.parameters()), first)
