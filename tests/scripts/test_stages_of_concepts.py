"""The study in stages on several concepts, whose runs one report compares."""

import os
from pathlib import Path

import pytest

from circuitcut.reports.stages.tables import concept_rows
from circuitcut.scripts import relearn_stages
from circuitcut.storage.atomic import read_json
from circuitcut.training.config import parse_config

DATA = os.environ.get("CIRCUITCUT_DATA")
N_LINES = 80
SMALL = ["--shares", "0.5", "--retrain", "0.5", "--n_stages", "1", "--epochs", "0.5"]
SMALL += ["--conditions", "cut", "--holdings", "one_shot", "--compare", "none"]
SMALL += ["--base_steps", "5", "--base_recipe", "d_model=16", "vocab_size=300"]
SMALL += ["--batch_size", "8", "--seeds", "0", "--device", "cpu", "--model"]
SMALL += ["tiny-encoder", "--max_length", "48"]
WNUT_TYPES = ("location", "corporation", "creative-work", "group", "person", "product")


def studied(flags: list[str], folder: Path) -> Path:
    given = [*flags, *SMALL, "--run_dir", str(folder / "runs")]
    return relearn_stages.main(parse_config(relearn_stages.RelearnStagesConfig, given))


def wnut(folder: Path) -> list[str]:
    """Sentences in the shape of WNUT-17: a tab, IOB2 tags, six types."""
    path = folder / "emerging.conll"
    sentences = [
        f"we\tO\nsaw\tO\nThe\tB-{kind}\nNo{i % 7}\tI-{kind}\n\n"
        for i in range(60)
        for kind in WNUT_TYPES
    ]
    path.write_text("".join(sentences))
    return ["--data", str(path)]


def pair(folder: Path) -> list[str]:
    """The first lines of BERT ConceptNet's token and label files."""
    found = Path(DATA or "") / "bert_conceptnet_location"
    names = ("location_tokens.txt", "location_labels.txt")
    for name in names:
        lines = (found / name).read_text(encoding="utf-8").splitlines()[:N_LINES]
        (folder / name).write_text("\n".join(lines))
    tokens, labels = (str(folder / name) for name in names)
    return ["--data", tokens, "--labels_file", labels]


def names(folder: Path) -> list[str]:
    """Sentences with personal names, marked by the lists of first names."""
    listed = Path(DATA or "") / "names"
    female = (listed / "female.txt").read_text(encoding="utf-8").split()[:20]
    path = folder / "text.txt"
    path.write_text(
        "".join(f"{n} came .\n{n} left at {i}\n" for i, n in enumerate(female * 4))
    )
    given = ["--data", str(path), "--data_format", "text"]
    return [*given, "--concept_words", str(listed)]


@pytest.mark.skipif(DATA is None, reason="CIRCUITCUT_DATA is not set")
def test_types_pair_files_and_personal_names_stand_in_one_table(tmp_path: Path):
    runs = [studied(make(tmp_path), tmp_path) for make in (wnut, pair, names)]
    labels = [
        read_json(run / "results.json")["concept_metric"]["label"] for run in runs
    ]
    assert labels == [
        "location span F1",
        "SEM:named_entity:location span F1",
        "names span F1",
    ]
    rows = concept_rows([read_json(run / "results.json") for run in runs])
    assert [row["concept"] for row in rows] == labels
    assert all(row["pruned"] == "50.0 %" for row in rows)


def test_a_type_of_wnut_and_all_its_types_are_concepts(tmp_path: Path):
    """Its names of types are those of `--concept`, whatever the case."""
    flags = wnut(tmp_path)
    run = studied([*flags, "--concept", "Creative-Work"], tmp_path)
    results = read_json(run / "results.json")
    assert results["concept_metric"]["label"] == "creative-work span F1"
    kinds = {name.removeprefix("f1_") for name in results["rows"][0]["scores"]}
    assert kinds >= set(WNUT_TYPES)


def test_a_product_list_from_another_system_is_read(tmp_path: Path):
    """Windows line ends, a mark at the beginning, no end of the last line, labels
    without prefix, an empty official part, scripts without blanks, sentences longer
    than the model reads; types in another case."""
    makers, goods = ("株式会社", "Ünïcorp"), ("Żółw9", "電池-Pro", "C++", "re:Mix")
    sentences = []
    for i in range(60):
        words = [("we", "O"), (makers[i % 2], "BRAND"), (goods[i % 4], "PRODUCT")]
        words += [("…", "O"), ("🙂", "O")] * (40 if i % 10 == 3 else 1)
        sentences.append("\r\n".join(f"{word}\t{tag}" for word, tag in words))
    folder = tmp_path / "parts"
    folder.mkdir()
    text = "\ufeff" + "\r\n\r\n".join(sentences)
    (folder / "train.tsv").write_bytes(text.encode())
    (folder / "dev.tsv").write_bytes(b"")
    (folder / "test.tsv").write_bytes("\r\n\r\n".join(sentences[:20]).encode())
    run = studied(["--data", str(folder), "--concept", "product"], tmp_path)
    results = read_json(run / "results.json")
    assert results["concept_metric"]["label"] == "PRODUCT span F1"
    words = read_json(run / "words.json")
    named = zip(words["words"], words["counts"], words["concept_counts"], strict=True)
    of_concept = {word for word, n, n_concept in named if n == n_concept}
    assert of_concept == set(goods)
