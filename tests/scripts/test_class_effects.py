"""class_effects.py on a tiny gated model: sets, draws, tables and refusals."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitcut.experiments.class_effects import progress
from circuitcut.models.saving import save_model
from circuitcut.scripts import class_effects, report
from circuitcut.storage.errors import UserError
from circuitcut.storage.stopping import Stopped
from circuitcut.training.config import parse_config
from circuitcut.weight_classes.names import CLASSES
from tests.models.tiny import tiny_loaded

WORDS = ("Mary", "went", "to", "Paris", "and", "John", "Rome", ",", "said", "Ann", ".")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny gated model and a text of 40 lines."""
    folder = tmp_path_factory.mktemp("effects")
    save_model(tiny_loaded("llama", "causal_lm"), folder / "model")
    rng = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(40):
        picks = torch.randint(len(WORDS), (15,), generator=rng).tolist()
        lines.append(" ".join(WORDS[i] for i in picks))
    (folder / "text.txt").write_text("\n".join(lines))
    return folder


def measured(folder: Path, tmp_path: Path, *flags: str) -> Path:
    given = ["--model", str(folder / "model"), "--data", str(folder / "text.txt")]
    given += ["--classes", "orthogonal_output", "--n_ablated", "9", "--draws", "3"]
    given += ["--run_dir", str(tmp_path / "runs"), "--tolerance", "0.3"]
    given += ["--tau", "0.15", *flags]
    return class_effects.main(parse_config(class_effects.ClassEffectsConfig, given))


def results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


def test_a_class_and_its_controls_are_measured_and_told(folder: Path, tmp_path: Path):
    run = measured(folder, tmp_path, "--when", "all", "gate-/post+", "--length", "8")
    found = results(run)
    names = [(e["set"], e["draw"], e["when"]) for e in found["effects"]]
    of_controls = [(k, d) for k in ("layer", "frequency") for d in range(3)]
    sets = [("class", None), *of_controls]
    assert names == [(*s, when) for when in ("all", "gate-/post+") for s in sets]
    assert found["corpus"]["n_texts"] >= 80
    means: dict[Any, list[float]] = {}
    for effect in found["effects"]:
        for name, value in effect["ablated"].items():
            difference = effect["difference"][name]["mean"]
            assert value == pytest.approx(found["clean"][name]["mean"] + difference)
        entropy = effect["difference"]["entropy"]["mean"]
        means.setdefault((effect["set"], effect["when"]), []).append(entropy)
    for entry in found["summary"]:
        values = means[entry["set"], entry["when"]]
        entropy = entry["measures"]["entropy"]
        assert entropy["mean"] == pytest.approx(sum(values) / len(values))
        if entry["n_draws"]:
            assert entropy["range"] == [min(values), max(values)]
            # Student's t of two degrees of freedom is 4.3027
            spread = torch.tensor(values, dtype=torch.float64).std().item() / 3**0.5
            half = entropy["interval"][1] - entropy["mean"]
            assert half == pytest.approx(4.302653 * spread, rel=1e-5)
    assert len(found["changed"]) == 10
    sizes = [abs(c["ablated"] - c["clean"]) for c in found["changed"][:5]]
    assert sizes == sorted(sizes, reverse=True)
    with (run / "tables" / "ablated_minus_clean.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["neurons"] for row in rows[:2]] == ["the class", "control by layer"]
    latex = (run / "tables" / "every_ablation_and_measure.tex").read_text()
    assert "\\begin{tabular}" in latex
    often = (run / "tables" / "how_often_neurons_are_on.md").read_text()
    assert often.startswith("| neurons |")
    for text in found["changed"]:
        assert [(r["layer"], r["sublayer"]) for r in text["lens"]] == [
            (layer, name) for layer in (0, 1) for name in ("attention", "mlp")
        ]
        assert set(text["continued"]) == {"clean", "ablated"}
        # what the last reading gives its most promoted token is what the text tells
        gain, told = text["lens"][-1]["promoted"][0], text["promoted"][0]
        assert (gain["token"], gain["change"]) == (
            told["token"],
            pytest.approx(told["change"], abs=1e-5),
        )
    with (run / "tables" / "logit_lens.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 40
    page = report.main(report.ReportConfig(runs=[run])).read_text()
    assert "9 of 96 neurons of the class orthogonal output were ablated" in page


def test_attributes_rates_are_measured_clean_and_under_every_ablation(
    folder: Path, tmp_path: Path
):
    rows = [
        {"subject": "John", "object": "Rome", "prompt": "Ann said John went to"},
        {"subject": "Ann", "object": "Paris", "prompt": "Ann went to"},
        {"subject": "Bob", "object": "Paris", "prompt": "[Y] said Bob"},
    ]
    (tmp_path / "facts.json").write_text(json.dumps(rows))
    flags = ["--length", "8", "--n_shown", "0", "--n_top", "64", "--subjects"]
    run = measured(folder, tmp_path, *flags, str(tmp_path / "facts.json"))
    found = results(run)["attributes"]
    assert found["n_subjects"] == 2
    assert sum(found["left_out"].values()) == 1  # before Bob comes the object
    # all tokens are near: the rate is that of the vocabulary, whatever is ablated
    rates = {layer["rate"] for layer in found["clean"]}
    assert len(rates) == 1
    assert 0 < max(rates) < 50
    assert [(e["set"], e["n_draws"]) for e in found["effects"]] == [
        ("class", 0),
        ("layer", 3),
        ("frequency", 3),
    ]
    for entry in found["effects"]:
        assert [layer["difference"] for layer in entry["layers"]] == [0.0, 0.0]
    # both have one word of the vocabulary
    assert [layer["of_others"] for layer in found["clean"]] == [*rates] * 2
    assert found["clean"][0]["above_others"] == 0.0
    page = report.main(report.ReportConfig(runs=[run])).read_text()
    assert "Attributes rate by layer" in page
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("John said Rome\nAnn said Mary and Paris\nBob said Paris, Paris")
    flags += [str(tmp_path / "facts.json"), "--controls", "none"]
    in_corpus = ["--subject_corpus", str(corpus), "--subject_common"]
    of_all = results(measured(folder, tmp_path, *flags, *in_corpus, "1"))["attributes"]
    fewer = results(measured(folder, tmp_path, *flags, *in_corpus, "0.67"))
    less = fewer["attributes"]
    assert (of_all["n_common_words"], less["n_common_words"]) == (0, 1)
    # john, said, rome and ann, said, mary, paris; without said
    assert (of_all["words_of_a_subject"], less["words_of_a_subject"]) == (3.5, 2.5)
    assert less["clean"][0]["rate"] < of_all["clean"][0]["rate"]
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"Nobody": ["Rome"]}))
    with pytest.raises(UserError, match="3 without words; give --subject_words"):
        measured(folder, tmp_path, *flags, "--subject_words", str(words))


def test_later_readers_of_an_ablation_are_listed(folder: Path, tmp_path: Path):
    flags = ["--length", "8", "--n_shown", "0", "--edge_tokens", "200"]
    found = results(measured(folder, tmp_path, *flags, "--edges_by", "entropy"))
    edges = found["edges"]
    assert 150 <= edges["n_tokens"] <= 200  # but for first positions
    sets = [(entry["set"], entry["draw"]) for entry in edges["sets"]]
    assert sets == [("class", None), ("layer", 0), ("frequency", 0)]
    for entry in edges["sets"]:
        effects = [abs(edge["effect"]) for edge in entry["edges"]]
        assert effects == sorted(effects, reverse=True)
        assert {edge["edge"].partition("->")[0] for edge in entry["edges"]} <= {
            *("m0", "m1"),
            *(f"a1.h{head}" for head in range(4)),
        }  # what comes before the first ablated neuron is as it was
        sums = [
            sum(r[k] for k in ("queries", "keys", "values")) for r in entry["layers"]
        ]
        assert sums[0] == entry["layers"][0]["mlp"] == 0
        assert sums[1] != 0


def test_draws_that_take_turns_share_the_texts_out(folder: Path, tmp_path: Path):
    flags = ["--length", "8", "--controls", "layer", "--control_tokens", "turns"]
    found = results(measured(folder, tmp_path, *flags, "--n_generated", "0"))
    n_tokens = [effect["n_tokens"] for effect in found["effects"]]
    assert n_tokens[0] == sum(n_tokens[1:]) == found["corpus"]["n_tokens"]
    assert all("continued" not in t or not t["continued"] for t in found["changed"])
    with pytest.raises(UserError, match="needs a batch for each of the 3 draws, got 1"):
        measured(folder, tmp_path, *flags, "--n_tokens", "8")


def test_a_killed_run_goes_on_behind_its_last_batch_to_the_same_numbers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Draws take turns: a batch that is missed or seen twice changes a number."""
    flags = ["--length", "8", "--control_tokens", "turns", "--n_generated", "0"]
    flags += ["--name", "effects", "--when", "all", "gate-", "--controls", "layer"]
    text, words = tmp_path / "text.txt", (folder / "text.txt").read_text()
    text.write_text(words)
    flags += ["--data", str(text)]
    whole = results(measured(folder, tmp_path / "whole", *flags))
    save, numbers = progress.SavedEffects.done, list[int]()

    def save_and_stop_at_7(saved: progress.SavedEffects, n_done: int) -> None:
        save(saved, n_done)
        numbers.append(n_done)
        if numbers == [*range(1, 8)]:
            raise Stopped

    monkeypatch.setattr(progress.SavedEffects, "done", save_and_stop_at_7)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    config = class_effects.ClassEffectsConfig
    run = tmp_path / "runs" / "effects"
    with pytest.raises(Stopped, match=r"class_effects\.py .*--resume \S*runs/effects"):
        measured(folder, tmp_path, *flags)
    assert not (run / "results.json").exists()
    with pytest.raises(UserError, match=r"with its own flags, .*draws"):
        class_effects.main(parse_config(config, [f"--resume={run}", "--draws=2"]))
    text.write_text(words.replace("Rome", "Ann"))
    with pytest.raises(UserError, match=r"inputs that the run began with.* the data"):
        class_effects.main(parse_config(config, [f"--resume={run}"]))
    text.write_text(words)
    monkeypatch.setattr(progress, "EVERY", 60.0)
    class_effects.main(parse_config(config, [f"--resume={run}"]))
    n_batches = -(-whole["corpus"]["n_texts"] // 4)
    assert numbers == list(range(1, n_batches + 1))
    for entries in (whole, continued := results(run)):
        entries.pop("next"), entries.pop("provenance")
    assert continued == whole
    assert not (run / "checkpoints").exists()
    with pytest.raises(UserError, match="is finished"):
        class_effects.main(parse_config(config, [f"--resume={run}"]))


def test_fewer_tokens_are_the_first_ones_and_draws_follow_the_seed(
    folder: Path, tmp_path: Path
):
    flags = ["--n_tokens", "30", "--length", "8", "--controls", "layer"]
    runs = [
        results(measured(folder, tmp_path, *flags, "--seed", seed))
        for seed in ("1", "1", "2")
    ]
    corpora = [run["corpus"] for run in runs]
    assert corpora[0]["n_tokens"] <= 30
    assert corpora[0] == corpora[2]
    assert runs[0]["effects"] == runs[1]["effects"]
    assert runs[0]["effects"] != runs[2]["effects"]
    assert runs[0]["clean"] == runs[2]["clean"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--controls", "none", "layer"], "--controls must be layer, frequency"),
        (["--ablation", "fixed"], "ablation fixed needs --theta"),
        (["--length", "8", "--at_positions", "8"], "below the 8 of a text"),
        (["--when", "gate+", "gate+"], "--when must name every value once"),
        (["--classes", "lazy"], "got 'lazy'"),
        (["--subject_words", "a.json"], "--subject_words belongs to --subjects"),
        (["--subject_common", "0"], "must be a number above 0 and at most 1"),
        (["--subject_common", ".1"], "belongs to --subject_corpus"),
        (["--device", "tpu"], "--device must be cpu or cuda"),
    ],
)
def test_a_wrong_flag_is_refused(flags: list[str], message: str, capsys: Any):
    with pytest.raises(SystemExit) as stopped:
        parse_config(class_effects.ClassEffectsConfig, flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_measured_is_refused_before_a_run_is_made(
    folder: Path, tmp_path: Path
):
    with pytest.raises(UserError, match="no neuron of the class weakening"):
        measured(folder, tmp_path, "--classes", "weakening", "--tau", "0.9")
    with pytest.raises(UserError, match="--tolerance 0; raise it"):
        measured(folder, tmp_path, "--tolerance", "0")
    every = [name.replace(" ", "_") for name in CLASSES]
    given = ["--classes", *every, "--controls", "layer", "--n_ablated", "96"]
    with pytest.raises(UserError, match="layer 0 has 0 neurons outside the class"):
        measured(folder, tmp_path, *given)
    with pytest.raises(UserError, match="at_positions must be 0 or above and below"):
        measured(folder, tmp_path, "--at_positions", "64")  # of 64 positions
    (tmp_path / "short.txt").write_text("Paris\n")
    with pytest.raises(UserError, match="a text of three tokens"):
        measured(folder, tmp_path, "--data", str(tmp_path / "short.txt"))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"--data .*empty\.txt holds no text; name"):
        measured(folder, tmp_path, "--data", str(tmp_path / "empty.txt"))
    with pytest.raises(UserError, match="text_column"):
        measured(folder, tmp_path, "--text_column", "body")
    words = (folder / "text.txt").read_text().split()
    (tmp_path / "long.txt").write_text(" ".join(words))
    save_model(tiny_loaded("gpt2", "causal_lm"), tmp_path / "gpt2")  # 64 positions
    given = ["--model", str(tmp_path / "gpt2"), "--classes", "weakening"]
    with pytest.raises(UserError, match=r"--length must be at most 64, .* got 256"):
        measured(folder, tmp_path, "--data", str(tmp_path / "long.txt"), *given)
    with pytest.raises(UserError, match="--data must name a text"):
        class_effects.main(
            class_effects.ClassEffectsConfig(classes=["weakening"], run_dir=tmp_path)
        )
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
