"""The notebooks: their code runs from the first cell to the last, and keeps no output.

The code of a notebook is JSON, so that no Jupyter is needed to execute it.
"""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 20_000
OF_FACTS = "fact_in_languages"


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_small_without_output_and_explains_its_code(path: Path):
    assert path.stat().st_size < MOST_BYTES
    code = cells(path, "code")
    assert all(not cell["outputs"] for cell in code)
    assert all(cell["execution_count"] is None for cell in code)
    assert not any(re.search(r"^[!%]", "".join(c["source"]), re.M) for c in code)
    assert len(cells(path, "markdown")) >= len(code)


def names_after(path: Path) -> dict[str, Any]:
    """What the cells of a notebook define."""
    names: dict[str, Any] = {}
    with torch.random.fork_rng(), mpl.rc_context({"backend": "agg"}):
        for number, cell in enumerate(cells(path, "code"), 1):
            source = "".join(cell["source"])
            exec(compile(source, f"{path.name}, cell {number}", "exec"), names)
    return names


@pytest.mark.slow
def test_languages_share_more_units_of_a_fact_than_random_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    names = names_after(ROOT / "notebooks" / f"{OF_FACTS}.ipynb")
    assert names["shared"] == names["units"]["en"] & names["units"]["fr"]
    overlap = names["overlap"]
    assert overlap["n_facts"] >= 20
    assert overlap["same_fact"] > 3 * overlap["random"]
    assert overlap["same_fact"] > overlap["other_fact"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in NOTEBOOKS if path.stem != OF_FACTS],
    ids=lambda path: path.stem,
)
def test_its_code_runs_and_the_concept_falls_and_returns(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    f1 = names_after(path)[
        "f1"
    ]  # of the concept: base, after the cut, after relearning
    assert f1["base"] > 0.7
    assert f1["cut"] < 0.5 * f1["base"]
    assert f1["relearned"] > 0.5 * (f1["base"] + f1["cut"])


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == [
        "concept_to_redistribution",
        OF_FACTS,
        "heat_maps",
        "mask_to_relearning",
    ]
