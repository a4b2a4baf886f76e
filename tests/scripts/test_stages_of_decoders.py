"""The study in stages on decoders: with a linear head, and as language models."""

from pathlib import Path
from typing import Any

import pytest
import torch

from circuitcut.models.saving import save_model
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.relearning.stages import retraining
from circuitcut.scripts import relearn_stages
from circuitcut.storage.atomic import read_json, read_tensors
from circuitcut.training.config import parse_config
from tests.models.tiny import D_MODEL, N_LAYERS, VOCAB, tiny_loaded

PLACES = ("Rome", "Oslo", "Bern")
NAMES = ("Ann", "Bob")
N_UNITS = (N_LAYERS + 1) * D_MODEL
SMALL = ["--shares", "0.1", "0.5", "--retrain", "0.5", "--n_stages", "2"]
SMALL += ["--epochs", "1", "--batch_size", "8", "--lr", "0.001", "--compare", "none"]
SMALL += ["--conditions", "cut", "--seeds", "0", "--base_steps", "4"]
SMALL += ["--max_length", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty sentences with places and names, two words of context each."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.conll"
    lines = []
    for i in range(60):
        place, name = PLACES[i % 3], NAMES[i % 2]
        lines.append(f"{name} B-PER\nleft O\n{place} B-LOC\n" if i % 4 else "we O\n")
    path.write_text("\n".join(lines))
    return path


def model_at(folder: Path, kind: str, head: str) -> Path:
    """A random two-layer decoder with a tokenizer of the corpus."""
    loaded = tiny_loaded(kind, head)
    texts = [f"{name} left {place} we" for name in NAMES for place in PLACES]
    tokenizer = train_tokenizer(
        texts, "word", is_decoder=True, vocab_size=VOCAB, max_length=32
    )
    loaded = type(loaded)(**{**vars(loaded), "tokenizer": tokenizer})
    save_model(loaded, folder / "model")
    return folder / "model"


def flags_of(task: str, kind: str, corpus: Path, folder: Path) -> list[str]:
    head = "causal_lm" if task == "words" else "token_classification"
    model = model_at(folder, kind, head)
    place = [
        "--data",
        str(corpus),
        "--concept",
        "LOC",
        "--run_dir",
        str(folder / "runs"),
    ]
    return ["--task", task, "--model", str(model), *place, *SMALL]


def studied(flags: list[str]) -> Path:
    return relearn_stages.main(parse_config(relearn_stages.RelearnStagesConfig, flags))


def records(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / "seeds").rglob("*"))
        if path.is_file() and path.name != "rankings.json"  # it has seconds
    }


@pytest.mark.parametrize(("task", "kind"), [("words", "gpt2"), ("locations", "llama")])
def test_a_decoders_study_killed_between_stages_goes_on_to_the_same_bits(
    task: str, kind: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = flags_of(task, kind, corpus, tmp_path)
    whole = studied(flags)
    retrain, n_retrained = retraining._retrain, 0

    def killed_before_the_second(*args: Any) -> None:
        nonlocal n_retrained
        n_retrained += 1
        if n_retrained == 2:  # stage 1 of the first arm is finished
            raise RuntimeError("the machine went away")
        retrain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(retraining, "_retrain", killed_before_the_second)
        with pytest.raises(RuntimeError, match="went away"):
            studied(flags)
    [killed] = [path for path in (tmp_path / "runs").iterdir() if path != whole]
    arm = "seeds/seed-0/arms/cut-lasting-0.5"
    assert (killed / arm / "stage-1" / "stage.json").exists()
    assert not (killed / arm / "stage-2").exists()
    studied(["--resume", str(killed)])
    assert records(killed) == records(whole)
    found, expected = (read_json(run / "results.json") for run in (killed, whole))
    for results in (found, expected):
        del results["next"], results["rankings"]["seconds"]
    assert found == expected
    _check(whole, found)


def _check(run: Path, results: dict[str, Any]) -> None:
    """Both ways of pruning reach the units that they can reach, and no others."""
    assert results["n_units"] == N_UNITS
    for arm in results["arms"]:
        stages = [
            read_tensors(run / arm["folder"] / f"stage-{n}" / "units.safetensors")
            for n in range(3)
        ]
        if arm["holding"] == "lasting":
            assert sum(arm["n_pruned"]) == N_UNITS / 2
            for tensors in stages:  # held at zero before, during and after retraining
                assert torch.equal(tensors["constant"], tensors["pruned"])
        else:  # the norm before the MLP, which the embedding level has not
            assert arm["n_pruned"][0] == 0 < sum(arm["n_pruned"])
            assert not stages[0]["constant"].any()
        for tensors in stages:  # what could not be pruned does not count as pruned
            of_levels = tensors["pruned"].split(D_MODEL)
            assert [int(part.sum()) for part in of_levels] == arm["n_pruned"]
    words = read_json(run / "words.json")
    listed = zip(words["words"], words["counts"], words["concept_counts"], strict=True)
    for word, count, n_concept in listed:
        assert n_concept == (count if word in PLACES else 0)


def test_names_of_a_list_are_the_concept_of_a_language_model(
    corpus: Path, tmp_path: Path
):
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join(NAMES))
    flags = flags_of("words", "gpt2", corpus, tmp_path)
    at = flags.index("--concept")
    flags[at : at + 2] = ["--concept_words", str(listed)]
    flags += ["--n_stages", "1", "--holdings", "one_shot"]
    run = studied(flags)
    results = read_json(run / "results.json")
    assert results["concept_metric"]["label"] == "loss on names words"
    words = read_json(run / "words.json")
    named = zip(words["words"], words["concept_counts"], strict=True)
    assert {word for word, n in named if n} == set(NAMES)
