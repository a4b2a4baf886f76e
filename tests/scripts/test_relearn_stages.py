"""The study in stages: from a corpus to every record, killed and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitcut.data.ner.generated import generate_ner
from circuitcut.reports.html import write_report
from circuitcut.scripts import relearn_stages
from circuitcut.storage.atomic import read_json, read_tensors
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_config
from circuitcut.training.tracking import Tracker

SMALL = ["--base_steps", "60", "--base_recipe", "d_model=16", "vocab_size=300"]
SMALL += ["--epochs", "0.5", "--n_stages", "2", "--shares", "0.1", "0.5"]
SMALL += ["--batch_size", "8"]
SMALL += ["--seeds", "0", "1", "--device", "cpu"]
N_LEVELS, WIDTH = 3, 16


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 400 generated sentences."""
    sentences = generate_ner(0).splits["relearn"][:400]
    lines = [
        "".join(f"{w}\t{t}\n" for w, t in zip(s.words, s.tags, strict=True))
        for s in sentences
    ]
    path = tmp_path_factory.mktemp("corpus") / "corpus.conll"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def flags(corpus: Path, tmp_path: Path) -> list[str]:
    place = ["--data", str(corpus), "--run_dir", str(tmp_path / "runs")]
    return ["--model", "tiny-encoder", *place, *SMALL]


def studied(flags: list[str]) -> Path:
    return relearn_stages.main(parse_config(relearn_stages.RelearnStagesConfig, flags))


def records(run: Path) -> dict[str, bytes]:
    """Every file of the seeds whose bytes are the same in every run."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / "seeds").rglob("*"))
        if path.is_file() and path.name != "rankings.json"  # it has seconds
    }


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_bits(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    whole = studied(flags)
    log, n_logged = Tracker.scalars, 0

    def scalars(self: Tracker, step: int, values: dict[str, float]) -> None:
        nonlocal n_logged
        if n_logged == 40:  # within a stage of the second arm
            raise RuntimeError("the machine went away")
        n_logged += 1
        log(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "scalars", scalars)
        with pytest.raises(RuntimeError, match="went away"):
            studied(flags)
    [killed] = [p for p in (tmp_path / "runs").iterdir() if p != whole]
    before = records(killed)
    assert 0 < len(before) < len(records(whole))
    studied(["--resume", str(killed)])
    after = records(killed)
    assert after == records(whole)
    assert {name: after[name] for name in before} == before
    entries = [RunDirectory.open(run).metrics() for run in (killed, whole)]
    assert entries[0] == entries[1]
    found, expected = (read_json(run / "results.json") for run in (killed, whole))
    for results in (found, expected):
        del results["next"], results["rankings"]["seconds"]
    assert found == expected
    _check_results(found)
    _check_records(killed, found)
    page = write_report([killed], tmp_path / "report.html").read_text()
    assert "Scores at every stage" in page
    with pytest.raises(UserError, match="is finished"):
        studied(["--resume", str(killed)])


def _check_results(results: dict[str, Any]) -> None:
    assert [level["n_units"] for level in results["levels"]] == [WIDTH] * N_LEVELS
    assert results["n_units"] == N_LEVELS * WIDTH
    assert results["retrained"] == [results["choice"]["share"]]
    assert {row["stage"] for row in results["summary"]} == {0, 1, 2}
    by_stage: dict[Any, float] = {}
    for row in results["stages"]:
        arm = row["share"], row["condition"], row["holding"], row["stage"]
        by_stage[arm] = by_stage.get(arm, 0.0) + row["salient_share"]
    assert all(total == pytest.approx(1.0) for total in by_stage.values())
    held = [r for r in results["stages"] if r["holding"] == "lasting"]
    n = round(results["retrained"][0] * N_LEVELS * WIDTH)
    for stage in range(3):
        cut = [r for r in held if (r["condition"], r["stage"]) == ("cut", stage)]
        random = [r for r in held if (r["condition"], r["stage"]) == ("random", stage)]
        out = [row["n_left_out"] for row in cut]
        assert sum(out) == n
        assert out == [row["n_left_out"] for row in random]
    uncut = [r for r in results["similarity"] if r["condition"] == "uncut"]
    first = next(r for r in uncut if (r["one"], r["other"]) == (None, 0))
    assert (first["n_units"], first["similarity"]) == (0, None)  # the same words
    assert len(results["took_over"]) > 0
    for row in results["took_over"]:
        assert 0 <= row["level"] < N_LEVELS
        assert 0 <= row["unit"] < WIDTH
        assert len(row["words"]) == len(row["saliency"]) == 4


def _check_records(run: Path, results: dict[str, Any]) -> None:
    words = read_json(run / "words.json")
    arms = run / "seeds" / "seed-1" / "arms"
    assert sorted(path.name for path in arms.iterdir())[-1] == "uncut"
    for row in results["arms"]:
        assert (run / row["folder"] / "stage-0" / "stage.json").exists()
        if row["condition"] == "random":
            cut = row | {"condition": "cut", "folder": None}
            same = [r | {"folder": None} for r in results["arms"]]
            assert cut in same  # as many units at every level
    for stage in arms.glob("*/stage-*"):
        header = read_json(stage / "stage.json")
        tensors = read_tensors(stage / "units.safetensors")
        assert header["seed"] == 1
        assert tensors["score"].shape == (N_LEVELS * WIDTH,)
        assert tensors["top_words"].max() < len(words["words"])
        if header["holding"] == "lasting":
            assert torch.equal(tensors["pruned"], tensors["constant"])
            assert (tensors["top_words"][tensors["pruned"]] == -1).all()
            assert tensors["saliency"][tensors["pruned"]].isnan().all()
        assert (stage / "weights.safetensors").exists() == (header["stage"] > 0)
    rankings = read_tensors(run / "seeds/seed-1/base/rankings.safetensors")
    assert list(results["rankings"]["names"]) == [
        "probeless",
        "probeless_labels",
        "linear_l2",
        "gradient_margin",
        "random",
    ]
    assert set(rankings) == set(results["rankings"]["names"])


@pytest.mark.slow
def test_a_decoder_and_a_fresh_mask(flags: list[str], tmp_path: Path):
    flags[1] = "tiny-decoder"
    flags += ["--seeds", "0", "--ranking", "learned", "--compare", "none"]
    flags += ["--fresh_masks", "last", "--mask_steps", "6", "--retrain", "0.5"]
    flags += ["--conditions", "cut", "--n_stages", "1"]
    results = read_json(studied(flags) / "results.json")
    assert results["choice"] is None
    one_shot = [r for r in results["scan"] if r["holding"] == "one_shot"]
    lasting = [r for r in results["scan"] if r["holding"] == "lasting"]
    assert one_shot[-1]["n_pruned"] <= lasting[-1]["n_pruned"] == 24
    last = [r for r in results["stages"] if r["stage"] == 1]
    for holding in ("lasting", "one_shot"):
        shares = [r["fresh_share"] for r in last if r["holding"] == holding]
        assert sum(shares) == pytest.approx(1.0)
    [row] = [
        r for r in results["overlap"] if (r["holding"], r["stage"]) == ("lasting", 1)
    ]
    assert row["fresh_with_pruned"] == 0.0  # held units have no gate


@pytest.mark.slow
def test_word_vectors_are_read_for_the_words_they_have(
    flags: list[str], tmp_path: Path
):
    file = tmp_path / "vectors.txt"
    file.write_text("2 3\nthe 1 0 0\nin 0 1 0\n")
    flags += ["--seeds", "0", "--word_vectors", str(file), "--retrain", "0.1"]
    flags += ["--conditions", "cut", "--n_stages", "1", "--holdings", "lasting"]
    run = studied(flags)
    vectors = read_tensors(run / "seeds/seed-0/base/vectors.safetensors")["vectors"]
    words = read_json(run / "words.json")["words"]
    assert vectors[words.index("the")].tolist() == [1.0, 0.0, 0.0]
    assert (~vectors.isnan().any(1)).sum() == 2 + ("The" in words) + ("In" in words)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--shares", "0.99999"], "leaves none of the 48 hidden units"),
        (["--shares", "0.001"], "prunes none of the 48 hidden units"),
        (["--retrain", "0.1", "0.999"], "leaves none"),
        (["--concept", "MISC"], "LOC"),
    ],
)
def test_bad_input_is_refused_before_a_run_begins(
    more: list[str], said: str, flags: list[str], tmp_path: Path
):
    with pytest.raises(UserError, match=said):
        studied([*flags, *more])
    assert not list((tmp_path / "runs").glob("*"))


def test_vectors_without_any_of_the_words_are_refused_before_a_run_begins(
    flags: list[str], tmp_path: Path
):
    file = tmp_path / "vectors.txt"
    file.write_text("zzz 1 0\n")
    with pytest.raises(UserError, match=r"none of the \d+ words"):
        studied([*flags, "--word_vectors", str(file)])
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shares", "1.5"], "--shares must be a number"),
        (["--retrain", "auto", "0.1"], "--retrain must be shares, or auto alone"),
        (["--ranking", "guess"], "--ranking must be among probeless"),
        (["--compare", "guess"], "--compare must be among"),
        (["--holdings", "twice"], "--holdings must be among"),
        (["--seeds", "-1"], "--seeds must be a whole number"),
        (["--n_stages", "0"], "--n_stages must be a whole number"),
        (["--epochs", "0"], "--epochs must be a number"),
        (["--task", "mnist"], "no words to read"),
        (["--word_vectors", "nowhere.txt"], "must be an existing file"),
    ],
)
def test_wrong_flags_are_refused_at_once(flags: list[str], said: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_config(relearn_stages.RelearnStagesConfig, flags)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_stage_of_another_base_model_stops_a_resumed_run(
    flags: list[str], tmp_path: Path
):
    flags += ["--seeds", "0", "--conditions", "cut", "--holdings", "lasting"]
    run = studied([*flags, "--retrain", "0.1", "--n_stages", "1"])
    (run / "results.json").unlink()
    path = run / "seeds/seed-0/arms/cut-lasting-0.1/stage-1/stage.json"
    header = json.loads(path.read_text())
    header["made_with"]["base_sha256"] = "0" * 64
    path.write_text(json.dumps(header))
    kept = records(run)
    with pytest.raises(UserError, match="stage of another base model"):
        studied(["--resume", str(run)])
    assert records(run) == kept


@pytest.mark.parametrize(
    ("left", "of_rest", "said"),
    [
        (0.05, 0.9, None),
        (0.05, None, None),
        (0.6, 0.9, "leaves 60% of the concept's ability: name larger --shares"),
        (0.07, 0.01, "7% of the concept's ability and 1% of the rest's"),
        (None, None, None),
    ],
)
def test_a_cut_of_too_little_or_of_everything_is_said_to_show_nothing(
    left: float | None,
    of_rest: float | None,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(relearn_stages, "warning_of_base", lambda experiment: None)
    named = {"share": 0.1, "condition": "cut", "holding": "lasting"}
    rows = [
        named | {"condition": "random", "stage": 0, "concept": 1.0, "retain": 1.0},
        named | {"stage": 0, "concept": left, "retain": of_rest},
        named | {"stage": 1, "concept": 0.99, "retain": 0.1},
    ]
    experiment: Any = None
    found = relearn_stages._warning(experiment, {"relearned": rows})
    assert (found is None) if said is None else said in (found or "")
