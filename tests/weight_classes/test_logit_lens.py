"""The logit lens and continuations against passes of the changed model itself."""

from typing import Any

import pytest
import torch

from circuitcut.masks.neurons.rule import rule_of
from circuitcut.masks.neurons.values import rule_values
from circuitcut.models.architectures import block_paths, sites_of
from circuitcut.models.residual.block_modules import parts_of
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.checkpoint import checkpoint_of
from circuitcut.weight_classes.selection import flipped_of, frozen_mask
from circuitcut.weight_classes.tokens.continuations import greedy
from circuitcut.weight_classes.tokens.logit_lens import compared, readings
from tests.models.tiny import D_MLP, DECODERS, tiny_model

TEXT = [7, 11, 5, 30, 42, 9]


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_the_last_reading_is_the_models_own_prediction(kind: str):
    model = tiny_model(kind, "causal_lm")
    found = readings(model, TEXT)
    logits = model(torch.tensor([TEXT])).logits[0, -1]
    torch.testing.assert_close(found[-1].logits, logits, atol=1e-5, rtol=1e-5)
    is_parallel = parts_of(model).parallel(model.config)
    names = ["block"] if is_parallel else ["attention", "mlp"]
    assert [(r.layer, r.sublayer) for r in found] == [
        (layer, name) for layer in range(2) for name in names
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2", "olmo2"])
@torch.no_grad()
def test_a_reading_behind_attention_is_the_model_whose_further_sublayers_add_nothing(
    kind: str,
):
    model = tiny_model(kind, "causal_lm")
    first = readings(model, TEXT)[0]
    parts = parts_of(model)
    written = parts.norm_written or parts.mlp[-1]
    blocks = [model.get_submodule(path) for path in block_paths(model)]
    handles = [
        blocks[0].get_submodule(written).register_forward_hook(_nothing),
        blocks[1].register_forward_hook(_unchanged),
    ]
    logits = model(torch.tensor([TEXT])).logits[0, -1]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(first.logits, logits, atol=1e-5, rtol=1e-5)


def _nothing(_: Any, __: Any, output: Any) -> Any:
    return torch.zeros_like(output)


def _unchanged(_: Any, args: Any, output: Any) -> Any:
    return args[0]


def test_readings_are_compared_by_their_probabilities():
    model = tiny_model("llama", "causal_lm").double()
    sites = sites_of(model, ["neurons"])
    mask = cut(model, sites)
    clean = readings(model, TEXT)
    with mask.applied(model):
        ablated = readings(model, TEXT)
    rows = compared(clean, ablated, 13)
    # nothing is ablated before the first MLP writes
    assert [rows[0].clean, rows[0].promoted[0][1]] == [rows[0].ablated, 0.0]
    p, q = (r[-1].logits.softmax(-1) for r in (clean, ablated))
    last = rows[-1]
    assert last.promoted[0] == (
        int((q - p).argmax()),
        pytest.approx(float((q - p).max())),
    )
    assert last.suppressed[0] == (
        int((q - p).argmin()),
        pytest.approx(float((q - p).min())),
    )
    assert last.ablated.next_probability == pytest.approx(float(q[13]))
    assert (last.clean.top, last.clean.top_probability) == (
        int(p.argmax()),
        float(p.max()),
    )
    assert last.clean.entropy == pytest.approx(float(-(p * p.log()).sum()))


def test_an_encoder_has_no_logit_lens():
    with pytest.raises(UserError, match="norms on the stream itself"):
        readings(tiny_model("bert", "masked_lm"), TEXT)


def cut(model: Any, sites: Any) -> Any:
    flipped = flipped_of(checkpoint_of(model, "tiny"), "raw")
    values = rule_values(rule_of("zero", None, "gate-/post+"), sites, flipped)
    chosen = [torch.arange(D_MLP) % 2 == 0, torch.arange(D_MLP) % 3 == 0]
    return frozen_mask(chosen, sites, values, special_ids=(-1,))


@torch.no_grad()
def test_a_continuation_under_a_conditional_ablation_is_that_without_a_cache():
    model = tiny_model("llama", "causal_lm")
    mask = cut(model, sites_of(model, ["neurons"]))
    with mask.applied(model):
        found = greedy(model, TEXT, 8)
        ids = list(TEXT)
        for _ in range(8):
            ids.append(
                int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            )
            if ids[-1] == 3:  # ends a text
                break
    assert found == ids[len(TEXT) :]
    assert greedy(model, TEXT, 8) != found
    assert greedy(model, [5] * 62, 8) == greedy(model, [5] * 62, 2)  # of 64 positions
    assert greedy(model, [5] * 64, 8) == []
