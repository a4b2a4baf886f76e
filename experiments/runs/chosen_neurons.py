"""The neurons that an earlier run chose, as one bool a neuron, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitcut.experiments.saved_runs import mask_at
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.storage.atomic import read_object
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import Between, check_entries

NEURONS_FILE = "neurons.json"
_Number = Annotated[int, Between(0, 10**9)]
_Unit = tuple[_Number, _Number]
"""Layer and number in the layer."""


class _Fact(TypedDict):
    refined: NotRequired[list[_Unit]]


@dataclass(frozen=True)
class ChosenNeurons:
    """What one path holds."""

    path: Path
    kind: str
    """`ablated` or `kept` of a mask, `knowledge` of neurons.json."""
    chosen: tuple[Bool[Tensor, "_unit"], ...]
    n_others: int
    """Chosen units that are no neurons."""


def chosen_neurons(path: Path, sizes: Sequence[int]) -> ChosenNeurons:
    """The neurons of a mask, or of knowledge neurons.

    Of a mask those that it ablates, of one that isolates those that it keeps; of a run
    of knowledge.py, or its neurons.json, the refined units of all facts.

    Args:
        path: A run, a folder with mask.json, or a neurons.json.
        sizes: Neurons of every layer of the model.

    Raises:
        UserError: When there is nothing of the kind, it is of another model, or it has
            no neurons.
    """
    if path.suffix == ".json" or (path / NEURONS_FILE).exists():
        file = path if path.suffix == ".json" else path / NEURONS_FILE
        found = ChosenNeurons(path, "knowledge", _of_facts(file, sizes), 0)
    else:
        found = _of_mask(path, mask_at(path), sizes)
    if not any(of_layer.any() for of_layer in found.chosen):
        raise UserError(f"--units_of {path} has no neurons; name a run that chose some")
    return found


def _of_mask(path: Path, mask: FrozenMask, sizes: Sequence[int]) -> ChosenNeurons:
    kept = mask.provenance.get("direction") == "isolate"
    neurons = {site.layer: site for site in mask.sites if site.kind == "neurons"}
    chosen, n_chosen = [], mask.n_units - mask.n_ablated if kept else mask.n_ablated
    for layer, size in enumerate(sizes):
        site = neurons.pop(layer, None)
        if site is None:
            chosen.append(torch.zeros(size, dtype=torch.bool))
            continue
        if site.n_units != size:
            raise _other_model(path, f"{site.n_units:,} neurons in layer {layer}", size)
        chosen.append(mask.keep[site.name] == kept)
    if neurons:
        raise _other_model(path, f"a layer {max(neurons)}", len(sizes))
    n_neurons = sum(int(of_layer.sum()) for of_layer in chosen)
    kind = "kept" if kept else "ablated"
    return ChosenNeurons(path, kind, tuple(chosen), n_chosen - n_neurons)


def _of_facts(file: Path, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    content = read_object(file)
    if "facts" not in content:
        raise UserError(f"{file} must be neurons.json of a knowledge run: no facts")
    check_entries(content, {"facts": list[_Fact]}, str(file))
    chosen = tuple(torch.zeros(size, dtype=torch.bool) for size in sizes)
    for fact in content["facts"]:
        for layer, unit in fact.get("refined", []):
            if layer >= len(sizes):
                raise _other_model(file, f"a layer {layer}", len(sizes))
            if unit >= sizes[layer]:
                raise _other_model(file, f"neuron {layer}.{unit}", sizes[layer])
            chosen[layer][unit] = True
    return chosen


def _other_model(path: Path, what: str, number: int) -> UserError:
    return UserError(
        f"--units_of {path} is of another model: it has {what}, where this model has "
        f"{number:,}; name runs of the model that is classified"
    )
