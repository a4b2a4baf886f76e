"""Text generated under a mask on edges is that of whole texts, step by step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, StaticCache

from circuitcut.masks.edges.gating import edge_gated, residual_model
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.models.residual.block_modules import graph_of
from circuitcut.storage.errors import UserError
from tests.models.tiny import GROUPED, UNGROUPED, VOCAB, tiny_model

IDS = torch.tensor([[9, 30, 17, 42, 11]])
N_NEW = 4
FAMILIES = [*UNGROUPED, *GROUPED]
GREEDY: dict[str, Any] = {
    "max_new_tokens": N_NEW,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
}


def decoder(kind: str) -> tuple[Any, EdgeStack, Tensor]:
    model = tiny_model(kind, "causal_lm").double().requires_grad_(False)
    rng = torch.Generator().manual_seed(4)
    # not tied to the embeddings, so that a token does not make itself likely
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(torch.randn(head.weight.shape, generator=rng).double())
    stack = EdgeStack(residual_model(model, graph_of(model)))
    keep = torch.rand(stack.model.graph.n_edges, generator=rng) < 0.5
    return model, stack, keep


def by_hand(model: Any, ids: Tensor) -> list[int]:
    """The most likely tokens, each of a pass over the whole text."""
    for _ in range(N_NEW):
        last = model(ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, last], 1)
    return ids[0].tolist()


def caches(model: Any) -> dict[str, dict[str, Any]]:
    """Ways to ask `generate` for a cache."""
    config = model.config
    settings = GenerationConfig(**GREEDY)
    static = GenerationConfig(**GREEDY, use_cache=True, cache_implementation="static")
    return {
        "default": GREEDY,
        "argument": GREEDY | {"use_cache": True},
        "settings": {"generation_config": settings},
        "static settings": {"generation_config": static},
        "static": GREEDY | {"cache_implementation": "static"},
        "empty": GREEDY | {"past_key_values": DynamicCache(config=config)},
        "empty static": GREEDY
        | {"past_key_values": StaticCache(config=config, max_cache_len=32)},
        "pieces": GREEDY | {"prefill_chunk_size": 2},
        "as a dict": GREEDY | {"use_cache": True, "return_dict_in_generate": True},
    }


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_way_to_ask_for_a_cache_gives_the_text_of_whole_passes(kind: str):
    model, stack, keep = decoder(kind)
    plain = by_hand(model, IDS)
    with edge_gated(stack, keep), torch.no_grad():
        expected = by_hand(model, IDS)
        for name, settings in caches(model).items():
            made = model.generate(IDS, **settings)
            text = made if isinstance(made, Tensor) else made.sequences
            assert text[0].tolist() == expected, name
            if not isinstance(made, Tensor):
                assert made.past_key_values is None
    assert expected != plain  # the cut is visible in the text
    assert by_hand(model, IDS) == plain


def test_settings_of_the_model_itself_are_left_as_they_were():
    model, stack, keep = decoder("gpt2")
    model.generation_config.cache_implementation = "static"
    before = model.generation_config.to_dict()
    given = GenerationConfig(**GREEDY, use_cache=True)
    with edge_gated(stack, keep), torch.no_grad():
        expected = by_hand(model, IDS)
        assert model.generate(IDS, given)[0].tolist() == expected
        assert model.generate(IDS, **GREEDY)[0].tolist() == expected
    assert model.generation_config.to_dict() == before
    assert given.use_cache is True
    assert model.config.use_cache is True
    assert not {"generate", "forward"} & set(vars(model))


@pytest.mark.parametrize("kind", FAMILIES)
def test_left_padding_gives_the_text_of_each_row_alone(kind: str):
    model, stack, keep = decoder(kind)
    if kind == "gemma2":  # its padding is NaN in double precision
        stack = EdgeStack(residual_model(model.float(), graph_of(model)))
    padded = torch.cat([torch.zeros_like(IDS[:, :3]), IDS[:, :2]], 1)
    both = torch.cat([IDS, padded])
    attended = (both != 0).long()
    with edge_gated(stack, keep), torch.no_grad():
        made = model.generate(both, attention_mask=attended, use_cache=True, **GREEDY)
        assert made[0].tolist() == by_hand(model, IDS)
        assert made[1, 3:].tolist() == by_hand(model, IDS[:, :2])


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama"])
def test_beams_find_the_most_likely_pair_of_tokens_of_all(kind: str):
    model, stack, keep = decoder(kind)
    with edge_gated(stack, keep), torch.no_grad():
        first = model(IDS).logits[0, -1].log_softmax(-1)  # (vocab,)
        longer = torch.cat([IDS.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], 1)
        second = model(longer).logits[:, -1].log_softmax(-1)  # (vocab, vocab)
        best = int((first[:, None] + second).argmax())
        settings = GREEDY | {"max_new_tokens": 2, "num_beams": VOCAB}
        made = model.generate(IDS, use_cache=True, **settings)
    assert made[0, -2:].tolist() == list(divmod(best, VOCAB))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_forward_pass_gives_no_cache_and_takes_none(kind: str):
    model, stack, keep = decoder(kind)
    filled = model(IDS[:, :3], use_cache=True).past_key_values
    attended = torch.ones_like(IDS)
    with edge_gated(stack, keep), torch.no_grad():
        whole = model(IDS)
        assert whole.past_key_values is None
        asked = model(IDS, use_cache=True)
        assert asked.past_key_values is None
        assert torch.equal(asked.logits, whole.logits)
        for cache in (filled, DynamicCache(config=model.config)):
            with pytest.raises(UserError, match="past_key_values must be None"):
                model(IDS[:, 3:], past_key_values=cache)
        with pytest.raises(UserError, match="as many tokens as the inputs, got 5 and"):
            model(IDS[:, -1:], attention_mask=attended)
        with pytest.raises(UserError, match="got a cache of 3 tokens"):
            model.generate(IDS, past_key_values=filled, **GREEDY)
    assert model(IDS[:, 3:], past_key_values=filled).past_key_values is filled


def test_generation_that_needs_a_cache_is_refused():
    model, stack, keep = decoder("gpt2")
    embedded = model.get_input_embeddings()(IDS)
    with edge_gated(stack, keep), torch.no_grad():
        with pytest.raises(UserError, match="pass input_ids"):
            model.generate(inputs_embeds=embedded, **GREEDY)
        with pytest.raises(UserError, match="leave prompt_lookup_num_tokens out"):
            model.generate(IDS, prompt_lookup_num_tokens=2, **GREEDY)
        with pytest.raises(UserError, match="leave assistant_model out"):
            model.generate(IDS, assistant_model=model, **GREEDY)


def test_a_model_around_the_masked_one_cannot_step_by_a_cache():
    model, _, keep = decoder("llama")
    inner = model.model
    stack = EdgeStack(residual_model(inner, graph_of(inner)))
    with (
        edge_gated(stack, keep),
        torch.no_grad(),
        pytest.raises(UserError, match="call generate on the model that has the mask"),
    ):
        model.generate(IDS, **GREEDY)
