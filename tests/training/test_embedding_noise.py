"""Noise on embeddings: of the asked-for size, repeatable, and gone afterwards."""

import torch
from transformers import GPT2Config, GPT2Model

from circuitcut.training.embedding_noise import noisy_embeddings


def tiny() -> GPT2Model:
    torch.manual_seed(0)
    return GPT2Model(
        GPT2Config(
            vocab_size=50,
            n_embd=64,
            n_layer=1,
            n_head=2,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).requires_grad_(False)


def test_noise_has_the_asked_for_size_and_leaves_with_the_context():
    model, ids = tiny(), torch.arange(50).expand(40, 50)
    plain = model.wte(ids)
    with noisy_embeddings(model, 0.5):
        noise = model.wte(ids) - plain
    assert abs(float(noise.std() / plain.std()) - 0.5) < 0.01
    assert torch.equal(model.wte(ids), plain)


def test_noise_follows_the_default_generator():
    model, ids = tiny(), torch.arange(9)[None]
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        with noisy_embeddings(model, 1.0):
            found.append(model(ids).last_hidden_state)
    assert torch.equal(*found)


def test_a_scale_of_zero_changes_no_bit():
    model, ids = tiny().eval(), torch.arange(9)[None]
    plain = model(ids).last_hidden_state
    with noisy_embeddings(model, 0.0):
        assert torch.equal(model(ids).last_hidden_state, plain)
