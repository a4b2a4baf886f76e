"""Overlap of masks with the published circuit, on GPT-2 small's shape."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from circuitcut.experiments.circuits.published import CLASSES, published_overlap
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.reports.tables import published_rows


@pytest.fixture(scope="module")
def gpt2() -> Any:
    config = GPT2Config(n_embd=24, n_layer=12, n_head=12, n_positions=8, vocab_size=9)
    return GPT2LMHeadModel(config)


def edge_mask(model: Any, names: set[str], *, kept: bool) -> FrozenMask:
    sites = sites_of(model, ["edges"])
    graph = sites[0].graph
    assert graph is not None
    on = torch.tensor([(name in names) == kept for name in graph.edges()])
    pieces = on.split([site.n_units for site in sites])
    keep = {site.name: piece for site, piece in zip(sites, pieces, strict=True)}
    return FrozenMask(keep, sites, zero_values(sites))


def test_the_circuit_has_26_heads_in_seven_classes():
    heads = [head for found in CLASSES.values() for head in found]
    assert len(heads) == len(set(heads)) == 26
    assert len(CLASSES) == 7


def test_heads_on_kept_paths_are_counted_by_class(gpt2: Any):
    names = {
        "input->a0.h1<q>",
        "a0.h1->a9.h9<k>",
        "a9.h9->logits",
        "a0.h1->a5.h0<v>",  # a dead end
        "a3.h3->logits",  # reads nothing
    }
    found = published_overlap(
        "ioi", "openai-community/gpt2", gpt2, edge_mask(gpt2, names, kept=True)
    )
    assert found is not None
    assert (found["n_heads"], found["n_shared"]) == (2, 2)
    assert found["recall"] == pytest.approx(2 / 26)
    assert found["expected"] == pytest.approx(2 * 26 / 144)
    rows = published_rows({"published_circuit": found})
    shown = {row["class of heads"]: row["in the mask"] for row in rows}
    assert shown["name mover"] == "a9.h9"
    assert shown["duplicate token"] == "a0.h1"
    assert shown["induction"] == "none"


def test_both_ends_of_an_ablated_edge_are_counted(gpt2: Any):
    cut = edge_mask(gpt2, {"a2.h2->a5.h5<k>", "input->a1.h1<q>"}, kept=False)
    found = published_overlap("ioi", "gpt2", gpt2, cut)
    assert found is not None
    assert (found["n_heads"], found["n_shared"]) == (3, 2)
    assert found["precision"] == pytest.approx(2 / 3)


def test_masks_of_heads_and_what_has_no_heads(gpt2: Any):
    sites = sites_of(gpt2, ["heads"])
    keep = {site.name: torch.ones(12, dtype=torch.bool) for site in sites}
    keep[sites[9].name][[6, 1]] = False
    mask = FrozenMask(keep, sites, zero_values(sites))
    found = published_overlap("ioi", "gpt2", gpt2, mask)
    assert found is not None
    assert (found["n_heads"], found["n_shared"]) == (2, 1)
    neurons = sites_of(gpt2, ["neurons"])
    every = {site.name: torch.ones(site.n_units, dtype=torch.bool) for site in neurons}
    other = FrozenMask(every, neurons, zero_values(neurons))
    assert published_overlap("ioi", "gpt2", gpt2, other) is None
    assert published_overlap("ioi", "my-gpt", gpt2, mask) is None
    assert published_overlap("toxicity", "gpt2", gpt2, mask) is None
