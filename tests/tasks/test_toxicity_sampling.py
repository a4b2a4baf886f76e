"""Sampled text with a key-value cache is that of whole texts, under every mask."""

from contextlib import AbstractContextManager, nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationValues, mean_values, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.spared import FIRST_POSITION
from circuitcut.tasks import toxicity_sampling
from circuitcut.tasks.toxicity_sampling import (
    NEW_TOKENS,
    Continuation,
    mean_continuation_nll,
    sample_continuations,
)
from tests.models.tiny import VOCAB, tiny_model

PROMPTS = [[2, 9, 30, 17], [2, 42, 11, 6], [2, 7, 8]]
SETTINGS: dict[str, Any] = {"end_id": 3, "banned_ids": [0, 2], "seed": 1}
FAMILIES = ["gpt2", "llama", "mistral", "gemma2", "gpt_neox"]


class WholeTexts(nn.Module):
    """A model that takes no cache: every step is a pass over the whole text."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        )
        return SimpleNamespace(logits=output.logits)


class Passes(list[tuple[int, int]]):
    """(tokens read, logits per row) of every forward pass of a model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.last_logits: list[Tensor] = []
        model.register_forward_hook(self.add, with_kwargs=True)

    def add(self, _: nn.Module, __: Any, inputs: dict[str, Tensor], out: Any) -> None:
        self.append((inputs["input_ids"].shape[1], out.logits.shape[1]))
        self.last_logits.append(out.logits[:, -1])


def decoder(kind: str) -> Any:
    model = tiny_model(kind, "causal_lm").double().requires_grad_(False)
    rng = torch.Generator().manual_seed(4)
    # not tied to the embeddings, so that a token does not make itself likely
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(torch.randn(head.weight.shape, generator=rng).double())
    return model


def values_of(model: Any, sites: Any, ablation: str) -> AblationValues:
    if ablation == "zero":
        return zero_values(sites)
    rng = torch.Generator().manual_seed(5)
    ids = torch.randint(5, VOCAB, (4, 32), generator=rng)
    batches = [({"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool))]
    return mean_values(model, sites, batches, per_position=ablation == "per position")


def cut(model: Any, units: str, ablation: str, special_ids: Any) -> FrozenMask:
    sites = sites_of(model, [units])
    return FrozenMask.random(
        sites,
        values_of(model, sites, ablation),
        n_ablated=sum(site.n_units for site in sites) * 2 // 3,
        special_ids=special_ids,
        seed=0,
    )


def texts(model: nn.Module, context: AbstractContextManager[Any]) -> list[Continuation]:
    with context:
        return sample_continuations(model, PROMPTS, **SETTINGS)


WAYS = product(
    ["neurons", "heads", "hidden", "weights"],
    ["zero", "mean", "per position"],
    [(), (2, 9, FIRST_POSITION)],
)
WAYS_IN_TURN = [  # every pair of two choices occurs
    (("gpt2", "llama")[sum(divmod(i, 2)) % 2], *way, sum(divmod(i, 4)) % 2 == 0)
    for i, way in enumerate(WAYS)
]


@pytest.mark.parametrize(
    ("kind", "units", "ablation", "special_ids", "is_greedy"), WAYS_IN_TURN
)
def test_a_masked_model_writes_the_same_text_with_its_cache(
    kind: str,
    units: str,
    ablation: str,
    special_ids: tuple[int, ...],
    is_greedy: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    if units == "weights" and ablation == "per position":
        ablation = "mean"
    if is_greedy:
        monkeypatch.setattr(toxicity_sampling, "TOP_P", 1e-9)  # the likeliest alone
    model = decoder(kind)
    mask = cut(model, units, ablation, special_ids)
    whole = WholeTexts(model)
    passes_of_whole = Passes(whole)
    expected = texts(whole, mask.applied(model))
    passes = Passes(model)
    assert texts(model, mask.applied(model)) == expected
    torch.testing.assert_close(passes.last_logits, passes_of_whole.last_logits)
    assert set(passes) == {(4, 1), (3, 1), (1, 1)}
    assert len(passes) == 2 * NEW_TOKENS
    first = model(input_ids=torch.tensor(PROMPTS[:2])).logits[:, -1]
    assert not torch.allclose(first, passes.last_logits[0], atol=1e-3)  # a visible cut


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_uncut_model_writes_the_same_text_with_its_cache(kind: str):
    model = decoder(kind)
    expected = texts(WholeTexts(model), nullcontext())
    assert texts(model, nullcontext()) == expected
    assert all(len(row.new) > 0 for row in expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_under_a_mask_on_edges_every_step_reads_the_whole_text(kind: str):
    model = decoder(kind)
    mask = cut(model, "edges", "zero", ())
    expected = texts(WholeTexts(model), mask.applied(model))
    passes = Passes(model)
    assert texts(model, mask.applied(model)) == expected
    assert passes[:3] == [(4, 1), (5, 1), (6, 1)]
    assert texts(model, nullcontext()) != expected


def test_the_nll_of_new_tokens_is_that_of_all_logits():
    model = decoder("llama")
    rows = [
        Continuation([2, 9, 30], [17, 5, 5]),
        Continuation([2, 9, 30, 8], [17, 6]),
        Continuation([7], []),
    ]
    nats = []
    for row in rows[:2]:
        ids = torch.tensor([row.prompt + row.new])
        log_p = model(input_ids=ids).logits.log_softmax(-1)[0]
        n_prompt = len(row.prompt)
        nats += [
            -log_p[n_prompt + i - 1, token].item() for i, token in enumerate(row.new)
        ]
    found = mean_continuation_nll(model, rows)
    assert found == pytest.approx(sum(nats) / 5, rel=1e-5)
