"""Word states are those of a direct forward pass, and one number a level and word."""

import gc
import weakref

import pytest
import torch

from circuitcut.attribution.words.states import (
    WordSource,
    hidden_sites,
    level_of,
    pooled_embeddings,
    word_states,
    words_of,
)
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.models.spared import FIRST_POSITION
from circuitcut.storage.errors import UserError
from tests.attribution.toy import ToyTask
from tests.models.tiny import D_MODEL, DECODERS, N_LAYERS, TEXT_TYPES, tiny_model

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 10, 3, 0, 0]])
WORD = torch.tensor([[-1, 0, 0, 1, -1], [-1, 0, -1, -1, -1]])
"""The first word of the first text has two pieces."""


class Texts(ToyTask):
    """Two texts with three words, the last of which is the concept."""

    def evaluation_batches(self, split, *, size):
        concept = IDS == 10
        first_piece = (IDS >= 7) & (IDS != 8)
        yield {
            "input_ids": IDS,
            "attention_mask": (IDS > 0).long(),
            "targets": torch.where(concept, 1, 0),
            "concept": concept,
            "retain": first_piece & ~concept,
            "real": IDS >= 7,
            "word": WORD,
            "example": torch.tensor([4, 5]),
        }

    def inputs(self, batch):
        return {name: batch[name] for name in ("input_ids", "attention_mask")}


SOURCE = WordSource(Texts(), "mask")


@pytest.mark.parametrize("kind", [k for k in TEXT_TYPES if k != "opt"])
def test_words_are_means_of_the_hidden_states_of_a_direct_forward_pass(kind: str):
    model = tiny_model(kind, "token_classification")
    sites = hidden_sites(model)
    assert [level_of(site) for site in sites] == list(range(N_LAYERS + 1))
    assert {site.n_units for site in sites} == {D_MODEL}
    [(words, states)] = word_states(SOURCE, model, sites)
    with torch.no_grad():
        base = model.base_model
        direct = base(
            input_ids=IDS, attention_mask=(IDS > 0).long(), output_hidden_states=True
        ).hidden_states
    if kind in (*DECODERS, "modernbert", "xlm-roberta-xl"):
        # transformers gives the last level behind the final norm, which is no level
        direct = (*direct[:-1], last_block_output(base))
    direct = torch.cat(direct, -1)
    expected = [direct[0, 1:3].mean(0), direct[0, 3], direct[1, 1]]
    assert torch.allclose(states, torch.stack(expected), atol=1e-5)
    assert words.labels.tolist() == [0, 0, 1]
    assert words.is_concept.tolist() == [False, False, True]
    assert words.examples.tolist() == [4, 4, 5]
    assert words.numbers.tolist() == [0, 1, 0]
    assert words.tokens.tolist() == [7, 9, 10]


def last_block_output(base: torch.nn.Module) -> torch.Tensor:
    """What enters the final norm: the sum behind the last block."""
    norms = [m for m in base.modules() if "Norm" in type(m).__name__]
    seen: list[torch.Tensor] = []
    hooks = [
        norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for norm in norms
    ]
    try:
        with torch.no_grad():
            base(input_ids=IDS, attention_mask=(IDS > 0).long())
    finally:
        for hook in hooks:
            hook.remove()
    return seen[-1]  # the norm that runs last


def test_opt_has_no_embedding_level():
    with pytest.raises(UserError, match="no module whose output is the sum"):
        hidden_sites(tiny_model("opt"))


def test_a_held_unit_is_constant_for_whoever_reads_it():
    model = tiny_model("bert", "token_classification")
    sites = hidden_sites(model)
    n = sum(site.n_units for site in sites)
    scores = {site.name: torch.arange(float(D_MODEL)) for site in sites}
    mask = FrozenMask.exactly_k(scores, sites, zero_values(sites), n_ablated=3)
    with mask.applied(model):
        [(_, states)] = word_states(SOURCE, model, sites)
    held = ~torch.cat([mask.keep[site.name] for site in sites])
    assert states.shape == (3, n)
    assert held.sum() == 3
    assert (states[:, held] == 0).all()
    assert (states[:, ~held] != 0).any(0).all()


def test_without_words_every_real_token_is_one():
    task = Texts()
    [batch] = task.evaluation_batches("mask", size=8)
    del batch["word"], batch["example"]
    batch["retain"] = batch["real"] & ~batch["concept"]
    task.evaluation_batches = lambda split, size: iter([batch])
    [words] = words_of(WordSource(task, "mask"))
    assert words.tokens.tolist() == [7, 8, 9, 10]
    assert words.numbers.tolist() == [1, 2, 3, 1]
    assert words.examples.tolist() == [-1] * 4


def test_the_word_at_a_causal_models_first_position_is_left_out():
    [words] = words_of(WordSource(Texts(), "mask", (FIRST_POSITION, 0)))
    assert words.tokens.tolist() == [7, 9, 10]  # the first position is [CLS]
    task = Texts()
    [batch] = task.evaluation_batches("mask", size=8)
    shifted = {
        name: values[:, 1:] for name, values in batch.items() if values.dim() > 1
    }
    task.evaluation_batches = lambda split, size: iter([batch | shifted])
    [words] = words_of(WordSource(task, "mask", (FIRST_POSITION, 0)))
    assert words.tokens.tolist() == [9]  # a word of two pieces goes as a whole


def test_embeddings_are_rows_of_the_table_averaged_over_pieces():
    model = tiny_model("gpt2", "token_classification")
    [(_, rows)] = pooled_embeddings(SOURCE, model)
    table = model.base_model.wte.weight.detach()
    expected = [table[[7, 8]].mean(0), table[9], table[10]]
    assert torch.allclose(rows, torch.stack(expected))


def test_a_model_without_an_embedding_level_is_refused(monkeypatch):
    site = Site("hidden", "blocks.0", 0, 4)
    module = "circuitcut.attribution.words.states.sites_of"
    monkeypatch.setattr(module, lambda model, kinds: (site,))
    with pytest.raises(UserError, match="no embedding level"):
        hidden_sites(torch.nn.Linear(1, 1))


def test_streaming_keeps_no_batch_alive():
    """Of several batches no state of an earlier one is reachable."""
    task = Texts()
    [batch] = task.evaluation_batches("mask", size=8)
    task.evaluation_batches = lambda split, size: iter([batch] * 3)
    model = tiny_model("bert", "token_classification")
    alive: list[weakref.ref] = []
    for _, states in word_states(WordSource(task, "mask"), model, hidden_sites(model)):
        alive.append(weakref.ref(states))
        del states
        gc.collect()
    assert [ref() for ref in alive] == [None] * 3
