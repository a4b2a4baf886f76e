"""The page of the classes' geometry: its data and regions, and nothing from outside."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuitcut.reports.load import load_run
from circuitcut.reports.weights.geometry import cells, write_geometry
from circuitcut.storage.atomic import write_tensors
from circuitcut.weight_classes.classes import classify
from circuitcut.weight_classes.cosines import Cosines
from circuitcut.weight_classes.names import CLASSES
from tests.reports.weighed import weight_results


def test_every_cell_between_the_thresholds_is_of_the_class_that_neurons_in_it_have():
    found = cells()
    assert len(found) == 18
    values = {-1: -0.8, 0: 0.1, 1: 0.8}
    points = torch.tensor([[values[s] for s in cell] for cell in found])
    ones = torch.ones(len(found))
    cosines = Cosines(points[:, 2], points[:, 1], points[:, 0], ones, ones, ones)
    names = [CLASSES[number].removeprefix("atypical ") for number in classify(cosines)]
    assert names == list(found.values())


@pytest.fixture
def run(write_run: Any) -> Path:
    """Twenty neurons of two layers, the first ones weakening."""
    path: Path = write_run(weight_results())
    rng = np.random.default_rng(0)
    numbers = {
        name: torch.from_numpy(rng.uniform(-1, 1, 20)).float()
        for name in ("in_out", "gate_out")
    }
    write_tensors(
        path / "units.safetensors",
        {
            "layer": torch.arange(2, dtype=torch.int16).repeat_interleave(10),
            "class": torch.full((20,), CLASSES.index("weakening"), dtype=torch.uint8),
            "gate_in": torch.linspace(0, 1, 20),
            **numbers,
        },
    )
    return path


def test_the_page_holds_every_neuron_and_needs_nothing_else(run: Path):
    page = write_geometry(load_run(run))
    assert page == run / "geometry.html"
    text = page.read_text()
    assert not re.search(r"(src|href)=|https?://|@[A-Z]+@", text)
    (data,) = re.findall(r'json" id="data">(.*?)</script>', text)
    told = json.loads(data)
    layer = np.frombuffer(base64.b64decode(told["layer"]), "<u2")
    assert layer.tolist() == [0] * 10 + [1] * 10
    cosines = np.frombuffer(base64.b64decode(told["gate_in"]), "i1") / 127
    assert np.abs(cosines - np.linspace(0, 1, 20)).max() <= 0.5 / 127 + 1e-6
    places = np.frombuffer(base64.b64decode(told["class"]), "u1")
    assert {told["looks"][told["look_of"][k]]["name"] for k in places} == {"weakening"}
    assert told["tau"] == 0.5


def test_neurons_without_gates_have_no_page(write_run: Any):
    results = weight_results()
    results["weights"]["gated"] = False
    assert write_geometry(load_run(write_run(results))) is None
